"""The contrastive loss in tiles, of every implementation, against float64; and against open_clip's own losses."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lanes import NATIVE, each_lane, interpreted, running
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from oracles import contrastive, relative_error
from ptmst import FullSimilarity, LowRankSimilarity, SoftContrastiveLoss, kernels
from ptmst.config import LossKind
from ptmst.kernels import contrast as tiled

KINDS: tuple[LossKind, ...] = typing.get_args(LossKind)
SOFTMAX = ("infonce", "kl", "cwcl")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_label = pytest.mark.parametrize("labels", ["identity", "dense", "low-rank"])


@pytest.fixture
def device(lane: str) -> Iterator[torch.device]:
    with running(lane) as found:
        yield found


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, and a last one that is smaller."""
    monkeypatch.setattr(tiled, "_TILE", {"cpu": 300, "cuda": 300})


@dataclass
class Batch:
    """Everything that the loss takes, in float64."""

    images: Tensor
    texts: Tensor
    temperature: Tensor
    bias: Tensor
    labels: list[Tensor]
    """None, S, or diag, left and right (alpha is 2)."""

    @classmethod
    def of(cls, pairs: int, labels: str, width: int = 24, seed: int = 0) -> Batch:
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw).double()

        images, noise = normal(pairs, width), normal(pairs, width)
        soft: list[Tensor] = []
        if labels == "dense":
            soft = [torch.rand(pairs, pairs, generator=draw).double()]
        if labels == "low-rank":
            # Labels of positive sums: cwcl divides by them.
            soft = [1 + torch.rand(pairs, generator=draw).double(), normal(pairs, 3).abs(), normal(pairs, 3).abs() / 9]
        numbers = torch.tensor(0.2).double(), torch.tensor(-0.5).double()
        return cls(images, 3 * (images + noise), *numbers, soft)

    def leaves(self) -> list[Tensor]:
        return [self.images, self.texts, self.temperature, self.bias, *self.labels]

    def to(self, kind: torch.dtype | torch.device) -> Batch:
        images, texts, temperature, bias, *labels = (v.to(kind) for v in self.leaves())
        return Batch(images, texts, temperature, bias, labels)

    def differentiated(self, loss: Callable[[Batch], Tensor]) -> list[Tensor]:
        """The loss, and its gradients times 3 in everything it takes."""
        images, texts, temperature, bias, *labels = (v.detach().clone().requires_grad_() for v in self.leaves())
        leaves = Batch(images, texts, temperature, bias, labels)
        value = loss(leaves)
        return [value.detach(), *torch.autograd.grad(3 * value, leaves.leaves())]

    def similarity(self) -> Tensor | LowRankSimilarity | None:
        if len(self.labels) == 3:
            diag, left, right = self.labels
            return LowRankSimilarity(diag, left, right, alpha=2.0)
        return self.labels[0] if self.labels else None


def logits_of(batch: Batch) -> Tensor:
    units = [v / (v**2).sum(1, keepdim=True).sqrt() for v in (batch.images, batch.texts)]
    return units[0] @ units[1].T / batch.temperature + batch.bias


def on_logits(kind: LossKind, logits: Tensor, labels: list[Tensor]) -> Tensor:
    """All pairs at once, from the oracle's losses on logits."""
    if len(labels) == 3:
        diag, left, right = labels
        s = torch.diag(diag) + 2 / 3 * left @ right.T
    else:
        s = labels[0] if labels else torch.eye(len(logits), dtype=logits.dtype)
    if kind == "siglip":  # the oracle's exponentials overflow beyond 700
        return (s * F.softplus(-logits) + (1 - s) * F.softplus(logits)).sum() / len(logits)
    if kind == "bce":  # the oracle's own 1 − σ is 0 long before its logarithm is cut off
        yes, no = (F.logsigmoid(v).clamp(min=-100) for v in (logits, -logits))
        return -(s * yes + (1 - s) * no).mean()
    return contrastive(kind, logits, s)


def by_definition(kind: LossKind) -> Callable[[Batch], Tensor]:
    """0 · bias where a bias drops out."""
    return lambda batch: on_logits(kind, logits_of(batch), batch.labels)


