"""From data to a page: experts, sets, students, real pairs to compare with; continued where it was stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, cast, get_args

from ptmst import schema
from ptmst.config import DataConfig, DistillConfig, EvaluateConfig, Experiment, LossKind, TrainConfig, Writable
from ptmst.data import load_split, write_data
from ptmst.distillation.distill import distill
from ptmst.errors import InputError
from ptmst.evaluation.baselines import random_pairs
from ptmst.evaluation.evaluate import evaluate, evaluate_experts
from ptmst.evaluation.scores import Scores, read_scores, write_scores
from ptmst.report.live import LivePage, Recorder, shown_live
from ptmst.report.page import write_report
from ptmst.report.tables import Row, recall_table
from ptmst.retrieval.examples import Example, examples
from ptmst.retrieval.trained_student import INDEX, TrainedStudent
from ptmst.retrieval.training import train_student
from ptmst.students.image_towers import prepared
from ptmst.support import devices, files, folders, parallel
from ptmst.support.clock import repeatedly
from ptmst.support.progress import note, table
from ptmst.support.provenance import machine, versions
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.teachers.teach import train_teachers
from ptmst.trajectories.store import TrajectoryStore

PAGE, RESULTS = "report.html", "results.json"
_NOTE_EVERY_S = 5.0
AT_ONCE = 2
"""Distillations side by side on a CPU, of one thread each: a step gains little from a second one."""
RANDOM_LOSSES: tuple[LossKind, ...] = ("wbce", "infonce")
RANDOM_LR = (0.01, 0.03, 0.1)
"""Losses and student learning rates tried for random pairs; the best on the val split are used."""


@dataclass(frozen=True)
class Method:
    """One way of distilling, by the name that tables show."""

    label: str
    settings: Experiment


@dataclass(frozen=True)
class Job:
    """What is done with which data."""

    kind: folders.Kind
    """Of the folder, whose first index file is the job's record."""
    version: int
    source: DataConfig
    settings: Experiment
    methods: Mapping[str, Method]
    """By the name of its folder."""
    out: Path

    @property
    def name(self) -> str:
        """Of the kind, without its article."""
        return self.kind.name.partition(" ")[2]

    @property
    def record(self) -> Path:
        return self.out / self.kind.index[0]


@dataclass(frozen=True)
class Done:
    """What a job made."""

    rows: list[Row]
    """Of its table."""
    minutes: float


def do(job: Job, command: str, title: Callable[[list[Row]], str]) -> Done:
    """Do a job in its folder, or continue it, and write its page, which shows until then how far it is.

    A set that `ptmst data` writes is written to the folder, unless the source has a root. Raises InputError for data
    without a val or test split, and where the folder holds another job, or cannot be written.
    """
    with folders.claimed(job.out, job.kind), timed(job) as seconds, _shown(job, command) as end:
        rows = _rows(job)
        found = _examples(job, rows)
        minutes = seconds() / 60
        if not (job.out / RESULTS).exists():
            _record_results(job.out / RESULTS, command, minutes, rows)
        end(None)
        write_report(job.out / PAGE, title(rows), rows, command, examples=found)
    table(recall_table(rows))
    return Done(rows, minutes)


@contextmanager
def _shown(job: Job, command: str) -> Iterator[Callable[[str | None], None]]:
    """`shown_live`, of a job that is not finished: the page of one that is has results."""
    if (job.out / RESULTS).exists():
        yield lambda _: None
        return
    courses = [_course(job.out, name) for name in job.methods]
    title = f"{job.kind.name.capitalize()} on {job.source.name}"
    with shown_live(LivePage(job.out / PAGE, title, command, courses), "the same command continues") as end:
        yield end


def _course(out: Path, name: str) -> Path:
    return out / "courses" / f"{name}.json"


def _rows(job: Job) -> list[Row]:
    note(f"1/4 data: {job.source.name}")
    real = _data(job)
    pairs = {split: load_split(real, split) for split in ("train", "val", "test")}
    note("2/4 teachers: experts on all real pairs")
    store = train_teachers(replace(job.settings.teach, out=job.out / "store", data=real))
    note(f"3/4 distillation: {', '.join(method.label for method in job.methods.values())}")
    sets = _distilled(job, store)
    note("4/4 fresh students on each")
    config, count = job.settings.evaluate, job.settings.distill.pairs
    scored = partial(_scored, job.out / "scores")
    random = scored("random", lambda: _score_random(store, count, config))
    shown = random_pairs(store, count, random.provenance["lr"], config.seed)
    shown = replace(shown, provenance={**shown.provenance, "config": {"loss": random.provenance["loss"]}})

    def row(name: str, made: DistilledSet) -> Row:
        method = job.methods[name]
        scores = scored(name, lambda: evaluate(made, method.settings.evaluate))
        return Row(method.label, scores, made.num_pairs, made)

    return [
        Row("random real pairs", random, count, shown),
        *(row(name, made) for name, made in sets.items()),
        Row("all real pairs", scored("all", lambda: evaluate_experts(store, config)), len(pairs["train"])),
    ]


