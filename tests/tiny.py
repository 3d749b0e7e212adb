"""A world small enough to teach and distil in a second: 24 rendered images, two experts, three epochs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from ptmst import (
    DataConfig,
    DistillConfig,
    EncoderConfig,
    LeafRates,
    Phase,
    TeachConfig,
    TrajectoryStore,
    train_teachers,
    write_scenes,
)

ENCODER = EncoderConfig(image_width=16, text_width=32)
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
    ema=0.9,
)


def tiny_store(factory: pytest.TempPathFactory) -> TrajectoryStore:
    """One for the whole session; its data lie beside it."""
    return _taught(factory.getbasetemp() / "tiny")


@cache
def _taught(folder: Path) -> TrajectoryStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMST_CACHE", str(folder / "cache"))
        write_scenes(folder / "data", image_size=16, train=24, val=8, test=8, warmup=0, captions=2)
        return train_teachers(teach_config(folder))


def data_config(folder: Path) -> DataConfig:
    return DataConfig(root=folder / "data", image_size=16)


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
