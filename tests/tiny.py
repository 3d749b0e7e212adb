"""A world small enough to teach and distill in a second, and outer steps small enough for a float64 oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oracles import Outer
from ptmst import (
    DataConfig,
    DistillConfig,
    EncoderConfig,
    InputError,
    LeafRates,
    Phase,
    TeachConfig,
    TrajectoryStore,
    train_teachers,
    write_scenes,
)
from ptmst.config import Experiment, LossKind
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.presets import experiment
from ptmst.recipe import Fingerprints, Recipe
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import ConvNet, image_tower
from ptmst.students.losses import student_loss
from ptmst.students.student import Student
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity
from ptmst.trajectories.spans import RawSpan

ENCODER = EncoderConfig(image_width=16, text_width=32)
RECIPE = Recipe(
    DataConfig(name="scenes", image_size=16),
    ENCODER,
    32,
    Fingerprints("of data", "of texts", None),
    TeachConfig(lr=0.2),
)
"""Of experts that were never trained."""
RATES = LeafRates(images=0.02, texts=0.03, lr=0.002, similarity=0.01)
"""For adam."""
DISTILL = DistillConfig(
    phases=(Phase(8, 2, (0, 2)), Phase(10, 3, (1, 3))),
    steps=4,
    inner_steps=3,
    batch_size=4,
    optimizer="adam",
    momentum=0.9,
    rates=RATES,
    adjoint=0.0,
    adjoint_clip=None,
    ema=0.9,
)


def micro(name: str) -> Experiment:
    """The preset, with a tower and numbers for the tests' time."""
    plain = experiment(name)
    teach = replace(plain.teach, experts=1, epochs=2, encoder=replace(ENCODER, text_tower="hashed"), device="cpu")
    teach = replace(teach, data=replace(teach.data, image_size=16))
    distill = replace(plain.distill, steps=2, inner_steps=2)
    return replace(plain, teach=teach, distill=distill, evaluate=replace(plain.evaluate, students=2, epochs=2))


def tiny_store(factory: pytest.TempPathFactory, frozen: bool = False) -> TrajectoryStore:
    """24 rendered images, two experts, three epochs. One for the whole session; its data lie beside it."""
    return _taught(factory.getbasetemp() / ("tiny-frozen" if frozen else "tiny"), frozen)


