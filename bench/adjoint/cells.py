"""The runs of the study as data: a cell is one distillation and the students that are trained on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ptmst.config import DistillConfig, LeafRates, Phase, TeachConfig, WriteDataConfig
from ptmst.presets import experiment

Data = Literal["scenes", "digits"]
DATA: tuple[Data, ...] = ("scenes", "digits")
Tower = Literal["convnet", "timm"]
Form = Literal["per-phase", "reference", "fixed", "first", "second", "at once"]
"""A protocol of evaluation: per-phase and reference, with the learned η; per-phase with the initial η (fixed), on the
first or the second phase only, and on the pairs of all phases at once."""
STUDENTS = 3
"""Fresh students per set."""
IMAGES = WriteDataConfig(name="scenes", train=1000, val=200, test=200, warmup=2000)
"""The two data sets; 5 captions per image."""


@dataclass(frozen=True)
class Side:
    """A setting of the adjoint, which the study compares: how it is carried back through the inner loop."""

    recursion: Literal["damped", "window", "random-window", "per-layer", "bounded"] = "damped"
    """damped is that of the engine; the others are in estimators.py."""
    adjoint: float = 0.0
    """Share of the recursion: in all groups, or in the image group if `texts` is set."""
    texts: float | None = None
    """Share in the text group, if it differs."""
    clip: float | None = None
    """Largest ‖λ_i‖/‖λ_n‖, per group; for per-layer, per layer."""
    steps: int | None = None
    """Length of a window, inner steps."""

    @property
    def label(self) -> str:
        share = f"{self.adjoint:g}" if self.texts is None else f"{self.adjoint:g}/{self.texts:g}"
        words: list[str] = [] if self.recursion == "damped" else [self.recursion]
        words += [f"c = {share}"] if self.recursion in ("damped", "per-layer") else []
        words += [f"k = {self.steps}"] if self.steps is not None else []
        words += [f"κ = {self.clip:g}"] if self.clip is not None else []
        return ", ".join(words)


TRUNCATED, EXACT = Side(), Side(adjoint=1.0)


@dataclass(frozen=True)
class Cell:
    """One run."""

    data: Data
    seed: int
    """Seed of experts, initial pairs, batches and students: cells that differ only in `side` are paired."""
    setting: str
    """Name of everything else that is varied."""
    side: Side
    distill: DistillConfig
    forms: tuple[Form, ...] = ("per-phase",)
    tower: Tower = "convnet"
    measure: Literal["recall", "experts", "why"] = "recall"
    """recall distills and scores students; experts scores the experts at every epoch; why follows the adjoint."""


def images(tower: Tower) -> WriteDataConfig:
    """The pictures for a tower: 32 px, or 64 for the timm tower."""
    return IMAGES if tower == "convnet" else replace(IMAGES, image_size=64)


def teach_config(seed: int, tower: Tower) -> TeachConfig:
    """The experts of a seed, without their folders."""
    demo = experiment("scenes").teach
    if tower == "convnet":
        return replace(demo, encoder=replace(demo.encoder, image_width=32), lr=0.1, experts=4, seed=seed)
    encoder = replace(demo.encoder, image_tower="timm:nf_regnet_b0", warmup_epochs=10)
    return replace(demo, encoder=encoder, lr=0.1, experts=2, epochs=6, seed=seed)


ADAM = LeafRates(images=0.02, texts=0.1, lr=0.002, similarity=0.1)
BASE = DistillConfig(
    phases=(Phase(50, 5, (0, 3)),),
    trajectory="raw",
    steps=200,
    inner_steps=8,
    batch_size=20,
    optimizer="adam",
    momentum=0.9,
    rates=ADAM,
    adjoint=0.0,
    adjoint_clip=None,
    ema=0.95,
    keep="primals",
    chunk=None,
    compile="on",
    device="cpu",
)


def with_rates(config: DistillConfig, factor: float) -> DistillConfig:
    """All leaf rates except η's times `factor`."""
    return replace(config, rates=config.rates.scaled(factor))


def cell(data: Data, seed: int, setting: str, side: Side, distill: DistillConfig, **more: Any) -> Cell:
    """A cell whose distillation has the cell's seed and its share and clip of the adjoint."""
    own = side.recursion == "damped" and side.texts is None
    share, clip = (side.adjoint, side.clip) if own else (1.0, None)
    distill = replace(distill, seed=seed, adjoint=share, adjoint_clip=clip)
    return Cell(data, seed, setting, side, distill, **more)
