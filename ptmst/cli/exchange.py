"""The commands that read and write what others publish: import, export."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from ptmst.cli.flags import Command
from ptmst.config import ImportConfig
from ptmst.support.progress import result


@dataclass(frozen=True)
class Import(Command):
    """Convert published replay buffers into a store, or published distilled sets into a set."""

    examples: ClassVar = (
        "ptmst import --images img_replay_buffer_0.pt --texts txt_replay_buffer_0.pt --out runs/imported",
        "ptmst import --distilled distilled_0_2000.pt distilled_1_2000.pt --out runs/published",
    )

    settings: Annotated[ImportConfig, arg(name="")] = field(default_factory=ImportConfig)

    def run(self) -> None:
        if self.settings.distilled:
            from ptmst.exchange.distilled_sets import import_set

            distilled = import_set(self.settings)
            result(f"{self.settings.out}: {distilled.num_pairs} pairs in {len(distilled)} phases")
            return
        from ptmst.exchange.replay_buffers import import_buffers

        made = import_buffers(self.settings)
        result(f"{made.path}: {len(made)} experts of {made.layers.num_params:,} parameters, {made.bytes / 1e6:.1f} MB")


@dataclass(frozen=True)
class Export(Command):
    """Write a distilled set in a format that other programs read."""

    examples: ClassVar = (
        "ptmst export runs/emoji-100 --out runs/pictures",
        "ptmst export runs/emoji-100 --format hf --out runs/emoji-100-hf",
    )

    set: Annotated[Positional[Path], arg(metavar="SET")]
    """Folder of the distilled set."""
    out: Path
    """Folder to write; it must be empty or not exist."""
    format: Literal["ptm-st", "lors", "folder", "hf"] = "folder"
    """ptm-st, lors: their published .pt files; folder: PNG files and captions; hf: Parquet for Hugging Face."""

    def run(self) -> None:
        from ptmst.exchange.export import export
        from ptmst.synthetic.distilled_set import DistilledSet

        written = export(DistilledSet.load(self.set), self.out, self.format)
        result(f"{self.out}: {len(written)} files")
