"""The main job on an embedded default: data → teachers → distillation → students → one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

from ptmst import schema
from ptmst.config import DataConfig, EvaluateConfig, Experiment, LossKind
from ptmst.data import load_split, write_rendered
from ptmst.distillation.distill import distill
from ptmst.errors import InputError
from ptmst.evaluation.baselines import random_pairs
from ptmst.evaluation.evaluate import evaluate, evaluate_experts
from ptmst.evaluation.scores import Scores, read_scores, write_scores
from ptmst.presets import applied, experiment
from ptmst.report.page import write_report
from ptmst.report.tables import Row, recall_table
from ptmst.support import files, folders
from ptmst.support.clock import repeatedly
from ptmst.support.progress import note, result, table
from ptmst.support.provenance import machine, versions
from ptmst.teachers import train_teachers
from ptmst.trajectories.store import TrajectoryStore

PAGE, RESULTS = "report.html", "results.json"
_RECORD, _KIND, _VERSION = "demo.json", "demo", 1
FOLDER = folders.Kind("a demo", (_RECORD,))
_NOTE_EVERY_S = 5.0
RANDOM_LOSSES: tuple[LossKind, ...] = ("wbce", "infonce")
RANDOM_LR = (0.01, 0.03, 0.1)
"""Losses and student learning rates tried for random pairs; the best on the val split are used."""


def run_demo(data: Literal["scenes", "digits"], out: Path, quick: bool, command: str) -> list[Row]:
    """Run the demo in `out`, or continue it; returns the rows of its table, of which it also writes a page.

    Raises InputError where `out` holds another demo, or cannot be written.
    """
    settings = experiment("demo-quick" if quick else "demo")
    with folders.claimed(out, FOLDER), _timed(out, data, settings) as seconds:
        rows = _rows(data, out, settings)
        minutes = seconds() / 60
    if not (out / RESULTS).exists():
        _record_results(out / RESULTS, command, minutes, rows)
    title = f"ptmst demo: {rows[-2].pairs} pairs distilled from {rows[-1].pairs:,} ({data})"
    write_report(out / PAGE, title, rows, command)
    table(recall_table(rows))
    result(f"{minutes:.1f} min. Everything is in {out}; open {out / PAGE} in a browser.")
    return rows


def _rows(data: Literal["scenes", "digits"], out: Path, settings: Experiment) -> list[Row]:
    note(f"1/5 data: {data}")
    root = out / "data"
    write_rendered(replace(settings.data, name=data, root=root))
    note("2/5 teachers: warm-up of the image tower, then experts on all real pairs")
    real = DataConfig(name=data, root=root, image_size=settings.data.image_size)
    store = train_teachers(replace(settings.teach, out=out / "store", data=real))
    note("3/5 distillation: LoRS (raw trajectories, one phase)")
    lors = distill(replace(applied("lors", settings).distill, out=out / "lors"), store, resume=True)
    note("4/5 distillation: PTM-ST (shortcut trajectories, phases, EMA)")
    ptm_st = distill(replace(settings.distill, out=out / "ptm-st"), store, resume=True)
    note("5/5 fresh students on each")
    config, count = settings.evaluate, ptm_st.num_pairs
    scored = partial(_scored, out / "scores")
    random = scored("random", lambda: _score_random(store, count, config))
    shown = random_pairs(store, count, random.provenance["lr"], config.seed)
    return [
        Row("random real pairs", random, count, shown),
        Row("LoRS", scored("lors", lambda: evaluate(lors, config)), lors.num_pairs, lors),
        Row("PTM-ST", scored("ptm-st", lambda: evaluate(ptm_st, config)), count, ptm_st),
        Row("all real pairs", scored("all", lambda: evaluate_experts(store, config)), len(load_split(real, "train"))),
    ]


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
