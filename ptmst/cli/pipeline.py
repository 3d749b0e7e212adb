"""The commands from data to scores: data, teach, distill, subset, evaluate, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, get_args

from tyro.conf import Positional, arg

from ptmst import config as configs
from ptmst import presets
from ptmst.cli.flags import CONTINUES, Command, WithPreset, typed
from ptmst.config import (
    COMPUTE,
    RUN,
    Device,
    DistillConfig,
    EvaluateConfig,
    Places,
    Selection,
    TeachConfig,
    Writable,
    WriteDataConfig,
)
from ptmst.errors import InputError
from ptmst.support.progress import printable, result, table


@dataclass(frozen=True)
class Data(WithPreset):
    """Write a data set of ours to disk, or verify any data set with `ptmst data check NAME`."""

    examples: ClassVar = ("ptmst data --name emoji", "ptmst data --name digits --root data/digits --train 2000")

    settings: Annotated[WriteDataConfig, arg(name="")] = field(
        default_factory=WriteDataConfig, metadata={"group": "images and captions"}
    )

    def run(self) -> None:
        from ptmst.data import write_data

        wanted = presets.experiment(self.preset, self.config).teach.data.name if self.preset else self.settings.name
        if wanted not in get_args(Writable):
            raise InputError(
                f"preset {self.preset}: expected one on rendered data, found {wanted}, which is downloaded "
                f"(docs/data.md); `ptmst data check {wanted}` verifies it"
            )
        written = write_data(self.settings)
        result(f"{self.settings.folder}: {'written' if written else 'there already, nothing to do'}")


@dataclass(frozen=True)
class DataCheck(Command):
    """Decode every image of a data set, and list what is missing, broken or in two splits."""

    examples: ClassVar = (
        "ptmst data check flickr30k --root data/flickr30k",
        "ptmst data check csv:pairs.csv --root images",
    )

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """Data set: scenes, digits, flickr8k, flickr30k, coco, cc3m, {csv,tsv,jsonl}:PATH, or {wds,parquet}:GLOB."""
    root: Path | None = None
    """Folder of annotations and images; none = data/NAME, or the current folder for files of your own (csv: …)."""
    image_column: str | None = None
    """Column of images in csv, tsv, jsonl and parquet; none = filepath or image."""
    caption_column: str | None = None
    """Column of captions in csv, tsv, jsonl and parquet; none = title or caption (in Parquet, caption or text)."""

    def run(self) -> None:
        from rich.table import Table

        from ptmst.data.check import check

        folder = configs.DataConfig(name=self.name, root=self.root).folder
        report = check(self.name, folder, self.image_column, self.caption_column)
        head, *rows = report.rows()
        counts = Table(*head)
        for row in rows:
            counts.add_row(*map(printable, row))
        table(counts)
        for line in (*report.remarks, *report.problems):
            result(line)
        if report.problems:
            count = len(report.problems)
            raise InputError(
                f"{folder}: expected a sound data set, found {count} problem{'s' if count > 1 else ''}, named above"
            )
        result(f"{folder}: sound")


@dataclass(frozen=True)
class Teach(WithPreset):
    """Train experts on real pairs and store their trajectories."""

    stopped = CONTINUES
    examples: ClassVar = (
        "ptmst teach --preset demo --out runs/store",
        "ptmst teach --data.name flickr30k --encoder.image-tower timm:nfnet_l0 --encoder.image-weights nfnet_l0.pt",
    )

    settings: Annotated[TeachConfig, arg(name="")] = field(default_factory=TeachConfig)

    def run(self) -> None:
        from ptmst.teachers.teach import train_teachers

        store = train_teachers(self.settings)
        result(
            f"{store.path}: {len(store)} experts of {store.layers.num_params:,} parameters, {store.bytes / 1e6:.1f} MB"
        )


@dataclass(frozen=True)
class Distill(WithPreset):
    """Distill a trajectory store into a set of synthetic pairs."""

    stopped = "the same command with --resume continues"
    input = "store"
    examples: ClassVar = (
        "ptmst distill runs/store --preset demo --out runs/emoji-100",
        "ptmst distill runs/store --phases 200:5:0-2 299:7:1-3 --out runs/scenes-499 --resume",
    )

    store: Annotated[Positional[Path], arg(metavar="STORE")]
    """Folder of the trajectory store (or --store STORE)."""
    settings: Annotated[DistillConfig, arg(name="")] = field(default_factory=DistillConfig)
    resume: bool = field(default=False, metadata=RUN)
    """Continue an interrupted run."""

    def run(self) -> None:
        from ptmst.distillation.agreement import refuse_other_experts
        from ptmst.distillation.distill import distill
        from ptmst.report.live import watched
        from ptmst.trajectories.store import TrajectoryStore

        if self.settings.out is None:
            raise InputError("out: expected a folder for the distilled set, found none; name one with --out")
        store = TrajectoryStore.open(self.store)
        if self.preset is not None:
            refuse_other_experts(store, presets.experiment(self.preset, self.config).teach, self.preset)
        with watched(self.settings.out, typed(), store, self.stopped) as watch:
            distilled = distill(self.settings, store, resume=self.resume, watch=watch)
        result(
            f"{self.settings.out}: {distilled.num_pairs} pairs in {len(distilled)} phase{'s' * (len(distilled) > 1)}"
        )


@dataclass(frozen=True)
class Subset(Command, Places):
    """Select a coreset of real pairs as a baseline for distilled sets."""

    input = "store"
    examples: ClassVar = (
        "ptmst subset runs/store --out runs/random",
        "ptmst subset runs/store --selection herding --pairs 200 --out runs/herding",
    )

    store: Annotated[Positional[Path], arg(metavar="STORE")]
    """Folder of a trajectory store, from whose data the pairs are taken (or --store STORE)."""
    out: Path = field(metadata=RUN)
    """Folder to write the set to."""
    selection: Selection = "random"
    """random; herding: keep the mean of the embeddings; kcenter: cover them; forgetting: what experts forget most."""
    pairs: int = 100
    """Number of real pairs, each with a different image."""
    lr: float = 0.1
    """Learning rate of the students; for a fair comparison, the best on the val split."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of all random draws."""
    device: Device = field(default="auto", metadata=COMPUTE)
    """Device that computes embeddings; auto = CUDA if there is one."""

    def run(self) -> None:
        from ptmst.evaluation.baselines import subset
        from ptmst.support import folders
        from ptmst.synthetic.distilled_set import FOLDER
        from ptmst.trajectories.store import TrajectoryStore

        with folders.claimed(self.out, FOLDER, fresh=True):
            store = TrajectoryStore.open(self.store)
            made = subset(store, self.selection, self.pairs, self.lr, self.seed, self.device, self)
            made.save(self.out)
        result(f"{self.out}: {self.pairs} real pairs, {self.selection}")


