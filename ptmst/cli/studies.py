"""The commands of the whole flow: demo, ablate, diagnose, estimate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from ptmst.cli.flags import CONTINUES, Command, typed
from ptmst.config import COMPUTE, RUN, AblateConfig, DataConfig, Device, DiagnoseConfig, RunConfig
from ptmst.support.progress import result, table


@dataclass(frozen=True)
class Demo(Command):
    """Run everything on one data set, from experts to an HTML page of results."""

    stopped = CONTINUES
    examples: ClassVar = ("ptmst demo --quick", "ptmst demo --data csv:pairs.csv --root images --out runs/mine")

    data: str = "emoji"
    """Data set: emoji (drawings, shipped), scenes or digits (rendered), or any that teach takes, such as csv:PATH."""
    root: Path | None = None
    """Folder of the data; none = written below the output folder, or data/NAME, or the current folder for csv: …"""
    image_column: str | None = None
    """Column of images in csv, tsv, jsonl and parquet; none = filepath or image."""
    caption_column: str | None = None
    """Column of captions in csv, tsv, jsonl and parquet; none = title or caption (in Parquet, caption or text)."""
    out: Path | None = None
    """Folder for all files; an interrupted demo continues there. none = runs/demo[-DATA][-quick]."""
    quick: bool = False
    """A quarter of the time, with fewer experts and steps: to see that all runs, not for recall."""

    def run(self) -> None:
        from ptmst.studies.demo import run_demo

        source = DataConfig(self.data, self.root, image_column=self.image_column, caption_column=self.caption_column)
        name = "" if self.data == "emoji" else f"-{self.data.partition(':')[0]}"
        run_demo(source, self.out or Path("runs") / f"demo{name}{'-quick' * self.quick}", self.quick, typed())


@dataclass(frozen=True)
class Run(Command):
    """Do everything with data of your own: experts, a distilled set, students, a page."""

    stopped = CONTINUES
    examples: ClassVar = (
        "ptmst run --data csv:pairs.csv --root pictures --pairs 200 --out runs/mine",
        "ptmst run --data csv:pairs.csv --image-tower timm:resnet50 --image-weights resnet50.safetensors",
    )

    settings: Annotated[RunConfig, arg(name="")] = field(default_factory=RunConfig)

    def run(self) -> None:
        from ptmst.studies.run import run

        run(self.settings, typed())


@dataclass(frozen=True)
class Ablate(Command):
    """Compare methods over sizes and seeds on a data set, all tuned alike."""

    stopped = CONTINUES
    examples: ClassVar = (
        "ptmst ablate --methods random,lors,ptm-st --pairs 20,50 --seeds 3",
        "ptmst ablate --data csv:pairs.csv --root images --tune rates,batch,lr --pairs 100 --out runs/ablation-mine",
    )

    settings: Annotated[AblateConfig, arg(name="")] = field(default_factory=AblateConfig)
    cost: bool = field(default=False, metadata=RUN)
    """Only tell how many runs are left, and how long they take here."""

    def run(self) -> None:
        from ptmst.report.tables import recall_table, write_table
        from ptmst.studies.ablation import ablate, columns, cost

        if self.cost:
            result(cost(self.settings, typed()))
            return
        rows = ablate(self.settings, typed())
        about = columns(self.settings.tune)
        table(recall_table(rows, about))
        for suffix in (".csv", ".json", ".md", ".tex"):
            write_table(self.settings.out / f"recalls{suffix}", rows, about)
        result(f"{self.settings.out}: recalls.csv, .json, .md and .tex, and every run in ablation.json")


@dataclass(frozen=True)
class Diagnose(Command):
    """Measure what experts are like and what they tell a set, by which to choose phases."""

    input = "store"
    examples: ClassVar = (
        "ptmst diagnose runs/store",
        "ptmst diagnose runs/store --set runs/emoji-100 --out runs/diagnosis",
    )

    store: Annotated[Positional[Path], arg(metavar="STORE")]
    """Folder of the trajectory store (or --store STORE)."""
    set: Path | None = field(default=None, metadata=RUN)
    """Folder of a set that was distilled from it: how far do its students get along the experts' lines?"""
    settings: Annotated[DiagnoseConfig, arg(name="")] = field(default_factory=DiagnoseConfig)
    out: Path = field(default=Path("runs/diagnosis"), metadata=RUN)
    """Folder to write diagnosis.html and diagnosis.json to."""

    def run(self) -> None:
        from ptmst.diagnosis.diagnose import diagnose
        from ptmst.report.diagnosis import write_diagnosis_page
        from ptmst.support import files, folders
        from ptmst.synthetic.distilled_set import DistilledSet
        from ptmst.trajectories.store import TrajectoryStore

        store = TrajectoryStore.open(self.store)
        distilled = None if self.set is None else DistilledSet.load(self.set)
        folders.refuse_taken(self.out)
        files.try_writing(self.out / "diagnosis.json")
        found = diagnose(self.settings, store, distilled)
        files.write_json(self.out / "diagnosis.json", found.to_json())
        write_diagnosis_page(self.out / "diagnosis.html", f"Diagnosis of {self.store.name}", found, typed())
        for sentence in found.findings.sentences:
            result(f"* {sentence}")
        result(f"{self.out}: diagnosis.html, to be opened in a browser, and diagnosis.json")


@dataclass(frozen=True)
class Estimate(Command):
    """Tell the time, memory and disk that an experiment will take here."""

    examples: ClassVar = ("ptmst estimate demo", "ptmst estimate flickr30k-500 --root data/flickr30k --device cuda")

    preset: Annotated[Positional[str], arg(metavar="PRESET")]
    """EXPERIMENT[,METHOD], such as coco-200,lors; `ptmst presets` lists them."""
    config: Annotated[Path | None, arg(metavar="FILE")] = field(default=None, metadata=RUN)
    """TOML file with a table for each command, which overrides the preset."""
    root: Path | None = None
    """Folder of the data; none = that of the preset, or data/NAME."""
    device: Device = field(default="auto", metadata=COMPUTE)
    """Device to measure on; auto = CUDA if there is one."""

    def run(self) -> None:
        from rich.table import Table

        from ptmst.presets import experiment
        from ptmst.studies.estimate import estimate, on, shown

        settings = on(experiment(self.preset, self.config), self.root, self.device)
        rows = Table("command", "time", "memory", "disk", "of")
        for stage in estimate(settings):
            rows.add_row(stage.name, *shown(stage), stage.what)
        table(rows)
        result(f"{self.preset}: from a few steps, without compilation; if nothing is cached and nothing else runs")