def cancelled(kind: LossKind, batch: Batch) -> float:
    """How many times as large as ∂ℓ/∂τ the sum of its terms' sizes is: the derivative loses so much by cancelling."""
    logits = logits_of(batch).detach().requires_grad_()
    (slope,) = torch.autograd.grad(on_logits(kind, logits, batch.labels), logits)
    terms = slope * (logits.detach() - batch.bias)
    return float(terms.abs().sum() / terms.sum().abs())


def ours(kind: LossKind) -> Callable[[Batch], Tensor]:
    def loss(batch: Batch) -> Tensor:
        return kernels.soft_contrastive(
            batch.images,
            batch.texts,
            batch.similarity(),
            kind=kind,
            temperature=batch.temperature,
            bias=batch.bias,
        )

    return loss


def assert_as_exact_as_torch(kind: LossKind, batches: list[Batch], device: torch.device) -> Tensor:
    """By root mean squares over the batches: of a few pairs, one rounding may decide. Returns the last one's loss."""
    errors = []
    for batch in batches:
        found = batch.to(torch.float32).to(device).differentiated(ours(kind))
        exact, plain = (b.differentiated(by_definition(kind)) for b in (batch, batch.to(torch.float32)))
        if kind in SOFTMAX:  # a bias drops out, and what is left of it is noise
            assert float(found.pop(4).abs()) <= 1e-5 * float(exact[3].norm())
            del exact[4], plain[4]
        both = [[relative_error(v.cpu(), e) for v, e in zip(side, exact, strict=True)] for side in (found, plain)]
        errors.append(torch.tensor(both))
        errors[-1][:, 3] /= cancelled(kind, batch)
    mine, theirs = torch.stack(errors).square().mean(0).sqrt()
    assert (mine <= 2 * theirs + 2e-6).all(), (mine, theirs)
    return found[0]


@pytest.mark.slow
@each_lane
@each_kind
@each_label
def test_against_float64(lane: str, device: torch.device, kind: LossKind, labels: str) -> None:
    for pairs in (5, 33) if interpreted(lane) else (1, 5, 33, 67, 300):
        if pairs == 1 and kind in SOFTMAX:
            continue  # the loss is 0, and its gradients are noise
        seeds = range(4 if pairs == 5 and labels == "low-rank" else 1)
        assert_as_exact_as_torch(kind, [Batch.of(pairs, labels, seed=seed) for seed in seeds], device)


@pytest.mark.slow
@each_lane
@each_kind
@each_label
def test_in_blocks_of_rows(lane: str, device: torch.device, kind: LossKind, labels: str, small_tiles: None) -> None:
    batch = Batch.of(23 if interpreted(lane) else 67, labels)
    found = assert_as_exact_as_torch(kind, [batch], device)
    with torch.no_grad():
        alone = ours(kind)(batch.to(torch.float32).to(device))
    assert torch.equal(alone, found)


@pytest.mark.slow
@each_lane
@each_kind
def test_saturated_logits(device: torch.device, kind: LossKind) -> None:
    """Cosines of ±1 at temperatures 0.07 and 0.003: logits of ±14 and ±333."""
    for temperature in (0.07, 0.003):
        batch = Batch.of(9, "dense")
        batch.images[:3] = batch.texts[:3]
        batch.images[3:6] = -batch.texts[3:6]
        batch.temperature = torch.tensor(temperature).double()
        found = batch.to(torch.float32).to(device).differentiated(ours(kind))
        exact = batch.differentiated(by_definition(kind))
        assert all(bool(torch.isfinite(v).all()) for v in found)
        assert relative_error(found[0].cpu(), exact[0]) <= 5e-4


@pytest.mark.slow
@each_lane
@each_kind
def test_a_row_of_zeros_has_a_finite_gradient(device: torch.device, kind: LossKind) -> None:
    """As torch's normalize: its unit vector is zero."""
    images, texts = torch.randn(2, 6, 8, device=device)
    images[2] = 0
    loss = kernels.soft_contrastive(images.requires_grad_(), texts.requires_grad_(), kind=kind)
    gradients = torch.autograd.grad(loss, (images, texts))
    assert torch.isfinite(loss) and all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("lane", NATIVE)
