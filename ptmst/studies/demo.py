"""The main job in one command: data → teachers → distillation → students → one page."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, cast, get_args

from ptmst import schema
from ptmst.config import DataConfig, DistillConfig, EvaluateConfig, Experiment, LossKind, Writable
from ptmst.data import load_split, write_data
from ptmst.distillation.distill import distill
from ptmst.errors import InputError
from ptmst.evaluation.baselines import random_pairs
from ptmst.evaluation.evaluate import evaluate, evaluate_experts
from ptmst.evaluation.scores import Scores, read_scores, write_scores
from ptmst.presets import applied, experiment
from ptmst.report.page import write_report
from ptmst.report.tables import Row, recall_table
from ptmst.students.packages import weights_file
from ptmst.support import devices, files, folders, parallel
from ptmst.support.clock import repeatedly
from ptmst.support.progress import note, result, table
from ptmst.support.provenance import machine, versions
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.teachers.teach import train_teachers
from ptmst.trajectories.store import TrajectoryStore

PAGE, RESULTS = "report.html", "results.json"
_RECORD, _KIND, _VERSION = "demo.json", "demo", 1
FOLDER = folders.Kind("a demo", (_RECORD,))
_NOTE_EVERY_S = 5.0
METHODS = {"lors": "LoRS", "ptm-st": "PTM-ST", "st-adjoint": "ST, damped adjoint"}
"""Methods that are shown, by preset."""
AT_ONCE = 2
"""Distillations side by side on a CPU, of one thread each: a step gains little from a second one."""
RANDOM_LOSSES: tuple[LossKind, ...] = ("wbce", "infonce")
RANDOM_LR = (0.01, 0.03, 0.1)
"""Losses and student learning rates tried for random pairs; the best on the val split are used."""


def preset_of(data: str, quick: bool) -> str:
    """The preset of a demo: rendered pictures train a small tower of their own, all others have a pretrained one."""
    return f"{'scenes' if data in ('scenes', 'digits') else 'demo'}{'-quick' * quick}"


def settings_of(data: str, quick: bool) -> Experiment:
    """Those of the preset; what it has tuned for its methods on its own data alone."""
    settings = experiment(preset_of(data, quick))
    return settings if data == settings.data.name else replace(settings, tuned={})


def run_demo(source: DataConfig, out: Path, quick: bool, command: str) -> list[Row]:
    """Run the demo on a data set in `out`, or continue it; returns the rows of its table, of which it writes a page.

    A set that `ptmst data` writes is written to `out`, unless `source` has a root. Raises InputError for data without a
    val or test split, for a tower that is not installed, and where `out` holds another demo, or cannot be written.
    """
    settings = settings_of(source.name, quick)
    _refuse_missing_tower(settings)
    with folders.claimed(out, FOLDER), _timed(out, source.name, settings) as seconds:
        rows = _rows(source, out, settings)
        minutes = seconds() / 60
    if not (out / RESULTS).exists():
        _record_results(out / RESULTS, command, minutes, rows)
    title = f"ptmst demo: {rows[1].pairs} pairs distilled from {rows[-1].pairs:,} ({source.name})"
    write_report(out / PAGE, title, rows, command)
    table(recall_table(rows))
    result(f"{minutes:.1f} min. Everything is in {out}; open {out / PAGE} in a browser.")
    return rows


def _refuse_missing_tower(settings: Experiment) -> None:
    weights = settings.teach.encoder.image_weights
    try:
        if weights is not None:
            weights_file(weights)
    except InputError as error:
        raise InputError(f"{error}, or take --data scenes, which needs no weights") from error


def _rows(source: DataConfig, out: Path, settings: Experiment) -> list[Row]:
    note(f"1/4 data: {source.name}")
    real = _data(source, out, settings)
    pairs = {split: load_split(real, split) for split in ("train", "val", "test")}
    note("2/4 teachers: experts on all real pairs")
    store = train_teachers(replace(settings.teach, out=out / "store", data=real))
    note(f"3/4 distillation: {', '.join(METHODS.values())}")
    sets = _distilled(out, settings, store)
    note("4/4 fresh students on each")
    config, count = settings.evaluate, settings.distill.pairs
    scored = partial(_scored, out / "scores")
    random = scored("random", lambda: _score_random(store, count, config))
    shown = random_pairs(store, count, random.provenance["lr"], config.seed)

    def row(method: str, made: DistilledSet) -> Row:
        own = applied(method, settings).evaluate
        return Row(METHODS[method], scored(method, lambda: evaluate(made, own)), made.num_pairs, made)

    return [
        Row("random real pairs", random, count, shown),
        *(row(method, made) for method, made in sets.items()),
        Row("all real pairs", scored("all", lambda: evaluate_experts(store, config)), len(pairs["train"])),
    ]


def _data(source: DataConfig, out: Path, settings: Experiment) -> DataConfig:
    """The data, written where there is need."""
    size = settings.teach.data.image_size
    if source.name in get_args(Writable) and source.root is None:
        written = replace(settings.data, name=cast(Writable, source.name), root=out / "data")
        write_data(written)
        return replace(source, root=written.root, image_size=size or written.image_size)
    return replace(source, image_size=size)


def _distilled(out: Path, settings: Experiment, store: TrajectoryStore) -> dict[str, DistilledSet]:
    """A set of each method; on a CPU side by side."""
    wanted = {
        method: replace(applied(method, settings).distill, out=out / method, root=store.recipe.data.root)
        for method in METHODS
    }
    if devices.pick(settings.distill.device).type != "cpu":
        return {method: distill(config, store, resume=True) for method, config in wanted.items()}
    # The longest first: phases take fewer pairs through the tower at a time.
    order = sorted(wanted, key=lambda method: -max(phase.pairs for phase in wanted[method].phases))
    tasks = {METHODS[method]: (store.path, wanted[method]) for method in order}
    parallel.side_by_side(_distill, tasks, min(AT_ONCE, os.cpu_count() or 1))
    return {method: DistilledSet.load(out / method) for method in wanted}


def _distill(asked: tuple[Path, DistillConfig]) -> None:
    store, config = asked
    distill(config, TrajectoryStore.open(store), resume=True)


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
def _timed(out: Path, data: str, settings: Experiment) -> Iterator[Callable[[], float]]:
    """Yields how many seconds this demo has taken, over all its runs until it was finished.

    Raises InputError where `out` holds another.
    """
    path, began, before = out / _RECORD, time.perf_counter(), 0.0
    record = {"format": "ptmst-demo", "version": _VERSION, "data": data, "settings": schema.to_json(settings)}
    if path.exists():
        there = files.read_json(path, _KIND, _VERSION)
        before = there["seconds"]
        if there["data"] != data or not schema.agrees(there["settings"], settings):
            raise InputError(f"{out}: expected the demo asked for, found one of other settings; choose another --out")

    finished = (out / RESULTS).exists()

    def seconds() -> float:
        return before if finished else before + time.perf_counter() - began

    def note_seconds() -> None:
        files.write_json(path, {**record, "seconds": seconds()})

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
