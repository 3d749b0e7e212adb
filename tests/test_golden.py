"""The reference implementation's own numbers, made by running it (golden/README.md)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from oracles import contrastive, relative_error
from ptmst.config import LossKind
from ptmst.data import clean_caption
from ptmst.engine.outer_step import outer_gradient
from ptmst.evaluation.metrics import retrieval_recall
from ptmst.students.heads import ProjectionHead
from ptmst.students.layers import LayerTable
from ptmst.students.losses import contrastive_loss
from ptmst.students.student import Student
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity
from ptmst.trajectories.shortcut import Displacement, Shortcut, shortcut_beta

GOLDEN = Path(os.environ.get("PTMST_GOLDEN", Path(__file__).parent / "golden"))
READ = {
    "README.md",
    "captions.json",
    "losses.safetensors",
    "retrieval.json",
    "retrieval.safetensors",
    "shortcut.safetensors",
}
OUTER = sorted(path.stem for path in GOLDEN.glob("outer_*.safetensors"))
LOSSES: dict[str, LossKind] = {
    "BCE": "bce",
    "CWCL": "cwcl",
    "InfoNCE": "infonce",
    "KL": "kl",
    "MSE": "mse",
    "WBCE": "wbce",
}


def golden(name: str) -> dict[str, Tensor]:
    """A file's tensors. Tests pop what they read and assert that nothing is left."""
    return load_file(GOLDEN / name)


def cases(tensors: dict[str, Tensor], prefix: str) -> list[str]:
    return sorted({key.split(".")[0] for key in tensors if key.startswith(prefix)})


def test_every_file_is_read() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == READ | {f"{name}.safetensors" for name in OUTER}
    assert OUTER


def test_shortcuts() -> None:
    tensors = golden("shortcut.safetensors")
    found = cases(tensors, "case")
    assert found
    for case in found:
        first, end = tensors.pop(f"{case}.range").tolist()
        normal, expected = _trajectory(tensors, f"{case}.normal."), _trajectory(tensors, f"{case}.shortcut.")
        layers = len(normal[0])
        table = LayerTable(
            names=tuple(str(i) for i in range(layers)),
            shapes=tuple(tuple(part.shape) for part in normal[0]),
            group_of_layer=(0,) * layers,
            group_names=("all",),
        )
        points = [table.flatten(step) for step in normal[first:end]]
        norms = torch.stack([table.layer_norms(b - a) for a, b in pairwise(points)])
        endpoint = end - first - 1
        beta = shortcut_beta(norms, endpoint)
        assert len(expected) == endpoint + 1
        delta = points[-1] - points[0]
        half = Shortcut(table, points[0], Displacement.encode(delta, table), beta)
        for t, step in enumerate(expected):
            parts = zip(table.split(points[0]), table.split(delta), beta[t], step, strict=True)
            for start, moved, share, point in parts:
                assert relative_error(start + share * moved, point) <= 1e-6
            apart = (half.point(t) - table.flatten(step)).double().norm() / delta.double().norm()
            assert apart <= 1e-3
    assert not tensors


def _trajectory(tensors: dict[str, Tensor], prefix: str) -> list[list[Tensor]]:
    """Pop `prefix`T.L as tensors by timestamp and layer."""
    numbers = [tuple(map(int, key.removeprefix(prefix).split("."))) for key in tensors if key.startswith(prefix)]
    steps, layers = (1 + max(number[axis] for number in numbers) for axis in (0, 1))
    return [[tensors.pop(f"{prefix}{t}.{layer}") for layer in range(layers)] for t in range(steps)]