@each_kind
def test_bits_do_not_depend_on_threads(device: torch.device, kind: LossKind) -> None:
    batch = Batch.of(300, "dense").to(torch.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        z = batch.images @ batch.texts.T
        found.append(tile_results(kind, z, batch.labels[0]))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def tile_results(kind: LossKind, z: Tensor, labels: Tensor) -> list[Tensor]:
    """Of the tile's kernels alone: matrix products are torch's own."""
    from ptmst.kernels import native

    # The product itself may depend on the threads.
    z = torch.linspace(-14, 14, z.numel()).view_as(z)[torch.arange(len(z)).flip(0)].contiguous()
    d_labels = torch.full_like(z, torch.nan)
    if kind not in SOFTMAX:
        bias, positives = torch.tensor(-0.5), (labels > 0.5).sum()
        return [z, d_labels, *native.pairwise(kind, z, labels, d_labels, 0, bias, positives, True)]
    form = "kl" if kind == "kl" else "linear"
    rows, columns = (torch.full(shape, torch.nan, dtype=torch.float64) for shape in ((len(z), 5), (5, len(z))))
    native.softmax_stats(form, z, labels, 0, rows, columns)
    numbers = torch.rand(5, len(z), generator=torch.Generator().manual_seed(0))
    sums = native.softmax_gradient(form, z, labels, d_labels, 0, numbers.T.contiguous(), numbers)
    return [rows, columns, z, d_labels, sums]


@pytest.mark.slow
@each_lane
def test_bfloat16_embeddings(device: torch.device) -> None:
    batch = Batch.of(33, "identity").to(torch.bfloat16)
    images, texts = (v.to(device).requires_grad_() for v in (batch.images, batch.texts))
    loss = kernels.soft_contrastive(images, texts, kind="infonce", temperature=0.2)
    gradients = torch.autograd.grad(loss, (images, texts))
    wide = Batch.of(33, "identity")
    exact = Batch(
        batch.images.double(), batch.texts.double(), wide.temperature, torch.zeros(()).double(), []
    ).differentiated(by_definition("infonce"))
    assert loss.dtype == gradients[0].dtype == gradients[1].dtype == torch.bfloat16
    assert relative_error(loss.detach().cpu(), exact[0]) <= 2e-2
    for found, expected in zip(gradients, exact[1:3], strict=True):
        assert relative_error(3 * found.cpu(), expected) <= 2e-2


@pytest.mark.slow
@each_lane
@pytest.mark.parametrize("kind", ["siglip", "infonce", "wbce"])
def test_autocast_changes_nothing(device: torch.device, kind: LossKind) -> None:
    """A loss inside an autocast block is the usual case: its products stay float32, whoever makes them."""
    for labels in ("identity", "low-rank"):
        batch = Batch.of(32, labels).to(torch.float32).to(device)
        expected = batch.differentiated(ours(kind))
        with torch.autocast(device.type, torch.bfloat16):
            found = batch.differentiated(ours(kind))
            alone = ours(kind)(batch)
        assert torch.equal(alone, expected[0])
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["reference", "portable"])
def test_gradients_lie_as_they_are_promised(device: torch.device) -> None:
    """Of embeddings that lie by columns: a compiler relies on the strides that it is told."""
    images, texts = torch.randn(2, 8, 16).transpose(1, 2)
    args = [images, texts, torch.tensor(0.1), torch.tensor(0.0), [torch.rand(16, 16).T], 0.0, "infonce", True]
    if device.type == "cpu" and os.environ["PTMST_KERNELS"] == "native":
        found, promised = tiled._run_gradients(*args), tiled._fake_gradients(*args)
        assert [v.stride() for v in found] == [v.stride() for v in promised]
    compiled = torch.compile(lambda a, b: kernels.soft_contrastive(a, b, kind="infonce"), fullgraph=True)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(leaf, texts), leaf)
    (expected,) = torch.autograd.grad(kernels.soft_contrastive(leaf, texts, kind="infonce"), leaf)
    assert relative_error(gradient, expected) <= 1e-5
    torch.compiler.reset()


