"""The commands that tell about presets, files and this machine: presets, inspect, doctor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ptmst import presets
from ptmst.support.progress import show


@dataclass(frozen=True)
class Presets:
    """List the published rows and methods that --preset takes, with their sources."""

    def run(self) -> None:
        from rich.table import Table

        for kind, title in (
            ("experiment", "Experiments"),
            ("method", f"Methods (alone: in {presets.BASE}; their published numbers apply to {presets.BASE_DATA}*)"),
        ):
            table = Table("name", "what", "source", title=title, title_justify="left")
            for preset in presets.catalogue():
                if preset.kind == kind:
                    table.add_row(preset.name, preset.about, preset.source)
            show(table)


@dataclass(frozen=True)
class Inspect:
    """Print what a store, set, run, tensor file or published file is."""

    path: Positional[Path]
    """File or folder."""
    verify: bool = False
    """Recompute every hash."""

    def run(self) -> None:
        from ptmst.cli.inspection import inspect

        for what, finding in inspect(self.path, self.verify):
            print(f"{what:20} {finding}")


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, which kernels run, and what is missing."""

    def run(self) -> None:
        from ptmst.cli.doctor import report

        for what, finding in report():
            print(f"{what:28} {finding}")
