"""The main job on an embedded default: data → teachers → distillation → students → one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ptmst import files
from ptmst.baselines import random_pairs
from ptmst.config import DataConfig, DistillConfig, EvaluateConfig, Phase, experiment
from ptmst.data import write_rendered
from ptmst.distillation import distill
from ptmst.distilled import INDEX, DistilledSet, versions
from ptmst.doctor import machine
from ptmst.errors import InputError
from ptmst.evaluation import SCORES, Scores, evaluate, evaluate_experts, read_scores
from ptmst.progress import say, show
from ptmst.report import Row, recall_table, write_report
from ptmst.store import TrajectoryStore
from ptmst.teachers import real_pairs, train_teachers

PAGE, RESULTS = "report.html", "results.json"
_RECORD, _KIND, _VERSION = "demo.json", "demo", 1
RANDOM_LR = (0.03, 0.1, 0.3)
"""Student learning rates tried for random pairs; the best on the val split is used."""


def run_demo(data: Literal["scenes", "digits"], out: Path, quick: bool, command: str) -> list[Row]:
    """Run the demo in `out`, or continue it; returns the rows of its table, of which it also writes a page."""
    began = time.perf_counter()
    settings = experiment("demo-quick" if quick else "demo")
    _claim(out, data, quick)
    say(f"1/5 data: {data}")
    root = out / "data"
    write_rendered(replace(settings.data, name=data, root=root))
    say("2/5 teachers: warm-up of the image tower, then experts on all real pairs")
    real = DataConfig(name=data, root=root, image_size=settings.data.image_size)
    store = train_teachers(replace(settings.teach, out=out / "store", data=real))
    say("3/5 distillation: LoRS (raw trajectories, one phase)")
    lors = distill(replace(as_lors(settings.distill), out=out / "lors"), store, resume=True)
    say("4/5 distillation: PTM-ST (shortcut trajectories, phases, EMA)")
    ptm_st = distill(replace(settings.distill, out=out / "ptm-st"), store, resume=True)
    say("5/5 fresh students on each")
    config = settings.evaluate
    random = _random(out / "random", store, ptm_st.num_pairs, config)
    rows = [
        Row("random real pairs", _scored(out / "random", lambda: evaluate(random, config)), random.num_pairs, random),
        Row("LoRS", _scored(out / "lors", lambda: evaluate(lors, config)), lors.num_pairs, lors),
        Row("PTM-ST", _scored(out / "ptm-st", lambda: evaluate(ptm_st, config)), ptm_st.num_pairs, ptm_st),
        Row("all real pairs", _scored(out / "store", lambda: evaluate_experts(store, config.students)), _pairs(store)),
    ]
    minutes = (time.perf_counter() - began) / 60
    _record_results(out / RESULTS, command, minutes, rows)
    title = f"ptmst demo: {ptm_st.num_pairs} pairs distilled from {_pairs(store):,} ({data})"
    write_report(out / PAGE, title, rows, command)
    show(recall_table(rows))
    say(f"{minutes:.1f} min. Everything is in {out}; open {out / PAGE} in a browser.")
    return rows


def as_lors(config: DistillConfig) -> DistillConfig:
    """Trajectory matching as in LoRS, at the cost of `config`: as many pairs and, in all, as many outer steps.

    One phase on the raw trajectory over the starts of all phases, low-rank soft labels, no average.
    """
    starts = [phase.start for phase in config.phases]
    phase = Phase(
        pairs=config.pairs,
        endpoint=max(phase.endpoint for phase in config.phases),
        start=(min(first for first, _ in starts), max(last for _, last in starts)),
    )
    return replace(
        config,
        phases=(phase,),
        steps=config.steps * len(config.phases),
        trajectory="raw",
        similarity="low-rank",
        ema=0.0,
    )


def _record_results(path: Path, command: str, minutes: float, rows: list[Row]) -> None:
    summaries = [{"name": row.name, "pairs": row.pairs, "recall": row.scores.to_json()["summary"]} for row in rows]
    measured = {"command": command, "machine": machine(), "versions": versions(), "minutes": minutes}
    files.write_json(path, {**measured, "students": len(rows[0].scores.students), "rows": summaries})


def _claim(out: Path, data: str, quick: bool) -> None:
    record = {"format": "ptmst-demo", "version": _VERSION, "data": data, "quick": quick}
    path = out / _RECORD
    if not path.exists():
        files.write_json(path, record)
    elif files.read_json(path, _KIND, _VERSION) != record:
        raise InputError(f"{out}: expected a demo of {data}{' --quick' * quick}, found another; choose another --out")


def _random(path: Path, store: TrajectoryStore, count: int, config: EvaluateConfig) -> DistilledSet:
    """As many real pairs, at the student learning rate that is best on the val split."""
    if (path / INDEX).exists():
        return DistilledSet.load(path)
    tries = [random_pairs(store, count, lr, config.seed) for lr in RANDOM_LR]
    best = max(tries, key=lambda tried: evaluate(tried, replace(config, split="val")).mean())
    best.save(path)
    return best


def _scored(folder: Path, score: Callable[[], Scores]) -> Scores:
    if not (folder / SCORES).exists():
        files.write_json(folder / SCORES, score().to_json())
    return read_scores(folder / SCORES)


def _pairs(store: TrajectoryStore) -> int:
    return len(real_pairs(store)[0])
