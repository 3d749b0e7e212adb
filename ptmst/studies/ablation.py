"""Methods side by side: the same data, experts, budget of outer steps and evaluation; rates tuned alike."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Literal, cast, get_args

from ptmst import schema
from ptmst.config import (
    TUNING_SEEDS,
    AblateConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    Experiment,
    LossKind,
    Phase,
    Selection,
)
from ptmst.data import write_rendered
from ptmst.distillation.budget import settled
from ptmst.distillation.distill import distill_with
from ptmst.engine.outer_step import OuterStep
from ptmst.errors import Diverged, InputError
from ptmst.evaluation.baselines import subset
from ptmst.evaluation.evaluate import evaluate, evaluate_experts
from ptmst.evaluation.metrics import TIES
from ptmst.evaluation.scores import Scores
from ptmst.presets import RENAMED, applied, experiment, methods
from ptmst.report.tables import Row
from ptmst.support import devices, files, folders, parallel, progress
from ptmst.support.memory import peak_memory
from ptmst.support.provenance import machine, versions
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.teachers import train_teachers
from ptmst.trajectories.store import TrajectoryStore

RESULTS = "ablation.json"
_KIND, _VERSION = "ablation", 1
FOLDER = folders.Kind("an ablation", (RESULTS,))
FACTORS = (1 / 27, 1 / 9, 1 / 3, 1.0, 3.0, 9.0)
"""Of all leaf rates but η's; the best on val is used."""
REAL_LOSSES: tuple[LossKind, ...] = ("wbce", "infonce")
REAL_LR = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Losses and student learning rates that are tried for real pairs."""
COLUMNS = (
    "Tuned on val: the factor of all leaf rates but η's, or loss and η of real pairs; (edge): the best value "
    "is at the edge of the grid. Diverged: students that count as recall 0. CPU seconds of a distillation or "
    "selection, without compilation, and the most memory of its process."
)
"""What the columns of its own are."""
_FULL, _FULL_HEADS = "all real pairs", "all real pairs, heads alone"


@dataclass(frozen=True)
class Run:
    """One cell: a method at a size and seed; `factor` scales its rates."""

    method: str
    pairs: int
    seed: int
    factor: float = 1.0
    loss: LossKind = "wbce"
    lr: float = 0.0
    """Loss and student learning rate, of real pairs."""
    split: Literal["test", "val"] = "test"


def ablate(config: AblateConfig, command: str) -> list[Row]:
    """Run the grid in `config.out`, or continue it; returns its rows, all real pairs last.

    Raises InputError for an unknown method, for sizes that cannot be had, and where the folder holds another grid.
    """
    schema.check(config)
    known = [*get_args(Selection), *methods()]
    for name in config.methods:
        if name not in known:
            renamed = f"; it is now called {RENAMED[name]}" if name in RENAMED else schema.nearest(name, known)
            raise InputError(f"methods: expected methods, found {name}{renamed}")
    base = experiment(config.preset)
    _refuse_sizes(config, base)
    with folders.claimed(config.out, FOLDER):
        grid = _Grid(config, base, command)
        grid.teach()
        best = grid.tuned()
        grid.forget_other_rates(best)
        runs = [
            replace(best[method], pairs=pairs, seed=seed, split="test")
            for seed, pairs, method in product(grid.seeds, config.pairs, config.methods)
        ]
        names = [_FULL, *([_FULL_HEADS] if True in grid.frozen else [])]
        full = [Run(name, 0, seed) for name in names for seed in grid.seeds]
        grid.run("ablate", [*full, *runs])
        return grid.rows(runs, full)


class _Grid:
    """The runs of an ablation, each measured once."""

    def __init__(self, config: AblateConfig, base: Experiment, command: str) -> None:
        self._config, self._base, self._file = config, base, config.out / RESULTS
        grids = {"factors": FACTORS, "losses": REAL_LOSSES, "rates": REAL_LR}
        how = {name: schema.to_json(methods()[name]) for name in config.methods if name in methods()}
        asked = {"data": config.data, "settings": schema.to_json(base), "methods": how, "tried": grids}
        self._head = {"format": "ptmst-ablation", "version": _VERSION, **json.loads(json.dumps(asked))}
        self._measured = {"command": command, "machine": machine(), "versions": versions()}
        self.frozen = {False} | {applied(m, base).teach.encoder.freeze_tower for m in config.methods if m in methods()}
        """Whether the tower is frozen, in any of the methods."""
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.found: dict[Run, dict[str, Any]] = {}
        if self._file.exists():
            before = files.read_json(self._file, _KIND, _VERSION)
            # Methods may join and leave, and more rates be tried: what a grid has measured of the others stays true.
            both = before["methods"].keys() & how.keys()
            other = [] if before["data"] == config.data else ["data"]
            other += [] if schema.agrees(before["settings"], base) else ["settings"]
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
        """The data, and the experts of every seed."""
        base, config = self._base, self._config
        write_rendered(replace(base.data, name=config.data, root=_data(config).root))
        seeds = [*self.seeds, *TUNING_SEEDS]
        wanted = [(config, base, seed, frozen) for seed in seeds for frozen in sorted(self.frozen)]
        with progress.bar("experts", len(wanted)) as bar:
            for path in parallel.completed(_teach, wanted, config.workers):
                bar.advance(path.name)

    def tuned(self) -> dict[str, Run]:
        """Every method's run with the rates that are best on val, at the middle size and seeds of their own."""
        size = sorted(self._config.pairs)[len(self._config.pairs) // 2]
        tried: dict[str, list[Run]] = {}
        for method in self._config.methods:
            one = Run(method, size, TUNING_SEEDS[0], split="val")
            if method in methods():
                tried[method] = [replace(one, factor=factor) for factor in FACTORS]
            else:
                tried[method] = [replace(one, loss=loss, lr=lr) for loss, lr in product(REAL_LOSSES, REAL_LR)]

        def each_seed(run: Run) -> list[Run]:
            return [replace(run, seed=seed) for seed in TUNING_SEEDS]

        def recall(run: Run) -> float:
            return mean(self._mean(one) for one in each_seed(run))

        self.run("tune", [one for runs in tried.values() for run in runs for one in each_seed(run)])
        return {method: max(runs, key=recall) for method, runs in tried.items()}

    def forget_other_rates(self, best: dict[str, Run]) -> None:
        """Drop what was measured on test at rates that are no longer the best: a new middle size is tuned again."""
        tested = [run for run in self.found if run.split == "test" and run.method in best]
        others = [r for r in tested if r != replace(best[r.method], pairs=r.pairs, seed=r.seed, split="test")]
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
        row = self.found[run]
        values: list[float] = [student["mean"] for student in row["students"]]
        return mean(values + [0.0] * row["lost"])

    def rows(self, runs: Sequence[Run], full: Sequence[Run]) -> list[Row]:
        """A row a method and size, over the students of all seeds."""
        table, measured = [], list(self.found[full[0]]["students"][0])
        for num_pairs, method in product(self._config.pairs, self._config.methods):
            measured_rows = [self.found[run] for run in runs if (run.method, run.pairs) == (method, num_pairs)]
            students = [student for row in measured_rows for student in row["students"]]
            diverged = sum(row["lost"] for row in measured_rows)
            students += [dict.fromkeys(measured, 0.0)] * diverged
            (run, *_) = (run for run in runs if (run.method, run.pairs) == (method, num_pairs))
            more = {"tuned": tuned(run, FACTORS, REAL_LR), "diverged": diverged, **_cost(measured_rows)}
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


def tuned(run: Run, factors: Sequence[float], rates: Sequence[float]) -> str:
    """What was tuned of a method, and whether the best is at an end of the factors or rates that were tried."""
    if run.method in methods():
        return f"rates × {run.factor:.2g}{' (edge)' if run.factor in (factors[0], factors[-1]) else ''}"
    return f"{run.loss}, η {run.lr:g}{' (edge)' if run.lr in (rates[0], rates[-1]) else ''}"


def _cost(rows: Sequence[dict[str, Any]]) -> dict[str, str | float]:
    """Means over runs: CPU seconds of a distillation or selection, and the most memory of its process."""
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    peaks = [row["peak bytes"] for row in rows if row.get("peak bytes")]
    cost: dict[str, str | float] = {"CPU s": float(f"{mean(seconds):.3g}") if seconds else ""}
    return cost | {"peak GB": round(mean(peaks) / 1e9, 2) if peaks else ""}


def _refuse_sizes(config: AblateConfig, base: Experiment) -> None:
    for num_pairs in config.pairs:
        if not 2 * len(base.distill.phases) <= num_pairs <= base.data.train:
            least, most = 2 * len(base.distill.phases), base.data.train
            raise InputError(f"pairs: expected {least} to {most}, found {num_pairs}; choose another number")


def _data(config: AblateConfig) -> DataConfig:
    return DataConfig(name=config.data, root=config.out / "data")


def _store(config: AblateConfig, seed: int, frozen: bool) -> Path:
    return config.out / f"store-{seed}{'-frozen' if frozen else ''}"


def _teach(asked: tuple[AblateConfig, Experiment, int, bool]) -> Path:
    config, base, seed, frozen = asked
    encoder = replace(base.teach.encoder, freeze_tower=frozen)
    data = replace(_data(config), image_size=base.data.image_size)
    out = _store(config, seed, frozen)
    train_teachers(replace(base.teach, out=out, data=data, encoder=encoder, seed=seed, device="cpu"))
    return out


def settings(base: Experiment, run: Run) -> Experiment:
    """A method's settings at a size: phases cut to it, no batch larger than a phase, rates scaled."""
    count = len(base.distill.phases)
    shares = _shares(run.pairs, count)
    phases = tuple(
        Phase(share, phase.endpoint, phase.start) for share, phase in zip(shares, base.distill.phases, strict=True)
    )
    # One batch for all methods: the smallest phase holds it.
    cut = replace(base.distill, phases=phases, batch_size=min(base.distill.batch_size, *shares))
    experiment = applied(run.method, replace(base, distill=cut))
    return replace(experiment, distill=replace(experiment.distill, rates=experiment.distill.rates.scaled(run.factor)))


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
        every = replace(base.evaluate, students=base.teach.experts, split="test", device="cpu")
        scores = evaluate_experts(TrajectoryStore.open(_store(config, run.seed, run.method == _FULL_HEADS)), every)
        return run, row | {"students": [dict(s) for s in scores.students], "provenance": dict(scores.provenance)}
    if run.method in methods():
        experiment = settings(base, run)
        store = TrajectoryStore.open(_store(config, run.seed, experiment.teach.encoder.freeze_tower))
        sizes = [phase.pairs for phase in experiment.distill.phases]
        loss, temperature = experiment.distill.loss, experiment.distill.temperature
        made, cost = _distilled(replace(experiment.distill, seed=run.seed, device="cpu"), store)
    else:
        selection = cast(Selection, run.method)
        store = TrajectoryStore.open(_store(config, run.seed, False))
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
    return run, row | ({"lost": evaluate_config.students} if made is None else _one_by_one(made, evaluate_config))


def _distilled(config: DistillConfig, store: TrajectoryStore) -> tuple[DistilledSet | None, dict[str, Any]]:
    """The set, none where its distillation diverged, and what it cost, compilation apart."""
    config = settled(config, store, store.student((config.seed, "student")).to(devices.pick(config.device)))
    step = shared_outer_step(config, store)
    if step.compiles:
        distill_with(step, replace(config, steps=1), store)
    began = time.process_time()
    try:
        with peak_memory() as peak:
            made = distill_with(step, config, store)
    except Diverged as error:
        return None, {"why": str(error)}
    losses = [round(float(phase.history["loss"][-20:].sum(1).mean()), 4) for phase in made.phases]
    return made, {"seconds": time.process_time() - began, "peak bytes": sum(peak), "loss": losses}


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
