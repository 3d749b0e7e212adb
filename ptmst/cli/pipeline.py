"""The commands from data to scores: data, teach, distill, subset, evaluate, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, get_args

from tyro.conf import Positional, arg

from ptmst import config as configs
from ptmst import presets
from ptmst.cli.flags import CONTINUES, PresetName, Source, typed
from ptmst.config import (
    Device,
    DistillConfig,
    EvaluateConfig,
    RenderConfig,
    Rendered,
    Selection,
    TeachConfig,
)
from ptmst.errors import InputError
from ptmst.support.progress import say, show


@dataclass(frozen=True)
class Data:
    """Write a rendered data set to disk: images and Karpathy-style JSON; `data check NAME` verifies any data set."""

    settings: Annotated[RenderConfig, arg(name="")] = field(default_factory=RenderConfig)
    preset: PresetName = None
    """Preset that gives the defaults of the other flags, or one with a method: coco-200,lors; see `ptmst presets`."""
    config: Source = None
    """TOML file; its [data] table overrides the preset and gives defaults in its turn."""

    def run(self) -> None:
        from ptmst.data import write_rendered

        wanted = presets.experiment(self.preset, self.config).teach.data.name if self.preset else self.settings.name
        if wanted not in get_args(Rendered):
            raise InputError(
                f"preset {self.preset}: expected one on rendered data, found {wanted}, which is downloaded "
                f"(docs/data.md); `ptmst data check {wanted}` verifies it"
            )
        written = write_rendered(self.settings)
        say(f"{self.settings.folder}: {'written' if written else 'there already, nothing to do'}")


@dataclass(frozen=True)
class DataCheck:
    """Decode every image of a data set, count, and name what is missing, broken or in two splits."""

    name: Positional[str]
    """Data set: scenes, digits, flickr8k, flickr30k, coco, cc3m, or csv:PATH, tsv:PATH, jsonl:PATH, wds:GLOB."""
    root: Path | None = None
    """Folder with the annotations and the images they name; none = data/NAME, for files of your own this folder."""

    def run(self) -> None:
        from rich.table import Table

        from ptmst.data.check import check

        folder = configs.DataConfig(name=self.name, root=self.root).folder
        report = check(self.name, folder)
        head, *rows = report.rows()
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        show(table)
        for problem in report.problems:
            say(problem)
        if report.problems:
            count = len(report.problems)
            raise InputError(
                f"{folder}: expected a sound data set, found {count} problem{'s' if count > 1 else ''}, named above"
            )
        say(f"{folder}: sound")


@dataclass(frozen=True)
class Teach:
    """Train experts on real pairs and keep what their shortcut trajectories need."""

    settings: Annotated[TeachConfig, arg(name="")] = field(default_factory=TeachConfig)
    preset: PresetName = None
    """Preset that gives the defaults of the other flags, or one with a method: coco-200,lors; see `ptmst presets`."""
    config: Source = None
    """TOML file; its [teach] table overrides the preset and gives defaults in its turn."""

    stopped = CONTINUES

    def run(self) -> None:
        from ptmst.teachers import train_teachers

        store = train_teachers(self.settings)
        say(f"{store.path}: {len(store)} experts of {store.layers.num_params:,} parameters, {store.bytes / 1e6:.1f} MB")


@dataclass(frozen=True)
class Distill:
    """Distil a trajectory store into synthetic pairs."""

    store: Path
    """Folder of the trajectory store."""
    settings: Annotated[DistillConfig, arg(name="")] = field(default_factory=DistillConfig)
    preset: PresetName = None
    """Preset that gives the defaults of the other flags, or one with a method: coco-200,lors; see `ptmst presets`."""
    config: Source = None
    """TOML file; its [distill] table overrides the preset and gives defaults in its turn."""
    resume: bool = False
    """Continue a stopped run."""

    stopped = "the same command with --resume continues"

    def run(self) -> None:
        from ptmst.distillation.distill import distill
        from ptmst.trajectories.store import TrajectoryStore

        if self.settings.out is None:
            raise InputError("out: expected a folder for the distilled set, found none; name one with --out")
        store = TrajectoryStore.open(self.store)
        if self.preset is not None:
            frozen = presets.experiment(self.preset, self.config).teach.encoder.freeze_tower
            found = store.settings.get("encoder", {}).get("freeze_tower", frozen)
            if found != frozen:
                kinds = {True: "a frozen", False: "a trained"}
                raise InputError(
                    f"{self.store}: expected experts on {kinds[frozen]} image tower, as preset {self.preset} has it, "
                    f"found {kinds[found]} one; teach with the same preset"
                )
        distilled = distill(self.settings, store, resume=self.resume)
        say(f"{self.settings.out}: {distilled.num_pairs} pairs in {len(distilled)} phase{'s' * (len(distilled) > 1)}")


@dataclass(frozen=True)
class Subset:
    """Make a set of real pairs, chosen at random or with care: what a distilled set has to beat."""

    store: Path
    """Folder of a trajectory store: the pairs are its data's, seen as its experts see them."""
    out: Path
    """Folder to write the set to."""
    selection: Selection = "random"
    """random; herding keeps the mean of the embeddings; kcenter covers them; forgetting takes what experts forget."""
    pairs: int = 100
    """Real pairs, each of another image."""
    lr: float = 0.1
    """Learning rate of the students; the best on the val split is a fair choice."""
    seed: int = 0
    """Seed of every random draw."""
    device: Device = "auto"
    """Where embeddings are computed; auto is CUDA where there is one."""
    root: Path | None = None
    """Data folder, where it has moved since teaching; none = the folder recorded in the store."""

    def run(self) -> None:
        from ptmst.evaluation.baselines import subset
        from ptmst.support import folders
        from ptmst.trajectories.store import TrajectoryStore

        with folders.claimed(self.out, "a distilled set", fresh=True):
            store = TrajectoryStore.open(self.store)
            made = subset(store, self.selection, self.pairs, self.lr, self.seed, self.device, self.root)
            made.save(self.out)
        say(f"{self.out}: {self.pairs} real pairs, {self.selection}")