@dataclass(frozen=True)
class Evaluate(WithPreset):
    """Score fresh students of a distilled set, or experts of a store, by retrieval recall."""

    input = "set"
    examples: ClassVar = (
        "ptmst evaluate runs/emoji-100 --preset demo",
        "ptmst evaluate runs/emoji-100 --on csv:stamps.csv --on-root stamps --out runs/on-stamps.json",
    )

    set: Annotated[Positional[Path], arg(metavar="SET")]
    """Folder of a distilled set, or of a trajectory store to score its experts (or --set SET)."""
    settings: Annotated[EvaluateConfig, arg(name="")] = field(default_factory=EvaluateConfig)
    out: Path | None = field(default=None, metadata=RUN)
    """JSON file to write the scores to; none = scores.json in the set's folder."""

    def run(self) -> None:
        from ptmst.evaluation.evaluate import evaluate, evaluate_experts
        from ptmst.evaluation.scores import SCORES, write_scores
        from ptmst.report.tables import Row, recall_table
        from ptmst.support import files
        from ptmst.synthetic.distilled_set import DistilledSet
        from ptmst.trajectories import store

        other = {"of another tower": self.settings.student, "on other data": self.settings.on}
        if self.out is None and (which := " and ".join(name for name, value in other.items() if value is not None)):
            raise InputError(f"out: expected a file for the scores {which}, found none; name one with --out")
        out = self.out or self.set / SCORES
        files.try_writing(out)
        if (self.set / store.INDEX).exists():
            scores = evaluate_experts(store.TrajectoryStore.open(self.set), self.settings)
            row = Row("all real pairs", scores, int(scores.provenance["pairs"]))
        else:
            distilled = DistilledSet.load(self.set)
            scores = evaluate(distilled, self.settings)
            row = Row(self.set.name, scores, distilled.num_pairs)
        try:
            write_scores(out, scores)
        finally:  # what was computed is not lost where it cannot be saved
            table(recall_table([row]))
        who, count = "expert" if row.is_full else "student", len(scores.students)
        result(f"{out}: scores of {count} {who}{'s' * (count > 1)}")


@dataclass(frozen=True)
class Report(Command):
    """Show sets and runs on a page, or write their recalls as CSV, JSON, Markdown or LaTeX."""

    examples: ClassVar = (
        "ptmst report runs/emoji-100 runs/random runs/store",
        "ptmst report runs/mine runs/smaller --out both.html",
    )

    sets: Annotated[Positional[tuple[Path, ...]], arg(metavar="SET [SET ...]")]
    """Folders of runs and demos, of sets and stores that `ptmst evaluate` has scored, or score files of it."""
    out: Path = Path("report.html")
    """File to write: .html for the page; .csv, .json, .md or .tex for the table alone."""
    title: str = "Distilled sets"
    """Heading of the page."""
    nearest: bool = True
    """Show the nearest real picture of each distilled one, for which all training pictures are read."""
    root: Path | None = None
    """Data folder, if it has moved since distillation; none = the folder recorded in the sets."""

    def run(self) -> None:
        from ptmst.report.tables import read_rows, write_table

        rows = read_rows(self.sets)
        if self.out.suffix not in ("", ".html", ".htm"):
            write_table(self.out, rows)
            result(f"{self.out}: {len(rows)} rows")
            return
        from ptmst.report.page import write_report

        write_report(self.out, self.title, rows, typed(), root=self.root, nearest=self.nearest)
        result(f"{self.out}: open it in a browser")