def test_losses_and_low_rank() -> None:
    tensors = golden("losses.safetensors")
    batches = cases(tensors, "B")
    assert batches
    for batch in batches:
        logits, similarity = tensors.pop(f"{batch}.logits"), tensors.pop(f"{batch}.similarity")
        for name, kind in LOSSES.items():
            loss, *gradients = _with_gradients(partial(contrastive_loss, kind), logits, similarity)
            _, *exact = _with_gradients(partial(contrastive, kind), logits.double(), similarity.double())
            assert relative_error(loss, tensors.pop(f"{batch}.{name}.loss")) <= 1e-5
            for of, ours, oracle in zip(("logits", "similarity"), gradients, exact, strict=True):
                theirs = tensors.pop(f"{batch}.{name}.grad_{of}")
                # The reference works in float32: where its terms cancel (KL in S), its own error is the measure.
                assert relative_error(ours, theirs) <= max(1e-5, 2 * relative_error(theirs, oracle)), (name, of)

    diag, left, right = (tensors.pop(f"lowrank.{name}") for name in ("diag", "left", "right"))
    alpha, rank = tensors.pop("lowrank.alpha_rank").tolist()
    low_rank = LowRankSimilarity(diag, left, right, alpha)
    assert left.shape[1] == rank
    assert relative_error(low_rank.dense(), tensors.pop("lowrank.full")) <= 1e-6
    index = tensors.pop("lowrank.idx")
    assert relative_error(low_rank.batch(index), tensors.pop("lowrank.batch")) <= 1e-6
    assert not tensors


def _with_gradients(loss_of: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [value.clone().requires_grad_() for value in inputs]
    loss = loss_of(*leaves)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def test_recalls() -> None:
    tensors, recalls = golden("retrieval.safetensors"), json.loads((GOLDEN / "retrieval.json").read_text())
    assert cases(tensors, "case") == sorted(recalls) != []
    for case, expected in recalls.items():
        images, texts = tensors.pop(f"{case}.image_embeds"), tensors.pop(f"{case}.text_embeds")
        found = retrieval_recall(images, texts, torch.arange(len(texts)) // expected["captions_per_image"])
        # The reference names a recall by what it retrieves from: txt_r ranks the texts of an image.
        for ours, theirs in (("ir", "img_r"), ("tr", "txt_r")):
            for k in (1, 5, 10):
                assert found[f"{ours}{k}"] == expected[f"{theirs}{k}"]
        assert found["mean"] == pytest.approx(expected["r_mean"], rel=1e-14)
    assert not tensors


def test_captions() -> None:
    entries = json.loads((GOLDEN / "captions.json").read_text())
    assert entries
    for entry in entries:
        assert clean_caption(entry["caption"], entry["max_words"]) == entry["expected"]


@pytest.mark.parametrize("name", OUTER)
def test_outer_step(name: str) -> None:
    tensors = golden(f"{name}.safetensors")
    image = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 32)
    )
    student = Student.from_modules(image, ProjectionHead(24, 32))
    start, target, final = (
        torch.cat([tensors.pop(f"img_{which}"), tensors.pop(f"txt_{which}")]) for which in ("start", "target", "final")
    )
    similarity: Similarity
    if "sim.similarity" in tensors:
        similarity = FullSimilarity(tensors.pop("sim.similarity"))
    else:
        diag, left, right = (tensors.pop(f"sim.{part}") for part in ("diag", "left", "right"))
        similarity = LowRankSimilarity(diag, left, right, alpha=1.0)
    pairs = SyntheticPairs(tensors.pop("image_syn"), tensors.pop("text_syn"), similarity, tensors.pop("lr"))
    batches = tensors.pop("indices")
    per_group = torch.stack([tensors.pop("loss_img"), tensors.pop("loss_txt")])
    loss = tensors.pop("loss")

    for adjoint, prefix in ((0.0, "grad_"), (1.0, "exact.grad_")):
        kind = {v: v for v in LOSSES.values()}[name.split("_")[1]]  # type: ignore[index]
        found = outer_gradient(student, start, target, pairs, batches, loss=kind, adjoint=adjoint)
        assert relative_error(found.loss, loss) <= 1e-4
        assert relative_error(found.per_group, per_group) <= 1e-4
        assert relative_error(found.theta_final, final) <= 1e-4
        assert relative_error(found.theta_final - start, final - start) <= 1e-4
        theirs = {"images": "image_syn", "texts": "text_syn", "lr": "lr"}
        for leaf, gradient in found.grads.items():
            assert relative_error(gradient, tensors.pop(prefix + theirs.get(leaf, f"sim.{leaf}"))) <= 1e-4, leaf
    assert not tensors