@dataclass(frozen=True)
class Evaluate:
    """Train fresh students on a distilled set and measure their retrieval recall; or score the experts of a store."""

    set: Path
    """Folder of the distilled set; or of a trajectory store, whose experts are what all real pairs teach."""
    settings: Annotated[EvaluateConfig, arg(name="")] = field(default_factory=EvaluateConfig)
    preset: PresetName = None
    """Preset that gives the defaults of the other flags, or one with a method: coco-200,lors; see `ptmst presets`."""
    config: Source = None
    """TOML file; its [evaluate] table overrides the preset and gives defaults in its turn."""
    out: Path | None = None
    """JSON file for the scores; none = scores.json in the set's folder."""

    def run(self) -> None:
        from ptmst.evaluation.evaluate import evaluate, evaluate_experts
        from ptmst.evaluation.scores import SCORES, write_scores
        from ptmst.report.tables import Row, recall_table
        from ptmst.synthetic.distilled_set import DistilledSet
        from ptmst.trajectories import store

        if self.settings.student is not None and self.out is None:
            raise InputError("out: expected a file for the scores of another tower, found none; name one with --out")
        out = self.out or self.set / SCORES
        if (self.set / store.INDEX).exists():
            scores = evaluate_experts(store.TrajectoryStore.open(self.set), self.settings)
            row = Row("all real pairs", scores, int(scores.provenance["pairs"]))
        else:
            distilled = DistilledSet.load(self.set)
            scores = evaluate(distilled, self.settings)
            row = Row(self.set.name, scores, distilled.num_pairs)
        write_scores(out, scores)
        show(recall_table([row]))
        who, count = "expert" if row.is_full else "student", len(scores.students)
        say(f"{out}: scores of {count} {who}{'s' * (count > 1)}")


@dataclass(frozen=True)
class Report:
    """Write evaluated sets up: as one HTML page, or their recalls as CSV, JSON, Markdown or LaTeX."""

    sets: Positional[tuple[Path, ...]]
    """Folders of sets, or of a store, that `ptmst evaluate` has scored, and files of scores that it has written."""
    out: Path = Path("report.html")
    """File to write: .html for the page; .csv, .json, .md or .tex for the table alone."""
    title: str = "Distilled sets"
    """Heading of the page."""

    def run(self) -> None:
        from ptmst.report.tables import read_rows, write_table

        rows = read_rows(self.sets)
        if self.out.suffix not in ("", ".html", ".htm"):
            write_table(self.out, rows)
            say(f"{self.out}: {len(rows)} rows")
            return
        from ptmst.report.page import write_report

        write_report(self.out, self.title, rows, typed())
        say(f"{self.out}: open it in a browser")
