"""Methods side by side: the same data, experts, budget of outer steps and evaluation; all tuned alike."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast, get_args

from ptmst import schema
from ptmst.config import (
    TUNING_SEEDS,
    AblateConfig,
    DistillConfig,
    EvaluateConfig,
    Experiment,
    LossKind,
    Phase,
    RenderConfig,
    Rendered,
    Selection,
)
from ptmst.data import load_split, write_rendered
from ptmst.distillation.budget import settled
from ptmst.distillation.distill import averaged_and_last, distill_with
from ptmst.engine.outer_step import OuterStep
from ptmst.errors import Diverged, InputError
from ptmst.evaluation.baselines import subset
from ptmst.evaluation.evaluate import evaluate, evaluate_experts
from ptmst.evaluation.metrics import TIES
from ptmst.evaluation.scores import Scores
from ptmst.presets import RENAMED, applied, experiment, methods
from ptmst.report.tables import Row
from ptmst.students.image_towers import prepared
from ptmst.studies import cost as cost_of
from ptmst.studies.cost import Between, total
from ptmst.support import devices, files, folders, parallel, progress
from ptmst.support.memory import peak_memory
from ptmst.support.provenance import machine, versions
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.teachers import train_teachers
from ptmst.trajectories.store import INDEX, TrajectoryStore

RESULTS = "ablation.json"
_KIND, _VERSION = "ablation", 1
FOLDER = folders.Kind("an ablation", (RESULTS,))
FACTORS = (1 / 27, 1 / 9, 1 / 3, 1.0, 3.0, 9.0)
"""Of all leaf rates but η's, where nothing else is tuned; the best on val is used."""
REAL_LOSSES: tuple[LossKind, ...] = ("wbce", "infonce")
REAL_LR = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Losses and student learning rates that are tried for real pairs."""
_STEP = 3.0
"""Between factors that are tried one after another."""
COLUMNS = (
    "Tuned on val: the factor of all leaf rates but η's, or loss and η of real pairs; (edge): the best value "
    "is at the edge of the grid. Diverged: students that count as recall 0. CPU seconds of a distillation or "
    "selection, without compilation, and the most memory of its process."
)
"""What the columns of its own are."""
MORE_COLUMNS = (
    "Tuned one after another, the rest at its best so far: S × and η × are factors of the rate of S and of η's start, "
    "batch is a share of the pairs, steps × a factor of the outer steps. Last leaves: mean recall without the average, "
    "in the same runs."
)
"""What further ones are, where more than rates is tuned."""
_FULL, _FULL_HEADS = "all real pairs", "all real pairs, heads alone"


@dataclass(frozen=True)
class Run:
    """One cell: a method at a size and seed, with what is tuned of it."""

    method: str
    pairs: int
    seed: int
    factor: float = 1.0
    """On all leaf rates but η's."""
    loss: LossKind = "wbce"
    lr: float = 0.0
    """Loss and student learning rate, of real pairs."""
    split: Literal["test", "val"] = "test"
    batch: float = 0.0
    """Share of the pairs in an inner batch; 0 = the experiment's batch size."""
    similarity: float = 1.0
    """On the rate of S, besides `factor`."""
    eta: float = 1.0
    """On the start of η."""
    steps: int = 1
    """On the outer steps."""

    @property
    def tunes(self) -> bool:
        """Whether it is a trial, on a seed that no method is compared on."""
        return self.seed in TUNING_SEEDS


@dataclass(frozen=True)
class _Tried:
    """The values of one axis, the same for every method that has it."""

    field: str
    """Of `Run`."""
    values: tuple[Any, ...]
    extends: bool = False
    """Whether one more is tried beyond an end that is the best so far."""


def tried(axes: Sequence[str]) -> list[_Tried]:
    """What is tried, axis by axis, each from the best of those before. Rates alone are searched on a longer list."""
    few = (1 / _STEP, 1.0, _STEP)
    of = {
        "rates": _Tried("factor", few, extends=True) if len(axes) > 1 else _Tried("factor", FACTORS),
        "batch": _Tried("batch", (1 / 4, 1 / 2)),
        "similarity": _Tried("similarity", few, extends=True),
        "lr": _Tried("eta", few, extends=True),
        "steps": _Tried("steps", (1, 2)),
    }
    return [of[axis] for axis in axes]


