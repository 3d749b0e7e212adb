"""Watching a distillation: what a watcher is told of every outer step, and experiment trackers that are watchers."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ptmst import schema
from ptmst.config import DistillConfig
from ptmst.errors import InputError
from ptmst.support import progress
from ptmst.synthetic.pairs import SyntheticPairs


@dataclass(frozen=True)
class Moment:
    """A run after an outer step, or before the first one that it takes since it was started or resumed."""

    phase: int
    """From 0."""
    step: int
    """Outer steps of the phase that are done."""
    steps: int
    """Outer steps of each phase."""
    lr: Mapping[str, float]
    """η by group, with which the step was taken, or will be."""
    loss: Mapping[str, float]
    """Matching loss of the step by group; empty before the first one."""
    gradient: Mapping[str, float]
    """Norm of its gradient in every leaf, by the leaf's name; likewise."""
    recall: float | None
    """Of a quick student on val after it, percent, where one was looked at (`track_recall`)."""
    pairs: SyntheticPairs
    """The averaged leaves, on the device of the run; copy what is kept, for the next step changes them in place."""

    def scalars(self) -> dict[str, float]:
        """Its numbers by names such as `phase 1/loss image`; none before the first step."""
        if not self.loss:
            return {}
        parts = {"loss": self.loss, "lr": self.lr, "gradient": self.gradient}
        found = {f"{what} {name}": value for what, values in parts.items() for name, value in values.items()}
        found |= {} if self.recall is None else {"recall": self.recall}
        return {f"phase {self.phase + 1}/{name}": value for name, value in found.items()}


Watcher = Callable[[Moment], object]
"""Called before the first and after every outer step; what it raises ends the run."""


class TensorBoard:
    """A watcher that writes scalars where `tensorboard --logdir` finds them."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the package is not installed."""
        self._folder = folder
        self._writer: Any = None
        _package("tensorboard")

    def __call__(self, moment: Moment) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step = moment.phase * moment.steps + moment.step
        if self._writer is None:
            # A run that is resumed takes some steps again.
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)
        for name, value in moment.scalars().items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A watcher that logs scalars to Weights & Biases, as its own environment variables say."""

    def __init__(self, folder: Path, config: DistillConfig) -> None:
        """Raises InputError where the package is not installed, or nobody is logged in."""
        self._folder, self._settings = folder, schema.decisive(config)
        self._wandb = _package("wandb")
        self._mode = os.environ.get("WANDB_MODE", "online")
        if self._mode == "online" and not self._is_logged_in():
            raise InputError(
                "track wandb: expected a login, found none; run `wandb login`, or set WANDB_MODE=offline to log here"
            )
        self._run: Any = None

    def _is_logged_in(self) -> bool:
        try:
            return bool(self._wandb.login(prompt=False))
        except TypeError:  # of an earlier version
            return self._wandb.api.api_key is not None

    def __call__(self, moment: Moment) -> None:
        if self._run is None:
            same = json.dumps([self._settings, str(self._folder.resolve())], sort_keys=True)
            try:
                self._run = self._wandb.init(
                    project="ptmst",
                    name=self._folder.name,
                    id=hashlib.sha256(same.encode()).hexdigest()[:16],
                    resume="allow",
                    dir=str(self._folder),
                    config=self._settings,
                    mode=self._mode,
                    settings=self._wandb.Settings(console="off", silent=not progress.is_shown()),
                )
            except self._wandb.errors.Error as error:
                raise InputError(f"track wandb: {error}; fix that, or leave it out") from error
        if found := moment.scalars():
            self._run.log(found, step=moment.phase * moment.steps + moment.step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def tracker(config: DistillConfig) -> TensorBoard | WandB | None:
    """What `track` asks for. Raises InputError where that is not installed, or lacks a login."""
    if config.track is None:
        return None
    assert config.out is not None
    if config.track == "wandb":
        return WandB(config.out, config)
    return TensorBoard(config.out / "tensorboard")


def _package(name: str) -> Any:
    try:
        found: ModuleType = importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"track {name}: expected the package {name}, found none; install ptmst[{name}], or leave it out"
        ) from error
    return found
