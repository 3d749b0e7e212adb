"""The commands that run the whole flow: demo, ablate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ptmst.cli.flags import CONTINUES, typed
from ptmst.config import (
    AblateConfig,
    Rendered,
)
from ptmst.support.progress import say, show


@dataclass(frozen=True)
class Demo:
    """Run everything on an embedded default: data, teachers, distillation, students, one HTML page."""

    data: Rendered = "scenes"
    """Embedded data set."""
    out: Path | None = None
    """Folder for everything that is written, where a stopped demo continues; none = runs/demo[-digits][-quick]."""
    quick: bool = False
    """At most 3 minutes on two cores, instead of 12: fewer experts and steps, and worse recall."""

    stopped = CONTINUES

    def run(self) -> None:
        from ptmst.studies.demo import run_demo

        folder = Path("runs") / f"demo{'-digits' * (self.data == 'digits')}{'-quick' * self.quick}"
        run_demo(self.data, self.out or folder, self.quick, typed())


@dataclass(frozen=True)
class Ablate:
    """Run a grid of methods, sizes and seeds on a rendered data set, each method's rates tuned alike, and table it."""

    settings: Annotated[AblateConfig, arg(name="")] = field(default_factory=AblateConfig)

    stopped = CONTINUES

    def run(self) -> None:
        from ptmst.report.tables import recall_table, write_table
        from ptmst.studies.ablation import COLUMNS, ablate

        rows = ablate(self.settings, typed())
        show(recall_table(rows, COLUMNS))
        for suffix in (".csv", ".json", ".md", ".tex"):
            write_table(self.settings.out / f"recalls{suffix}", rows, COLUMNS)
        say(f"{self.settings.out}: recalls.csv, .json, .md and .tex, and every run in ablation.json")