def columns(axes: Sequence[str]) -> str:
    """What the columns of a table's own are, where those were tuned."""
    return COLUMNS if list(axes) == ["rates"] else f"{COLUMNS} {MORE_COLUMNS}"


def ablate(config: AblateConfig, command: str) -> list[Row]:
    """Run the grid in `config.out`, or continue it; returns its rows, all real pairs last.

    Raises InputError for an unknown method, for sizes that cannot be had, for data without the splits, and where the
    folder holds another grid.
    """
    with _grid(config, command) as grid:
        if cost := grid.cost():
            progress.note(f"ablate: {cost}")
        grid.teach()
        best = grid.tuned()
        grid.forget_other_rates(best)
        runs = [
            replace(best[method], pairs=pairs, seed=seed, split=config.split)
            for seed, pairs, method in product(grid.seeds, config.pairs, config.methods)
        ]
        full = [Run(name, 0, seed, split=config.split) for name in grid.full for seed in grid.seeds]
        grid.run("ablate", [*full, *runs])
        return grid.rows(runs, full)


def cost(config: AblateConfig, command: str) -> str:
    """What `ablate` has left to do and how long that takes, in a sentence, from a few outer steps of each method.

    Raises InputError as `ablate` does.
    """
    with _grid(config, command) as grid:
        return grid.cost() or "nothing is left to do"


@contextmanager
def _grid(config: AblateConfig, command: str) -> Iterator[_Grid]:
    """The grid in its folder, with its data there."""
    schema.check(config)
    known = [*get_args(Selection), *methods()]
    for name in config.methods:
        if name not in known:
            renamed = f"; it is now called {RENAMED[name]}" if name in RENAMED else schema.nearest(name, known)
            raise InputError(f"methods: expected methods, found {name}{renamed}")
    base = experiment(config.preset, config.config)
    schema.check(base)
    on_data = _on_data(config, base)
    if not _written_here(config):
        _refuse(config, on_data)
    with folders.claimed(config.out, FOLDER):
        grid = _Grid(config, base, command)
        if _written_here(config):
            write_rendered(_rendered(config, base))
            _refuse(config, on_data)
        yield grid


