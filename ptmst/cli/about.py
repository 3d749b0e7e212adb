"""The commands that tell about presets, files, the cache and this machine: presets, inspect, cache, doctor."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from ptmst import presets
from ptmst.cli.flags import Command
from ptmst.support.cache import Kind
from ptmst.support.progress import result, table


@dataclass(frozen=True)
class Presets(Command):
    """List the experiments and methods that --preset accepts, with their sources."""

    examples: ClassVar = ("ptmst presets", "ptmst teach --preset flickr30k-100,lors --out runs/store")

    def run(self) -> None:
        from rich.table import Table

        for kind, title in (
            ("experiment", "Experiments"),
            ("method", f"Methods (alone: in {presets.BASE}; their published numbers apply to {presets.BASE_DATA}*)"),
        ):
            shown = Table("name", "what", "source", title=title, title_justify="left")
            for preset in presets.catalogue():
                if preset.kind == kind:
                    shown.add_row(preset.name, preset.about, preset.source)
            table(shown)


@dataclass(frozen=True)
class Inspect(Command):
    """Print what a store, set, run, tensor file or published file contains."""

    examples: ClassVar = ("ptmst inspect runs/store", "ptmst inspect runs/emoji-100 --verify")

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    """File or folder to look at."""
    verify: bool = False
    """Recompute all hashes."""

    def run(self) -> None:
        from ptmst.cli.inspection import inspect

        for name, finding in inspect(self.path, self.verify):
            result(f"{name:20} {finding}")


@dataclass(frozen=True)
class Cache(Command):
    """List what is kept in the cache folder, or remove it by kind."""

    examples: ClassVar = ("ptmst cache", "ptmst cache --clear features")

    clear: Literal[Kind, "all"] | None = None
    """Kind of files to remove, or all."""

    def run(self) -> None:
        from rich.table import Table

        from ptmst.support import cache, folders

        for kept in cache.contents():
            if self.clear in (kept.kind, "all") and kept.files:
                cache.clear(kept.kind)
                result(f"{kept.kind}: {kept.files} files removed, {kept.bytes / 1e6:,.1f} MB")
        shown = Table("kind", "what", "files", "MB", "last used", title=str(folders.cache_folder()))
        for kept in cache.contents():
            used = "" if kept.used is None else datetime.fromtimestamp(kept.used).strftime("%Y-%m-%d %H:%M")
            shown.add_row(kept.kind, kept.what, f"{kept.files:,}", f"{kept.bytes / 1e6:,.1f}", used)
        table(shown)


@dataclass(frozen=True)
class Doctor(Command):
    """Print versions, devices, the implementation of each kernel, and what is missing."""

    examples: ClassVar = ("ptmst doctor", "PTMST_CACHE=/scratch/cache ptmst doctor")

    def run(self) -> None:
        from ptmst.cli.doctor import report

        for name, finding in report():
            result(f"{name:28} {finding}")
