"""The commands that run the whole flow: demo, ablate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import arg

from ptmst.cli.flags import CONTINUES, Command, typed
from ptmst.config import AblateConfig, Rendered
from ptmst.support.progress import result, table


@dataclass(frozen=True)
class Demo(Command):
    """Run everything on an embedded data set, from experts to an HTML page of results."""

    stopped = CONTINUES
    examples: ClassVar = ("ptmst demo --quick", "ptmst demo --data digits --out runs/demo-digits")

    data: Rendered = "scenes"
    """Embedded data set: scenes (colored shapes) or digits (real handwriting)."""
    out: Path | None = None
    """Folder for all files; an interrupted demo continues there. none = runs/demo[-digits][-quick]."""
    quick: bool = False
    """A quarter of the time, with fewer experts and steps, and lower recall."""

    def run(self) -> None:
        from ptmst.studies.demo import run_demo

        folder = Path("runs") / f"demo{'-digits' * (self.data == 'digits')}{'-quick' * self.quick}"
        run_demo(self.data, self.out or folder, self.quick, typed())


@dataclass(frozen=True)
class Ablate(Command):
    """Compare methods over sizes and seeds on a data set, all tuned alike."""

    stopped = CONTINUES
    examples: ClassVar = (
        "ptmst ablate --methods random,lors,ptm-st --pairs 20,50 --seeds 3",
        "ptmst ablate --data csv:pairs.csv --root images --tune rates,batch,lr --pairs 100 --out runs/ablation-mine",
    )

    settings: Annotated[AblateConfig, arg(name="")] = field(default_factory=AblateConfig)

    def run(self) -> None:
        from ptmst.report.tables import recall_table, write_table
        from ptmst.studies.ablation import ablate, columns

        rows = ablate(self.settings, typed())
        about = columns(self.settings.tune)
        table(recall_table(rows, about))
        for suffix in (".csv", ".json", ".md", ".tex"):
            write_table(self.settings.out / f"recalls{suffix}", rows, about)
        result(f"{self.settings.out}: recalls.csv, .json, .md and .tex, and every run in ablation.json")