@pytest.mark.slow
@each_lane
def test_embeddings_with_gaps(device: torch.device) -> None:
    batch = Batch.of(20, "dense").to(torch.float32).to(device)
    apart = [torch.stack([v, -v], -1)[..., 0] for v in (batch.images, batch.texts, batch.labels[0])]
    expected = kernels.soft_contrastive(batch.images, batch.texts, batch.labels[0])
    assert relative_error(kernels.soft_contrastive(*apart), expected.cpu()) <= 1e-6
    by_columns = batch.labels[0].T.contiguous().T
    assert relative_error(kernels.soft_contrastive(batch.images, batch.texts, by_columns), expected.cpu()) <= 1e-6


def test_only_what_is_wanted_is_differentiated() -> None:
    batch = Batch.of(12, "dense").to(torch.float32)
    exact = batch.differentiated(by_definition("kl"))
    for number, leaf in enumerate(batch.leaves()):
        wanted = leaf.clone().requires_grad_()
        leaves = batch.leaves()
        leaves[number] = wanted
        images, texts, temperature, bias, *labels = leaves
        loss = ours("kl")(Batch(images, texts, temperature, bias, labels))
        (found,) = torch.autograd.grad(loss, wanted)
        if number != 3:
            assert relative_error(3 * found, exact[1 + number]) <= 1e-4


class Memory(TorchDispatchMode):
    """The largest tensor that any torch op makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wbce", "infonce", "kl"])
@pytest.mark.parametrize("labels", ["identity", "low-rank"])
def test_no_matrix_of_all_pairs(kind: LossKind, labels: str, small_tiles: None) -> None:
    pairs = 200
    batch = Batch.of(pairs, labels).to(torch.float32)
    with running("portable"), Memory() as memory:
        tiled._run_gradients(
            batch.images, batch.texts, batch.temperature, batch.bias, batch.labels, 2.0, kind, labels == "low-rank"
        )
    assert pairs * batch.images.shape[1] <= memory.largest < pairs**2 / 4


# Others' losses


@pytest.mark.slow
@each_lane
def test_infonce_is_open_clips_loss(device: torch.device) -> None:
    open_clip = pytest.importorskip("open_clip")
    images, texts = (F.normalize(v, dim=1).to(device) for v in torch.randn(2, 31, 16))
    for scale in (5.0, 100.0):
        inputs = [v.clone().requires_grad_() for v in (images, texts, torch.tensor(scale, device=device))]
        theirs = open_clip.loss.ClipLoss()(*inputs)
        mine = SoftContrastiveLoss("infonce")(*inputs[:2], temperature=1 / inputs[2])
        assert relative_error(mine, theirs.cpu()) <= (1e-6 if device.type == "cpu" else 1e-5)
        assert_same_gradients(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), inputs)


@pytest.mark.slow
@each_lane
def test_siglip_is_open_clips_loss(device: torch.device) -> None:
    open_clip = pytest.importorskip("open_clip")
    images, texts = (F.normalize(v, dim=1).to(device) for v in torch.randn(2, 31, 16))
    numbers = torch.tensor(10.0, device=device), torch.tensor(-10.0, device=device)
    inputs = [v.clone().requires_grad_() for v in (images, texts, *numbers)]
    theirs = open_clip.loss.SigLipLoss()(*inputs)
    mine = SoftContrastiveLoss("siglip")(*inputs[:2], temperature=1 / inputs[2], bias=inputs[3])
    assert relative_error(mine, theirs.cpu()) <= 1e-6
    assert_same_gradients(torch.autograd.grad(mine, inputs), torch.autograd.grad(theirs, inputs), inputs)


def assert_same_gradients(mine: Any, theirs: Any, inputs: list[Tensor]) -> None:
    """Theirs take embeddings as they are: along them lies a part that a loss of directions has not."""
    for a, b, v in zip(mine, theirs, inputs, strict=True):
        across = b - v * (b * v).sum(1, keepdim=True) if v.dim() == 2 else b
        assert relative_error(a.cpu(), across.detach().cpu()) <= 2e-5


GOLDEN = {"KL": "kl", "BCE": "bce", "WBCE": "wbce", "InfoNCE": "infonce", "MSE": "mse", "CWCL": "cwcl"}


@pytest.mark.slow
@each_lane
def test_golden_losses(device: torch.device) -> None:
    """The reference implementation's values, from embeddings whose cosines are its logits."""
    tensors = load_file(Path(__file__).parents[1] / "golden" / "losses.safetensors")
    for size in ("B4", "B20"):
        logits, similarity = (tensors[f"{size}.{name}"].double() for name in ("logits", "similarity"))
        images, texts, temperature = embeddings_of(logits)
        for theirs, kind in GOLDEN.items():
            found = kernels.soft_contrastive(
                images.float().to(device),
                texts.float().to(device),
                similarity.float().to(device),
                kind=kind,
                temperature=temperature,
            )
            (value,) = (v for k, v in tensors.items() if k.startswith(f"{size}.{theirs}") and v.dim() == 0)
            assert relative_error(found.cpu(), value) <= 2e-4, (size, kind)


