"""Distillation that survives: the state between outer steps, written atomically, resumed to the same bits."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptmst import schema
from ptmst.config import DistillConfig
from ptmst.distillation.choosing import Choice, Trial
from ptmst.distillation.optimizer import OuterState
from ptmst.errors import InputError
from ptmst.support import files
from ptmst.synthetic.distilled_set import INDEX, RUN
from ptmst.trajectories.store import TrajectoryStore

_KIND, _VERSION = "distillation run", 1
KEPT = 2
"""Checkpoints of a phase."""
_NOTED = ("settled", "trials", "choice")
"""What is found out in a run's course and stays as it is when that is resumed."""
_ASIDE = ".damaged"
_LOG = logging.getLogger(__name__)


def run_record(folder: Path) -> dict[str, Any]:
    """What a distillation has written of itself in its output folder: settings, and the hash of its store."""
    return files.read_json(folder / RUN, _KIND, _VERSION)


class Checkpoints:
    """The newest two checkpoints of every phase in the output folder; nowhere, where there is no output folder."""

    def __init__(self, folder: Path | None, config: DistillConfig, store: TrajectoryStore, resume: bool) -> None:
        """Raises InputError where the folder holds another run, or one that was not to be resumed."""
        self.settled: DistillConfig | None = None
        """`config` as the run that is resumed had settled it: what was `auto` stays what it was."""
        self.choice: Choice | None = None
        """Of that run's phases, where they were open."""
        self._chosen_now = False
        self.trials: tuple[Trial, ...] = ()
        """Of that run's search for phases, if it was not at its end."""
        self._folder, self._every_s = folder, 60 * config.checkpoint_minutes
        self._saved_at = time.monotonic()
        self._record: dict[str, Any] = {
            "format": "ptmst-distillation-run",
            "version": _VERSION,
            "store_sha256": store.fingerprint,
            "config": schema.decisive(config),
        }
        if folder is None or not any((folder / name).exists() for name in (RUN, INDEX)):
            return
        if not resume:
            raise InputError(
                f"{folder}: holds a distillation already; continue it with --resume, or choose another --out"
            )
        record = run_record(folder)
        if record["store_sha256"] != store.fingerprint or not schema.agrees(record["config"], config):
            raise InputError(
                f"{folder}: expected a run of these settings and this store, found another; resume with the "
                "settings it began with, or choose another --out"
            )
        self._record |= {name: record[name] for name in _NOTED if name in record}
        self.trials = tuple(schema.from_json(Trial, trial) for trial in record.get("trials", ()))
        before = record.get("settled", {})
        if config.threads is not None:
            before = {**before, "threads": config.threads}
        self.settled = replace(config, **before)
        if "choice" in record:
            self.choice = schema.from_json(Choice, record["choice"])
            self.settled = self.choice.applied(self.settled)

    def settle(self, settled: DistillConfig) -> None:
        """Have it written with what is written first; a resumed run keeps what it had settled."""
        what = {"keep": settled.keep, "chunk": settled.chunk, "threads": settled.threads}
        self._record.setdefault("settled", what)

    def begin(self) -> None:
        """Write what the folder is for, before any checkpoint."""
        if self._folder is not None and (self._chosen_now or not (self._folder / RUN).exists()):
            self._note()

    def keep_trials(self, trials: Sequence[Trial]) -> None:
        """Write those of a search that have been run."""
        self._note(trials=[schema.to_json(trial) for trial in trials])

    def keep_choice(self, choice: Choice) -> None:
        """Have it written, with all trials in it, when the run begins."""
        self._record.pop("trials", None)
        self._record["choice"], self._chosen_now = choice.to_json(), True

    def _note(self, **more: Any) -> None:
        self._record |= more
        if self._folder is not None:
            files.write_json(self._folder / RUN, self._record)

    @property
    def steps_done(self) -> int:
        """Outer steps, over all phases, that need not be done again."""
        newest: dict[str, int] = {}
        for path in self._paths("*"):
            _, phase, step = path.stem.split("-")
            newest[phase] = max(newest.get(phase, 0), int(step))
        return sum(newest.values())

    def newest(self, phase: int, fresh: OuterState) -> OuterState:
        """The newest checkpoint of a phase that can be read, or `fresh`; what cannot be read is set aside."""
        for path in reversed(self._paths(str(phase))):
            try:
                return fresh.restored(int(path.stem.split("-")[2]), files.read_tensors(path))
            except (InputError, KeyError, RuntimeError) as error:
                _LOG.warning("%s: passed over, it cannot be read (%s)", path, error)
                # By its number it would be kept for one of the newest, and those that are written now be removed.
                path.rename(path.with_suffix(_ASIDE))
        return fresh

    def save(self, phase: int, state: OuterState) -> None:
        if self._folder is None:
            return
        files.write_tensors(self._folder / f"checkpoint-{phase}-{state.step:08d}.safetensors", state.tensors())
        for path in self._paths(str(phase))[:-KEPT]:
            path.unlink()
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether a checkpoint is to be written after this step."""
        return self._folder is not None and time.monotonic() - self._saved_at >= self._every_s

    def clear(self) -> None:
        """Remove the checkpoints of a run whose distilled set is safe."""
        for path in self._folder.glob("checkpoint-*") if self._folder else ():
            path.unlink()

    def _paths(self, phase: str) -> list[Path]:
        return sorted(self._folder.glob(f"checkpoint-{phase}-*.safetensors")) if self._folder else []