@cache
def _taught(folder: Path, frozen: bool) -> TrajectoryStore:
    config = teach_config(folder)
    if frozen:
        config = replace(config, encoder=replace(ENCODER, freeze_tower=True, head_width=16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMST_CACHE", str(folder / "cache"))
        write_scenes(folder / "data", image_size=16, train=24, val=8, test=8, warmup=0, captions=2)
        return train_teachers(config)


def data_config(folder: Path) -> DataConfig:
    return DataConfig(name="scenes", root=folder / "data", image_size=16)


def teach_config(folder: Path) -> TeachConfig:
    data = data_config(folder)
    return TeachConfig(
        folder / "store", data, ENCODER, experts=2, epochs=3, batch_size=16, endpoints="all", device="cpu"
    )


def python(*arguments: str, module: str = "ptmst") -> subprocess.Popen[str]:
    """`python -m ptmst …` with one thread, its output in pipes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    # torch warns of its own use of torch.jit.script when forward mode is first used.
    command = [sys.executable, "-W", "ignore::FutureWarning", "-m", module, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def names(folder: Path, patterns: Sequence[str] = ("*",)) -> list[str]:
    return sorted(path.name for pattern in patterns for path in folder.glob(pattern))


# Outer steps

PAIRS, TEXT_WIDTH = 4, 6
BATCHES = torch.tensor([[0, 1, 2], [3, 1, 0], [2, 0, 1]])
ALPHA = 1.5
LEAVES = {"full": ["similarity"], "low-rank": ["diag", "left", "right"]}


def without_val(patch: pytest.MonkeyPatch) -> None:
    """Let data have no split val."""
    load = Recipe.pairs

    def pairs(self: Recipe, split: str) -> Any:
        if split == "val":
            raise InputError("val: expected a split, found none")
        return load(self, split)

    patch.setattr(Recipe, "pairs", pairs)


def convnet() -> tuple[nn.Module, int]:
    return ConvNet(16), 16


def batchnorm() -> tuple[nn.Module, int]:
    tower = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    with torch.no_grad():
        tower(torch.randn(16, 3, 16, 16))
    return tower.eval(), 16


def timm_tower(name: str, size: int) -> Callable[[], tuple[nn.Module, int]]:
    return lambda: (image_tower(EncoderConfig(image_tower=f"timm:{name}"), size)[0], size)


TOWERS = {
    "convnet": convnet,
    "batchnorm in eval mode": batchnorm,
    "test_nfnet": timm_tower("test_nfnet", 16),
    "test_convnext": timm_tower("test_convnext", 32),
    "test_vit": timm_tower("test_vit", 160),
}


@dataclass(frozen=True)
class OuterCase:
    student: Student
    start: Tensor
    target: Tensor
    pairs: SyntheticPairs
    batches: Tensor
    kind: LossKind = "wbce"

    @property
    def span(self) -> RawSpan:
        return RawSpan.between(self.start, self.target, self.student.layers)

    def step(self, **how: Any) -> OuterStep:
        return OuterStep(self.student, loss=self.kind, **how)

    def gradient(self, adjoint: float, clip: float | None = None, **how: Any) -> OuterGradient:
        return self.step(adjoint=adjoint, adjoint_clip=clip, **how)(self.span, self.pairs, self.batches)

    @property
    def oracle(self) -> Outer:
        image, text = self.student.layers.group_sizes
        return Outer(
            loss_of=student_loss(self.student, self.kind, 0.07),
            start=self.start,
            target=self.target,
            group_sizes=(image, text),
            leaves=self.pairs.leaves(),
            alpha=ALPHA,
            batches=self.batches,
        )


def outer_case(
    student: Student, size: int, form: str, batches: Tensor = BATCHES, kind: LossKind = "wbce", pairs: int = PAIRS
) -> OuterCase:
    """Random pairs, and a span near the student's parameters; all in the student's own type."""
    draw, theta = torch.Generator().manual_seed(1), student.flatten()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(theta)

    similarity: Similarity
    if form == "full":
        similarity = FullSimilarity(torch.eye(pairs).to(theta) + 0.2 * normal(pairs, pairs))
    else:
        similarity = LowRankSimilarity(1 + 0.1 * normal(pairs), 0.4 * normal(pairs, 2), 0.4 * normal(pairs, 2), ALPHA)
    lr = torch.tensor([0.1, 0.07]).to(theta)
    leaves = SyntheticPairs(normal(pairs, 3, size, size), normal(pairs, TEXT_WIDTH), similarity, lr)
    start = theta + 0.02 * normal(len(theta))
    return OuterCase(student, start, start + 0.05 * normal(len(theta)), leaves, batches, kind)


@cache
def tower_case(tower: str, form: str) -> OuterCase:
    torch.manual_seed(0)
    module, size = TOWERS[tower]()
    with torch.no_grad():
        width = module(torch.zeros(1, 3, size, size)).shape[1]
    student = Student.from_modules(module.double(), ProjectionHead(TEXT_WIDTH, width).double())
    # Two steps where a step is dear.
    return outer_case(student, size, form, BATCHES if len(student.flatten()) < 100_000 else BATCHES[:2])


def three_layers(frozen: bool = False) -> Student:
    """Images of 8×8 through one convolution and no norm; a head on it where the tower is frozen."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    if frozen:
        return Student.from_modules(nn.Linear(16, 8), nn.Linear(TEXT_WIDTH, 8), tower=tower)
    return Student.from_modules(tower, nn.Linear(TEXT_WIDTH, 16))


def in_float64(student: Student) -> Student:
    for module in student.modules:
        module.double()
    return student


def tiny_bert(path: Path, captions: Sequence[str], seed: int = 5) -> Path:
    """A tiny random BERT with its tokenizer, as save_pretrained leaves them; without a pooler, as fine-tuned ones."""
    transformers = pytest.importorskip("transformers")
    path.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({w for c in captions for w in c.split()})]
    (path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizerFast.from_pretrained(path)
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
        )
        transformers.BertForMaskedLM(config).save_pretrained(path)
    return path


def install(folder: Path, name: str, patch: pytest.MonkeyPatch) -> None:
    """Make an installed package of all that lies in a folder. Whoever imports its code learns of it."""
    code = folder / name.replace("-", "_") / "__init__.py"
    code.parent.mkdir(exist_ok=True)
    code.write_text("raise AssertionError('its code ran')")
    about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    (about / "RECORD").write_text("".join(f"{path},,\n" for path in [*there, f"{about.name}/RECORD"]))
    patch.syspath_prepend(folder)
