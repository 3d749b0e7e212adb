"""Methods side by side: the same data, experts, budget of outer steps and evaluation; rates tuned alike."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Literal, get_args

from ptmst import config as configs
from ptmst import files, pool, progress
from ptmst.baselines import Selection, subset
from ptmst.config import AblateConfig, DataConfig, DistillConfig, EvaluateConfig, Experiment, LossKind, Phase
from ptmst.data import write_rendered
from ptmst.demo import RANDOM_LOSSES, RANDOM_LR
from ptmst.distillation import distill
from ptmst.distilled import versions
from ptmst.doctor import machine
from ptmst.errors import Diverged, InputError
from ptmst.evaluation import Scores, evaluate, evaluate_experts
from ptmst.presets import applied, experiment, methods
from ptmst.results import Row
from ptmst.store import TrajectoryStore
from ptmst.teachers import student_of, train_teachers
from ptmst.unroll import OuterStep

RESULTS = "ablation.json"
_KIND, _VERSION = "ablation", 1
FACTORS = (1 / 3, 1.0, 3.0)
"""Of all leaf rates but η's; the best on val is used."""
_TUNING_SEED = 1000
_FULL = "all real pairs"


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
    configs.check(config)
    known = [*get_args(Selection), *methods()]
    for name in config.methods:
        if name not in known:
            raise InputError(f"methods: expected methods, found {name}{configs.nearest(name, known)}")
    base = experiment(config.preset)
    _refuse_sizes(config, base)
    with files.claimed(config.out, "an ablation"):
        grid = _Grid(config, base, command)
        grid.teach()
        best = grid.tuned()
        runs = [
            replace(best[method], pairs=pairs, seed=seed, split="test")
            for seed, pairs, method in product(range(config.seeds), config.pairs, config.methods)
        ]
        full = [Run(_FULL, 0, seed) for seed in range(config.seeds)]
        grid.run("ablate", [*full, *runs])
        return grid.rows(runs, full)