def _examples(job: Job, rows: list[Row]) -> list[Example]:
    """What students of random pairs, of the best set and of all real pairs find; they are kept."""
    store = TrajectoryStore.open(job.out / "store")
    random, *sets, full = rows
    best = max(sets, key=lambda row: row.scores.mean())
    config, set_of = job.settings.evaluate, {random.name: random.distilled, best.name: best.distilled}
    as_scored = next(method.settings.evaluate for method in job.methods.values() if method.label == best.name)
    folders_of = {random.name: "random", best.name: "best", full.name: "all"}
    students = {
        name: _student(job.out / "students" / folder, set_of.get(name) or store, as_scored)
        for name, folder in folders_of.items()
    }
    return examples(students, store.recipe.pairs(config.split), config.seed)


def _student(folder: Path, source: DistilledSet | TrajectoryStore, config: EvaluateConfig) -> TrainedStudent:
    if not (folder / INDEX).exists():
        how = TrainConfig(protocol=config.protocol, seed=config.seed, device=config.device)
        train_student(source, how).save(folder)
    return TrainedStudent.load(folder, device=config.device)


def _data(job: Job) -> DataConfig:
    """The data, written where there is need."""
    source, size = job.source, job.settings.teach.data.image_size
    if source.name in get_args(Writable) and source.root is None:
        written = replace(job.settings.data, name=cast(Writable, source.name), root=job.out / "data")
        write_data(written)
        return replace(source, root=written.root, image_size=size or written.image_size)
    return prepared(replace(source, image_size=size), job.settings.teach.encoder)


def _distilled(job: Job, store: TrajectoryStore) -> dict[str, DistilledSet]:
    """A set of each method; on a CPU side by side."""
    wanted = {
        name: replace(method.settings.distill, out=job.out / name, root=store.recipe.data.root)
        for name, method in job.methods.items()
    }
    tasks = {
        name: (store.path, config, _course(job.out, name), job.methods[name].label) for name, config in wanted.items()
    }
    if devices.pick(job.settings.distill.device).type != "cpu":
        return {name: _distill(task) for name, task in tasks.items()}
    # The longest first: phases take fewer pairs through the tower at a time.
    order = sorted(wanted, key=lambda name: -max(phase.pairs for phase in wanted[name].phases))
    labelled = {job.methods[name].label: tasks[name] for name in order}
    parallel.side_by_side(_distill_there, labelled, min(AT_ONCE, os.cpu_count() or 1))
    return {name: DistilledSet.load(job.out / name) for name in wanted}


def _distill(asked: tuple[Path, DistillConfig, Path, str]) -> DistilledSet:
    """By a config from the store of a folder, recorded in a file by a name."""
    folder, config, course, name = asked
    store = TrajectoryStore.open(folder)
    return distill(config, store, resume=True, watch=Recorder(course, name, store))


def _distill_there(asked: tuple[Path, DistillConfig, Path, str]) -> None:
    """In a process of its own, from which a set would have to be sent."""
    _distill(asked)


def _score_random(store: TrajectoryStore, count: int, config: EvaluateConfig) -> Scores:
    """Each student on random pairs of its own, at the loss and student learning rate that are best on the val split."""

    def score(number: int, loss: LossKind, lr: float, split: Literal["test", "val"]) -> Scores:
        seed = config.seed + number
        subset = random_pairs(store, count, lr, seed)
        return evaluate(subset, replace(config, students=1, seed=seed, loss=loss, split=split))

    loss, lr = max(product(RANDOM_LOSSES, RANDOM_LR), key=lambda tried: score(0, tried[0], tried[1], "val").mean())
    scores = [score(number, loss, lr, config.split) for number in range(config.students)]
    students = tuple(student for one in scores for student in one.students)
    return Scores(students, {**scores[0].provenance, "loss": loss, "lr": lr})


def _record_results(path: Path, command: str, minutes: float, rows: list[Row]) -> None:
    summaries = [{"name": row.name, "pairs": row.pairs, "recall": row.scores.to_json()["summary"]} for row in rows]
    measured = {"command": command, "machine": machine(), "versions": versions(), "minutes": minutes}
    files.write_json(path, {**measured, "students": len(rows[0].scores.students), "rows": summaries})


@contextmanager
def timed(job: Job) -> Iterator[Callable[[], float]]:
    """Yields how many seconds this job has taken, over all its runs until it was finished.

    Raises InputError where its folder holds another.
    """
    began, before = time.perf_counter(), 0.0
    record = {"format": f"ptmst-{job.name}", "version": job.version, "data": job.source.name}
    record["settings"] = schema.to_json(job.settings)
    if job.record.exists():
        there = files.read_json(job.record, job.name, job.version)
        before = there["seconds"]
        if there["data"] != job.source.name or not schema.agrees(there["settings"], job.settings):
            raise InputError(
                f"{job.out}: expected the {job.name} asked for, found one of other settings; choose another --out"
            )

    finished = (job.out / RESULTS).exists()

    def seconds() -> float:
        return before if finished else before + time.perf_counter() - began

    def note_seconds() -> None:
        files.write_json(job.record, {**record, "seconds": seconds()})

    note_seconds()
    try:
        # Now and then, since a run that is killed notes nothing at its end.
        with repeatedly(note_seconds, _NOTE_EVERY_S):
            yield seconds
    finally:
        note_seconds()


def _scored(folder: Path, name: str, score: Callable[[], Scores]) -> Scores:
    path = folder / f"{name}.json"
    if not path.exists():
        write_scores(path, score())
    return read_scores(path)
