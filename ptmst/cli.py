"""The command line: one sub-command per arrow of the flow. Only what a sub-command needs is imported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ptmst import allocator, presets
from ptmst import config as configs
from ptmst.config import (
    AblateConfig,
    Chunk,
    Device,
    DistillConfig,
    Endpoints,
    EvaluateConfig,
    ImportConfig,
    Phase,
    RenderConfig,
    Rendered,
    Selection,
    TeachConfig,
)
from ptmst.errors import InputError
from ptmst.progress import say, show

Source = Annotated[Path | None, arg(metavar="FILE")]
PresetName = Annotated[str | None, arg(metavar="NAME[,NAME]")]
_CONTINUES, _BEGINS_ANEW = "the same command continues", "the same command begins anew"
"""After Ctrl-C; a command says which, as `stopped`."""


@dataclass(frozen=True)
class Demo:
    """Run everything on an embedded default: data, teachers, distillation, students, one HTML page."""

    data: Rendered = "scenes"
    """Embedded data set."""
    out: Path | None = None
    """Folder for everything that is written, where a stopped demo continues; none = runs/demo[-digits][-quick]."""
    quick: bool = False
    """At most 3 minutes on two cores, instead of 12: fewer experts and steps, and worse recall."""

    stopped = _CONTINUES

    def run(self) -> None:
        from ptmst.demo import run_demo

        folder = Path("runs") / f"demo{'-digits' * (self.data == 'digits')}{'-quick' * self.quick}"
        run_demo(self.data, self.out or folder, self.quick, _typed())


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

    stopped = _CONTINUES

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
        from ptmst.distillation import distill
        from ptmst.store import TrajectoryStore

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
        from ptmst import files
        from ptmst.baselines import subset
        from ptmst.store import TrajectoryStore

        with files.claimed(self.out, "a distilled set", fresh=True):
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
        from ptmst import store
        from ptmst.distilled import DistilledSet
        from ptmst.evaluation import SCORES, evaluate, evaluate_experts, write_scores
        from ptmst.results import Row, recall_table

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
        from ptmst.results import read_rows, write_table

        rows = read_rows(self.sets)
        if self.out.suffix not in ("", ".html", ".htm"):
            write_table(self.out, rows)
            say(f"{self.out}: {len(rows)} rows")
            return
        from ptmst.report import write_report

        write_report(self.out, self.title, rows, _typed())
        say(f"{self.out}: open it in a browser")


@dataclass(frozen=True)
class Import:
    """Read published replay buffers into a trajectory store, or published distilled sets into a set."""

    settings: Annotated[ImportConfig, arg(name="")] = field(default_factory=ImportConfig)

    def run(self) -> None:
        if self.settings.distilled:
            from ptmst.exchange import import_set

            found = import_set(self.settings)
            say(f"{self.settings.out}: {found.num_pairs} pairs in {len(found)} phases")
            return
        from ptmst.legacy import import_buffers

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
        from ptmst.distilled import DistilledSet
        from ptmst.exchange import export

        written = export(DistilledSet.load(self.set), self.out, self.format)
        say(f"{self.out}: {len(written)} files")


@dataclass(frozen=True)
class Ablate:
    """Run a grid of methods, sizes and seeds on a rendered data set, each method's rates tuned alike, and table it."""

    settings: Annotated[AblateConfig, arg(name="")] = field(default_factory=AblateConfig)

    stopped = _CONTINUES

    def run(self) -> None:
        from ptmst.ablation import COLUMNS, ablate
        from ptmst.results import recall_table, write_table

        rows = ablate(self.settings, _typed())
        show(recall_table(rows, COLUMNS))
        for suffix in (".csv", ".json", ".md", ".tex"):
            write_table(self.settings.out / f"recalls{suffix}", rows, COLUMNS)
        say(f"{self.settings.out}: recalls.csv, .json, .md and .tex, and every run in ablation.json")


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
        from ptmst.inspection import inspect

        for what, finding in inspect(self.path, self.verify):
            print(f"{what:20} {finding}")


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, which kernels run, and what is missing."""

    def run(self) -> None:
        from ptmst.doctor import report

        for what, finding in report():
            print(f"{what:28} {finding}")


def _typed() -> str:
    """The command line, as it is shown beside what it made."""
    return shlex.join(["ptmst", *sys.argv[1:]])


COMMANDS: dict[str, type] = {
    "demo": Demo,
    "data": Data,
    "teach": Teach,
    "distill": Distill,
    "subset": Subset,
    "evaluate": Evaluate,
    "report": Report,
    "import": Import,
    "export": Export,
    "ablate": Ablate,
    "presets": Presets,
    "inspect": Inspect,
    "doctor": Doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for a mistake of the user, 130 when interrupted."""
    if argv is None:  # this process is ours
        allocator.keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command = parse(arguments)
        command.run()
    except (InputError, OSError) as error:
        print(f"ptmst: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; torch itself may not be loaded
            raise
        print(f"ptmst: {_short_of_memory(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = getattr(COMMANDS.get(arguments[0]), "stopped", _BEGINS_ANEW)
        print(f"ptmst: stopped; {again}", file=sys.stderr)
        return 130
    return 0


def _short_of_memory(message: str) -> str:
    return (
        f"the device is out of memory ({message.splitlines()[0]}); distill: set --chunk, or a lower --batch-size; "
        "evaluate: lower --together; checkpoints stay"
    )


def parse(arguments: list[str]) -> Any:
    """The command of a command line. Exits with 0 for --help and with 2 for flags that cannot be used."""
    name = arguments[0] if arguments else "--help"
    if name not in COMMANDS:
        if name in ("-h", "--help", "--version"):
            print(f"ptmst {metadata.version('ptmst')}" if name == "--version" else overview())
            raise SystemExit(0)
        raise InputError(f"{name}: no such command{configs.nearest(name, list(COMMANDS))}")
    if arguments[:2] == ["data", "check"]:
        return tyro.cli(DataCheck, prog="ptmst data check", args=arguments[2:])
    with _constructors():
        defaults = _defaults(name, arguments[1:])
        return tyro.cli(COMMANDS[name], prog=f"ptmst {name}", args=arguments[1:], default=defaults)


def _defaults(name: str, arguments: list[str]) -> Any:
    """The command's defaults, from its table of the preset and the TOML file that are named."""
    values: dict[str, Any] = {f.name: tyro.MISSING for f in fields(COMMANDS[name]) if _required(f)}
    preset, file = _value(arguments, "--preset"), _value(arguments, "--config")
    if (preset or file) and "preset" in (f.name for f in fields(COMMANDS[name])):
        values["settings"] = getattr(presets.experiment(preset, Path(file) if file else None), name)
    return COMMANDS[name](**values)


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _value(arguments: list[str], flag: str) -> str | None:
    for word, value in pairwise([*arguments, ""]):
        if word == flag and value:
            return value
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _constructors() -> ConstructorRegistry:
    """How phases, end points and chunks are written on a command line."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def phase(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Phase] | None:
        if info.type is not Phase:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PAIRS:ENDPOINT:FIRST-LAST",
            instance_from_str=lambda words: configs.parse_phase(words[0]),
            is_instance=lambda value: isinstance(value, Phase),
            str_from_instance=lambda p: [f"{p.pairs}:{p.endpoint}:{p.start[0]}-{p.start[1]}"],
        )

    @registry.primitive_rule
    def endpoints(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Endpoints] | None:
        if info.type != Endpoints:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="K,K,…|all",
            instance_from_str=lambda words: configs.parse_endpoints(words[0]),
            is_instance=lambda value: value == "all" or isinstance(value, tuple),
            str_from_instance=lambda value: [value if value == "all" else ",".join(map(str, value))],
        )

    @registry.primitive_rule
    def chunk(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Chunk] | None:
        if info.type != Chunk:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT|none|auto",
            instance_from_str=lambda words: configs.parse_chunk(words[0]),
            is_instance=lambda value: value is None or value == "auto" or isinstance(value, int),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    @registry.primitive_rule
    def words(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Any, ...]] | None:
        kinds: dict[Any, Any] = {tuple[str, ...]: str, tuple[int, ...]: int}
        if info.type not in kinds:
            return None
        kind = kinds[info.type]
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{kind.__name__.upper()},…",
            instance_from_str=lambda words: tuple(kind(word) for word in words[0].split(",")),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(one, kind) for one in value),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    return registry


def overview() -> str:
    lines = [f"  {name:10} {(kind.__doc__ or '').strip()}" for name, kind in COMMANDS.items()]
    head = ["usage: ptmst COMMAND [FLAGS]", "", "Distil image-text pairs into a few hundred that train as well.", ""]
    return "\n".join([*head, *lines, "", "`ptmst COMMAND --help` explains every flag."])
