"""The commands that read and write what others publish: import, export."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ptmst.config import (
    ImportConfig,
)
from ptmst.support.progress import say


@dataclass(frozen=True)
class Import:
    """Read published replay buffers into a trajectory store, or published distilled sets into a set."""

    settings: Annotated[ImportConfig, arg(name="")] = field(default_factory=ImportConfig)

    def run(self) -> None:
        if self.settings.distilled:
            from ptmst.exchange.distilled_sets import import_set

            found = import_set(self.settings)
            say(f"{self.settings.out}: {found.num_pairs} pairs in {len(found)} phases")
            return
        from ptmst.exchange.replay_buffers import import_buffers

        made = import_buffers(self.settings)
        say(f"{made.path}: {len(made)} experts of {made.layers.num_params:,} parameters, {made.bytes / 1e6:.1f} MB")


@dataclass(frozen=True)
class Export:
    """Write a distilled set in a form that other code reads."""

    set: Positional[Path]
    """Folder of the distilled set."""
    out: Path
    """Folder to write; it must be empty or not there."""
    format: Literal["ptm-st", "lors", "folder", "hf"] = "folder"
    """ptm-st, lors: the published .pt files; folder: PNG and captions; hf: Parquet that Hugging Face datasets reads."""

    def run(self) -> None:
        from ptmst.exchange.export import export
        from ptmst.synthetic.distilled_set import DistilledSet

        written = export(DistilledSet.load(self.set), self.out, self.format)
        say(f"{self.out}: {len(written)} files")