class _Grid:
    """The runs of an ablation, each measured once."""

    def __init__(self, config: AblateConfig, base: Experiment, command: str) -> None:
        self._config, self._base, self._file = config, _on_data(config, base), config.out / RESULTS
        grids = {"factors": FACTORS, "losses": REAL_LOSSES, "rates": REAL_LR}
        how_tuned = {"axes": config.tune, "seeds": config.tuning_seeds}
        how = {name: schema.to_json(methods()[name]) for name in config.methods if name in methods()}
        asked_for = replace(base, teach=replace(base.teach, data=replace(base.teach.data, **_columns(config))))
        asked = {"data": config.data, "settings": schema.to_json(asked_for), "methods": how, "tried": grids}
        asked |= {"tuned": how_tuned, "split": config.split}
        self._head = {"format": "ptmst-ablation", "version": _VERSION, **json.loads(json.dumps(asked))}
        self._measured = {"command": command, "machine": machine(), "versions": versions()}
        own = base.teach.encoder.freeze_tower
        frozen = {own, *(applied(m, base).teach.encoder.freeze_tower for m in config.methods if m in methods())}
        self.frozen = sorted(frozen)
        """Whether the tower is frozen, in the experiment and in any of the methods."""
        self.full = [_FULL_HEADS if one else _FULL for one in self.frozen]
        """What is compared with, by name: all real pairs, of which experts are."""
        self.seeds = range(config.seed, config.seed + config.seeds)
        self._tuning = TUNING_SEEDS[: config.tuning_seeds]
        self._size = sorted(config.pairs)[len(config.pairs) // 2]
        self.found: dict[Run, dict[str, Any]] = {}
        if self._file.exists():
            before = files.read_json(self._file, _KIND, _VERSION)
            # Methods may join and leave, and more rates be tried: what a grid has measured of the others stays true.
            both = before["methods"].keys() & how.keys()
            other = [] if before["data"] == config.data else ["data"]
            other += [] if schema.agrees(before["settings"], asked_for) else ["settings"]
            other += sorted(name for name in both if not schema.agrees(before["methods"][name], methods()[name]))
            other += [] if all(row["provenance"].get("ties") == TIES for row in before["rows"]) else ["ties"]
            if other:
                raise InputError(
                    f"{config.out}: expected an ablation of these settings, found one that differs in "
                    f"{', '.join(other)}; choose another --out"
                )
            self._head["methods"] = before["methods"] | self._head["methods"]
            self.found = {schema.from_json(Run, row["run"]): row for row in before["rows"]}

    def teach(self) -> None:
        """The experts of every seed."""
        base, config = self._base, self._config
        wanted = [(config, base, seed, frozen) for seed in [*self.seeds, *self._tuning] for frozen in self.frozen]
        with progress.bar("experts", len(wanted)) as bar:
            for path in parallel.completed(_teach, wanted, config.workers):
                bar.advance(path.name)

    def cost(self) -> str:
        """What is left to do, and how long it takes; empty where nothing is."""
        config = self._config
        stores = [_store(config, seed, frozen) for seed in [*self.seeds, *self._tuning] for frozen in self.frozen]
        lacking = sum(not (store / INDEX).exists() for store in stores)
        trials, tests = {}, {}
        for method in config.methods:
            done = [run.tunes for run in self.found if run.method == method]
            trials[method] = (self._trials(method) * config.tuning_seeds).without(done.count(True))
            tests[method] = (Between(1, 1) * len(config.pairs) * len(self.seeds)).without(done.count(False))
        tune, test = total(trials.values()), total(tests.values())
        if not lacking and not tune.least and not test.least:
            return ""
        (prices,) = parallel.completed(_prices, [(config, self._base, self._size, self.frozen)], 1)
        seconds = prices.store * lacking + total(
            prices.trial[m] * trials[m] + prices.test[m] * tests[m] for m in trials
        )
        hours = seconds * (1 / 3600)
        return (
            f"{lacking} stores of experts, {tune:.0f} runs to tune, {test:.0f} on {config.split}: {hours:.2g} CPU "
            f"hours, {hours * (1 / config.workers):.2g} hours with {config.workers} at a time (from a few eager outer "
            "steps of each method and a few epochs of its students; most where tuning chooses the most steps)"
        )

    def _trials(self, method: str) -> Between:
        """How many runs it takes to tune a method on one seed."""
        if method not in methods():
            return Between(1, 1) * (len(REAL_LOSSES) * len(REAL_LR))
        axes = [axis for axis in tried(self._config.tune) if self._has(method, axis)]
        least = 1 + sum(len(axis.values) - 1 for axis in axes)
        return Between(least, least + sum(axis.extends for axis in axes))

    def tuned(self) -> dict[str, Run]:
        """Every method's run with what is best on val, at the middle size and seeds of their own."""
        axes = tried(self._config.tune)
        # From its first value on, an axis that is yet to come is at one of those that will be compared.
        first = {axis.field: axis.values[0] for axis in axes if axis.field == "batch"}
        best = {method: Run(method, self._size, self._tuning[0], split="val") for method in self._config.methods}
        best |= {method: replace(run, **first) for method, run in best.items() if method in methods()}
        real = {
            method: [replace(run, loss=loss, lr=lr) for loss, lr in product(REAL_LOSSES, REAL_LR)]
            for method, run in best.items()
            if method not in methods()
        }
        for axis in axes:
            trials = {
                method: [replace(run, **{axis.field: value}) for value in axis.values]
                for method, run in best.items()
                if method in methods() and self._has(method, axis)
            }
            best |= self._best(trials | real)
            real = {}
            if axis.extends:
                self._beyond(axis, trials, best)
        return best

    def _beyond(self, axis: _Tried, trials: Mapping[str, Sequence[Run]], best: dict[str, Run]) -> None:
        """Where an end is the best, one value more is tried, once."""
        ends = {axis.values[0]: 1 / _STEP, axis.values[-1]: _STEP}
        more = {}
        for method in trials:
            value = getattr(best[method], axis.field)
            if value in ends:
                more[method] = [best[method], replace(best[method], **{axis.field: value * ends[value]})]
        best |= self._best(more)

    def _has(self, method: str, axis: _Tried) -> bool:
        """Whether there is something to tune: a fixed S has no rate."""
        return axis.field != "similarity" or applied(method, self._base).distill.rates.similarity > 0

    def _best(self, trials: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
        """Of each method's trials, the one of the best recall, over all seeds together."""

        def each_seed(run: Run) -> list[Run]:
            return [replace(run, seed=seed) for seed in self._tuning]

        def recall(run: Run) -> float:
            return mean(self._mean(one) for one in each_seed(run))

        if not trials:
            return {}
        self.run("tune", [one for runs in trials.values() for run in runs for one in each_seed(run)])
        return {method: max(runs, key=recall) for method, runs in trials.items()}

    def forget_other_rates(self, best: dict[str, Run]) -> None:
        """Drop what was measured as it is no longer tuned: a new middle size is tuned again."""
        split = self._config.split
        tested = [run for run in self.found if not run.tunes and run.split == split and run.method in best]
        others = [r for r in tested if r != replace(best[r.method], pairs=r.pairs, seed=r.seed, split=split)]
        for run in others:
            del self.found[run]
        if others:
            self._save()

    def run(self, label: str, runs: Sequence[Run]) -> None:
        """Measure what has not been measured yet."""
        missing = [run for run in runs if run not in self.found]
        tasks = [(self._config, self._base, run) for run in missing]
        with progress.bar(label, len(runs), len(runs) - len(missing)) as bar:
            for run, row in parallel.completed(_measure, tasks, self._config.workers):
                self.found[run] = row
                self._save()
                bar.advance(f"{run.method}, {run.pairs} pairs, seed {run.seed}")

    def _save(self) -> None:
        files.write_json(self._file, {**self._head, **self._measured, "rows": list(self.found.values())})

    def _mean(self, run: Run) -> float:
        """Mean recall; that of a student that diverged is 0."""
        return mean(recalls(self.found[run]))

    def rows(self, runs: Sequence[Run], full: Sequence[Run]) -> list[Row]:
        """A row a method and size, over the students of all seeds."""
        table, measured = [], list(self.found[full[0]]["students"][0])
        for num_pairs, method in product(self._config.pairs, self._config.methods):
            measured_rows = [self.found[run] for run in runs if (run.method, run.pairs) == (method, num_pairs)]
            students = [student for row in measured_rows for student in row["students"]]
            diverged = sum(row["lost"] for row in measured_rows)
            students += [dict.fromkeys(measured, 0.0)] * diverged
            (run, *_) = (run for run in runs if (run.method, run.pairs) == (method, num_pairs))
            trials = [other for other in self.found if other.method == method and other.tunes]
            more = {"tuned": tuned(run, trials), "trials": len({replace(t, seed=0) for t in trials})}
            more |= {"diverged": diverged, **_last_leaves(measured_rows), **_cost(measured_rows)}
            table.append(Row(method, Scores(tuple(students), self._provenance(measured_rows)), num_pairs, more=more))
        for name in dict.fromkeys(run.method for run in full):
            measured_rows = [self.found[run] for run in full if run.method == name]
            scored = tuple(student for row in measured_rows for student in row["students"])
            provenance = self._provenance(measured_rows)
            table.append(Row(name, Scores(scored, provenance), provenance["pairs"]))
        return table

    def _provenance(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Of a method's runs together."""
        return {**rows[0]["provenance"], "seeds": list(self.seeds)}


def tuned(run: Run, trials: Sequence[Run]) -> str:
    """What was tuned of a method, and whether the best is at an end of what its trials, on val, had of it."""

    def values(field: str) -> set[Any]:
        return {getattr(trial, field) for trial in trials}

    def edge(field: str) -> str:
        found = values(field)
        return " (edge)" if len(found) > 1 and getattr(run, field) in (min(found), max(found)) else ""

    if run.method not in methods():
        return f"{run.loss}, η {run.lr:g}{edge('lr')}"
    factors = {"factor": "rates", "similarity": "S", "eta": "η"}
    shown = [
        f"{name} × {getattr(run, field):.2g}{edge(field)}"
        for field, name in factors.items()
        if field == "factor" or len(values(field)) > 1
    ]
    shown += [f"batch {100 * run.batch:.0f} %"] if run.batch else []
    return ", ".join(shown + ([f"steps × {run.steps}"] if len(values("steps")) > 1 else []))


def _last_leaves(rows: Sequence[dict[str, Any]]) -> dict[str, str | float]:
    """Mean recall on the leaves as they were at the end, where the set is their average."""
    scored = [row["last leaves"] for row in rows if "last leaves" in row]
    return {"last leaves": round(mean(v for one in scored for v in recalls(one)), 1)} if scored else {}


def recalls(scored: Mapping[str, Any]) -> list[float]:
    """Mean recall of every student; that of one that diverged is 0."""
    return [*(student["mean"] for student in scored["students"]), *[0.0] * scored["lost"]]


def _cost(rows: Sequence[dict[str, Any]]) -> dict[str, str | float]:
    """Means over runs: CPU seconds of a distillation or selection, and the most memory of its process."""
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    peaks = [row["peak bytes"] for row in rows if row.get("peak bytes")]
    cost: dict[str, str | float] = {"CPU s": float(f"{mean(seconds):.3g}") if seconds else ""}
    return cost | {"peak GB": round(mean(peaks) / 1e9, 2) if peaks else ""}


def _written_here(config: AblateConfig) -> bool:
    """Whether the data are made for this grid, in its folder."""
    return config.data in get_args(Rendered) and config.root is None


def _rendered(config: AblateConfig, base: Experiment) -> RenderConfig:
    """The experiment's settings of what is drawn by us; other sets have none."""
    own = RenderConfig(name=cast(Rendered, config.data), root=config.out / "data")
    return replace(base.data, name=own.name, root=own.root) if own.is_drawn_by_us else own


def _on_data(config: AblateConfig, base: Experiment) -> Experiment:
    """The experiment on the data that are asked for."""
    data = replace(base.teach.data, name=config.data, root=config.root, **_columns(config))
    if _written_here(config):
        made = _rendered(config, base)
        size = made.image_size if made.is_drawn_by_us else None
        data = replace(data, root=made.root, image_size=data.image_size or size)
    return replace(base, teach=replace(base.teach, data=prepared(data, base.teach.encoder)))


def _columns(config: AblateConfig) -> dict[str, Any]:
    named = {"image_column": config.image_column, "caption_column": config.caption_column}
    return {setting: column for setting, column in named.items() if column is not None}


def _refuse(config: AblateConfig, base: Experiment) -> None:
    """Raises InputError for data without the splits, and for sizes that they do not have."""
    data = base.teach.data
    most = len(load_split(data, "train").image_names)
    advice = {"val": "divide some off: methods are tuned on it", "test": "name one, or compare with --split val"}
    for split in ("val", config.split):
        try:
            load_split(data, split)
        except InputError as error:
            raise InputError(f"{data.name}: expected a {split} split, found none ({error}); {advice[split]}") from error
    least = 2 * len(base.distill.phases)
    for num_pairs in config.pairs:
        if not least <= num_pairs <= most:
            raise InputError(f"pairs: expected {least} to {most}, found {num_pairs}; choose another number")


def _store(config: AblateConfig, seed: int, frozen: bool) -> Path:
    return config.out / f"store-{seed}{'-frozen' if frozen else ''}"


def _teach(asked: tuple[AblateConfig, Experiment, int, bool]) -> Path:
    config, base, seed, frozen = asked
    encoder = replace(base.teach.encoder, freeze_tower=frozen)
    out = _store(config, seed, frozen)
    train_teachers(replace(base.teach, out=out, encoder=encoder, seed=seed, device="cpu"))
    return out


def settings(base: Experiment, run: Run) -> Experiment:
    """A method's settings at a size: phases cut to it, no batch larger than a phase, as tuned."""
    count = len(base.distill.phases)
    shares = _shares(run.pairs, count)
    phases = tuple(
        Phase(share, phase.endpoint, phase.start) for share, phase in zip(shares, base.distill.phases, strict=True)
    )
    # One batch for all methods: the smallest phase holds it.
    cut = replace(base.distill, phases=phases, batch_size=min(base.distill.batch_size, *shares))
    experiment = applied(run.method, replace(base, distill=cut))
    distill = experiment.distill
    rates = distill.rates.scaled(run.factor)
    changed = replace(
        distill,
        rates=replace(rates, similarity=rates.similarity * run.similarity),
        student_lr=distill.student_lr * run.eta,
        steps=distill.steps * run.steps,
    )
    if run.batch:
        smallest = min(phase.pairs for phase in distill.phases)
        changed = replace(changed, batch_size=min(max(1, round(run.batch * run.pairs)), smallest))
    return replace(experiment, distill=changed)


def evaluation(base: Experiment, made: Sequence[int]) -> EvaluateConfig:
    """The experiment's evaluation settings, rescaled to equal student steps for phases of the sizes `made`.

    Epochs are by phase: as they are, two phases would train students for twice as long as one of all their pairs.
    """
    config, count = base.evaluate, len(base.distill.phases)

    def batches(sizes: Sequence[int]) -> int:
        return sum(-(-size // config.batch_size) for size in sizes)

    longer = batches(_shares(sum(made), count)) / batches(made)
    epochs, high = (max(1, round(longer * (n + 1))) for n in (config.epochs, config.lr_drop))
    return replace(config, epochs=epochs - 1, lr_drop=high - 1)


def _shares(num_pairs: int, count: int) -> list[int]:
    return [num_pairs // count + (number < num_pairs % count) for number in range(count)]


def _measure(asked: tuple[AblateConfig, Experiment, Run]) -> tuple[Run, dict[str, Any]]:
    config, base, run = asked
    row: dict[str, Any] = {"run": schema.to_json(run), "lost": 0, "students": []}
    if run.method in (_FULL, _FULL_HEADS):
        every = replace(base.evaluate, students=base.teach.experts, split=run.split, device="cpu")
        scores = evaluate_experts(TrajectoryStore.open(_store(config, run.seed, run.method == _FULL_HEADS)), every)
        return run, row | {"students": [dict(s) for s in scores.students], "provenance": dict(scores.provenance)}
    last = None
    if run.method in methods():
        experiment = settings(base, run)
        store = TrajectoryStore.open(_store(config, run.seed, experiment.teach.encoder.freeze_tower))
        sizes = [phase.pairs for phase in experiment.distill.phases]
        loss, temperature = experiment.distill.loss, experiment.distill.temperature
        made, last, cost = _distilled(replace(experiment.distill, seed=run.seed, device="cpu"), store)
        cost["settings"] = schema.decisive(experiment.distill)
    else:
        selection = cast(Selection, run.method)
        store = TrajectoryStore.open(_store(config, run.seed, base.teach.encoder.freeze_tower))
        sizes = [run.pairs]
        loss, temperature = run.loss, base.teach.temperature
        began = time.process_time()
        with peak_memory() as peak:
            made = subset(store, selection, run.pairs, run.lr, run.seed, "cpu")
        cost = {"seconds": time.process_time() - began, "peak bytes": sum(peak)}
        if "never_learned" in made.provenance:
            cost["never learned"] = made.provenance["never_learned"]
    evaluate_config = evaluation(base, sizes)
    evaluate_config = replace(evaluate_config, loss=loss, temperature=evaluate_config.temperature or temperature)
    evaluate_config = replace(evaluate_config, seed=run.seed, split=run.split, device="cpu")
    provenance = {
        "split": run.split,
        "ties": TIES,
        "config": schema.decisive(evaluate_config),
        **store.recipe.provenance(store.recipe.pairs(run.split)),
    }
    row |= {"provenance": provenance, **cost}
    began = time.process_time()
    row |= {"lost": evaluate_config.students} if made is None else _one_by_one(made, evaluate_config)
    row["evaluation seconds"] = time.process_time() - began
    if last is not None and not run.tunes:
        row["last leaves"] = _one_by_one(last, evaluate_config)
    return run, row


def _distilled(
    config: DistillConfig, store: TrajectoryStore
) -> tuple[DistilledSet | None, DistilledSet | None, dict[str, Any]]:
    """The set, none where its distillation diverged; that of the last leaves, where it is an average of them; and what
    it cost, compilation apart."""
    config = settled(config, store, store.student((config.seed, "student")).to(devices.pick(config.device)))
    step = shared_outer_step(config, store)
    if step.compiles:
        distill_with(step, replace(config, steps=1), store)
    began = time.process_time()
    try:
        with peak_memory() as peak:
            made, last = averaged_and_last(step, config, store)
    except Diverged as error:
        return None, None, {"why": str(error)}
    losses = [round(float(phase.history["loss"][-20:].sum(1).mean()), 4) for phase in made.phases]
    cost = {"seconds": time.process_time() - began, "peak bytes": sum(peak), "loss": losses}
    return made, last if config.ema else None, cost


@dataclass(frozen=True)
class _Prices:
    """CPU seconds of a store of experts, and of a method's trials and tests."""

    store: Between
    trial: dict[str, Between]
    test: dict[str, Between]


def _prices(asked: tuple[AblateConfig, Experiment, int, Sequence[bool]]) -> _Prices:
    config, base, size, kinds = asked
    fields = {axis.field: axis.values for axis in tried(config.tune)}
    stores, students, teach = {}, {}, Between(0, 0)
    trial, test = {}, {}
    with TemporaryDirectory() as folder:
        for frozen in kinds:
            teaching = replace(base.teach, encoder=replace(base.teach.encoder, freeze_tower=frozen), device="cpu")
            stores[frozen] = cost_of.store_of_noise(teaching, Path(folder) / str(frozen))
            teach += Between.exactly(cost_of.teaching(teaching)) * (1 / len(kinds))
            students[frozen] = cost_of.students(size, replace(evaluation(base, [size]), split="val"), stores[frozen])
        for method in config.methods:
            if method not in methods():
                trial[method] = test[method] = Between.exactly(students[base.teach.encoder.freeze_tower])
                continue
            run = Run(method, size, TUNING_SEEDS[0], split="val")
            ways = [settings(base, replace(run, batch=share)) for share in fields.get("batch", (run.batch,))]
            frozen = ways[0].teach.encoder.freeze_tower
            seconds = [cost_of.distilling(way.distill, stores[frozen]) for way in ways]
            made = Between(min(seconds), max(seconds))
            trial[method] = made + Between.exactly(students[frozen])
            leaves = 2 if ways[0].distill.ema else 1
            test[method] = (
                made * Between(1, max(fields.get("steps", (1,)))) + Between.exactly(students[frozen]) * leaves
            )
    return _Prices(teach, trial, test)


_STEPS: dict[Any, OuterStep] = {}


def shared_outer_step(config: DistillConfig, store: TrajectoryStore) -> OuterStep:
    """Outer steps shared within the process so that each graph compiles once."""
    device = devices.pick(config.device)
    # A frozen tower is a store's own.
    tower_or_layers = store.fingerprint if store.recipe.encoder.freeze_tower else store.layers
    computed = (config.batch_size, config.loss, config.temperature, config.adjoint, config.adjoint_clip)
    key = (tower_or_layers, *computed, config.precision, config.keep, config.chunk, config.compile, device)
    if key not in _STEPS:
        _STEPS[key] = OuterStep.of(store.student((config.seed, "student")).to(device), config)
    return _STEPS[key]


def _one_by_one(made: DistilledSet, config: EvaluateConfig) -> dict[str, Any]:
    """Scores of every student; those that diverge are counted, and cost the others nothing."""
    students: list[dict[str, float]] = []
    seeds = [config.seed * config.students + number for number in range(config.students)]
    for seed in seeds:
        try:
            scores = evaluate(made, replace(config, students=1, seed=seed))
        except Diverged:
            continue
        students += [dict(student) for student in scores.students]
    return {"students": students, "lost": config.students - len(students), "student seeds": seeds}