def embeddings_of(logits: Tensor) -> tuple[Tensor, Tensor, float]:
    """Unit vectors of 2 N numbers whose cosines over the temperature are given logits."""
    n = len(logits)
    temperature = 1 / (1.1 * float(torch.linalg.matrix_norm(logits, 2)))
    cosines = logits * temperature
    texts = torch.cat([torch.eye(n).double(), torch.zeros(n, n).double()], 1)
    # Rows of length 1: what is missing goes where no text lies.
    missing = torch.diag((1 - cosines.square().sum(1)).sqrt())
    return torch.cat([cosines, missing], 1), texts, temperature


# The module


@each_kind
def test_the_module(kind: LossKind) -> None:
    batch = Batch.of(9, "low-rank").to(torch.float32)
    dense = torch.diag(batch.labels[0]) + 2 / 3 * batch.labels[1] @ batch.labels[2].T
    loss = SoftContrastiveLoss(kind, temperature=0.2)
    exact = contrastive_of(kind, batch, dense)
    for similarity in (dense, FullSimilarity(dense), batch.similarity()):
        assert relative_error(loss(batch.images, batch.texts, similarity), exact) <= 1e-5


def contrastive_of(kind: LossKind, batch: Batch, similarity: Tensor) -> Tensor:
    wide = Batch(batch.images.double(), batch.texts.double(), torch.tensor(0.2).double(), torch.zeros(()).double(), [])
    wide.labels = [similarity.double()]
    return by_definition(kind)(wide)


def test_defaults_are_the_papers() -> None:
    images, texts = torch.randn(5, 8).double(), torch.randn(5, 8).double()
    batch = Batch(images, texts, torch.tensor(0.07, dtype=torch.float64), torch.zeros(()).double(), [])
    assert relative_error(kernels.soft_contrastive(images, texts), by_definition("wbce")(batch)) <= 1e-13
    assert relative_error(SoftContrastiveLoss()(images, texts), by_definition("wbce")(batch)) <= 1e-13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "hinge"}, "kind: expected wbce, bce, infonce, kl, mse, cwcl, siglip, found hinge"),
        ({"image_embeds": torch.randn(4)}, "image_embeds: expected shape [N, H], found (4,)"),
        ({"image_embeds": torch.randn(0, 3)}, "image_embeds: expected shape [N, H], found (0, 3)"),
        ({"image_embeds": torch.randn(4, 3).half()}, "image_embeds: expected float32, bfloat16 or float64, found"),
        ({"text_embeds": torch.randn(5, 3)}, "text_embeds: expected torch.float32 of shape (4, 3), found"),
        ({"text_embeds": torch.randn(4, 3).bfloat16()}, "text_embeds: expected torch.float32 of shape (4, 3), found"),
        ({"similarity": torch.eye(5)}, "similarity: expected torch.float32 of shape (4, 4), found torch.float32 of sh"),
        ({"temperature": torch.ones(2)}, "temperature: expected torch.float32 of shape (), found torch.float32 of sh"),
        (
            {"similarity": LowRankSimilarity(torch.ones(4), torch.ones(4, 2), torch.ones(4, 3), 1.0)},
            "right: expected torch.float32 of shape (4, 2), found torch.float32 of shape (4, 3)",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, Any], message: str) -> None:
    inputs = {"image_embeds": torch.randn(4, 3), "text_embeds": torch.randn(4, 3)} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.soft_contrastive(**inputs)