class _Grid:
    """The runs of an ablation, each measured once."""

    def __init__(self, config: AblateConfig, base: Experiment, command: str) -> None:
        self._config, self._base, self._file = config, base, config.out / RESULTS
        grids = {"factors": FACTORS, "losses": RANDOM_LOSSES, "rates": RANDOM_LR}
        how = {name: configs.to_json(methods()[name]) for name in config.methods if name in methods()}
        asked = {"data": config.data, "settings": configs.to_json(base), "methods": how, "tried": grids}
        self._head = {"format": "ptmst-ablation", "version": _VERSION, **json.loads(json.dumps(asked))}
        self._measured = {"command": command, "machine": machine(), "versions": versions()}
        self.found: dict[Run, dict[str, Any]] = {}
        if self._file.exists():
            before = files.read_json(self._file, _KIND, _VERSION)
            if any(before[key] != value for key, value in self._head.items()):
                raise InputError(f"{config.out}: expected an ablation of these settings, found another; choose another")
            self.found = {configs.from_json(Run, row["run"]): row for row in before["rows"]}

    def teach(self) -> None:
        """The data, and the experts of every seed."""
        base, config = self._base, self._config
        write_rendered(replace(base.data, name=config.data, root=_data(config).root))
        frozen = {False} | {applied(m, base).teach.encoder.freeze_tower for m in config.methods if m in methods()}
        seeds = [*range(config.seeds), _TUNING_SEED]
        wanted = [(config, base, seed, way) for seed in seeds for way in sorted(frozen)]
        with progress.bar("experts", len(wanted)) as bar:
            for path in pool.completed(_teach, wanted, config.workers):
                bar.advance(path.name)

    def tuned(self) -> dict[str, Run]:
        """Every method's run with the rates that are best on val, at the middle size and a seed of its own."""
        size = sorted(self._config.pairs)[len(self._config.pairs) // 2]
        tried: dict[str, list[Run]] = {}
        for method in self._config.methods:
            one = Run(method, size, _TUNING_SEED, split="val")
            if method in methods():
                tried[method] = [replace(one, factor=factor) for factor in FACTORS]
            else:
                tried[method] = [replace(one, loss=loss, lr=lr) for loss, lr in product(RANDOM_LOSSES, RANDOM_LR)]
        self.run("tune", [run for runs in tried.values() for run in runs])
        return {method: max(runs, key=self._mean) for method, runs in tried.items()}

    def run(self, label: str, runs: Sequence[Run]) -> None:
        """Measure what has not been measured yet."""
        missing = [run for run in runs if run not in self.found]
        tasks = [(self._config, self._base, run) for run in missing]
        with progress.bar(label, len(runs), len(runs) - len(missing)) as bar:
            for run, row in pool.completed(_measure, tasks, self._config.workers):
                self.found[run] = row
                self._save()
                bar.advance(f"{run.method}, {run.pairs} pairs, seed {run.seed}")

    def _save(self) -> None:
        files.write_json(self._file, {**self._head, **self._measured, "rows": list(self.found.values())})

    def _mean(self, run: Run) -> float:
        """Mean recall; that of a student that diverged is 0."""
        found = self.found[run]
        values: list[float] = [student["mean"] for student in found["students"]]
        return mean(values + [0.0] * found["lost"])

    def rows(self, runs: Sequence[Run], full: Sequence[Run]) -> list[Row]:
        """A row a method and size, over the students of all seeds."""
        found, measured = [], list(self.found[full[0]]["students"][0])
        for pairs, method in product(self._config.pairs, self._config.methods):
            mine = [self.found[run] for run in runs if (run.method, run.pairs) == (method, pairs)]
            students = [student for row in mine for student in row["students"]]
            students += [dict.fromkeys(measured, 0.0)] * sum(row["lost"] for row in mine)
            found.append(Row(method, Scores(tuple(students), mine[0]["provenance"]), pairs))
        scored = [student for run in full for student in self.found[run]["students"]]
        one = self.found[full[0]]["provenance"]
        return [*found, Row(_FULL, Scores(tuple(scored), one), one["pairs"])]


def _refuse_sizes(config: AblateConfig, base: Experiment) -> None:
    for pairs in config.pairs:
        if not 2 * len(base.distill.phases) <= pairs <= base.data.train:
            least, most = 2 * len(base.distill.phases), base.data.train
            raise InputError(f"pairs: expected {least} to {most}, found {pairs}; choose another number")


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
    shares = [run.pairs // count + (number < run.pairs % count) for number in range(count)]
    phases = tuple(
        Phase(share, phase.endpoint, phase.start) for share, phase in zip(shares, base.distill.phases, strict=True)
    )
    # One batch for all methods: the smallest phase holds it.
    cut = replace(base.distill, phases=phases, batch_size=min(base.distill.batch_size, *shares))
    found = applied(run.method, replace(base, distill=cut))
    return replace(found, distill=replace(found.distill, rates=found.distill.rates.scaled(run.factor)))


def _measure(asked: tuple[AblateConfig, Experiment, Run]) -> tuple[Run, dict[str, Any]]:
    config, base, run = asked
    row: dict[str, Any] = {"run": configs.to_json(run), "lost": 0, "students": []}
    began = time.process_time()
    if run.method == _FULL:
        every = replace(base.evaluate, students=base.teach.experts, split="test", device="cpu")
        scores = evaluate_experts(TrajectoryStore.open(_store(config, run.seed, False)), every)
        return run, row | {"students": [dict(s) for s in scores.students], "provenance": dict(scores.provenance)}
    evaluation = replace(base.evaluate, seed=run.seed, split=run.split, device="cpu")
    if run.method in methods():
        one = settings(base, run)
        store = TrajectoryStore.open(_store(config, run.seed, one.teach.encoder.freeze_tower))
        evaluation = replace(evaluation, loss=one.evaluate.loss)
        try:
            distilled = replace(one.distill, seed=run.seed, device="cpu")
            made = distill(distilled, store, outer_step=_outer_step(distilled, store))
        except Diverged as error:
            provenance = {"split": run.split, "config": configs.to_json(evaluation)}
            return run, row | {"lost": evaluation.students, "provenance": provenance, "why": str(error)}
        row |= {"loss": [round(float(phase.history["loss"][-20:].sum(1).mean()), 4) for phase in made.phases]}
    else:
        selection: Any = run.method
        store = TrajectoryStore.open(_store(config, run.seed, False))
        made = subset(store, selection, run.pairs, run.lr, run.seed)
        evaluation = replace(evaluation, loss=run.loss)
    row |= {"seconds": time.process_time() - began, "worker's peak MB so far": _peak_mb()}
    students, lost, provenance = _one_by_one(made, evaluation)
    return run, row | {"students": students, "lost": lost, "provenance": provenance}


_STEPS: dict[Any, OuterStep] = {}


def _outer_step(config: DistillConfig, store: TrajectoryStore) -> OuterStep:
    """One outer step a kind of graph, for all runs of a process: it compiles once. A frozen tower is a store's own."""
    own = store.fingerprint if store.settings["encoder"]["freeze_tower"] else store.layers
    kind = (own, config.loss, config.temperature, config.adjoint, config.adjoint_clip, config.keep, config.compile)
    if kind not in _STEPS:
        _STEPS[kind] = OuterStep.of(student_of(store, (config.seed, "student")), config)
    return _STEPS[kind]


def _one_by_one(made: Any, config: EvaluateConfig) -> tuple[list[dict[str, float]], int, dict[str, Any]]:
    """Scores of every student; those that diverge are counted, and cost the others nothing."""
    students: list[dict[str, float]] = []
    for number in range(config.students):
        try:
            scores = evaluate(made, replace(config, students=1, seed=config.seed * config.students + number))
        except Diverged:
            continue
        students += [dict(student) for student in scores.students]
    return students, config.students - len(students), {"split": config.split, "config": configs.to_json(config)}


def _peak_mb() -> float:
    """Peak memory of this process since it began: of all its runs."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
