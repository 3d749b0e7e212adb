"""The main job on an embedded default: data → teachers → distillation → students → one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from ptmst import config as configs
from ptmst import files
from ptmst.baselines import random_pairs
from ptmst.config import DataConfig, DistillConfig, EvaluateConfig, RenderConfig, TeachConfig
from ptmst.data import write_rendered
from ptmst.distillation import distill
from ptmst.distilled import INDEX, DistilledSet
from ptmst.errors import InputError
from ptmst.evaluation import SCORES, Scores, evaluate, evaluate_experts, read_scores
from ptmst.progress import say, show
from ptmst.report import Row, recall_table, write_report
from ptmst.store import TrajectoryStore
from ptmst.teachers import real_pairs, train_teachers

PAGE = "report.html"
_RECORD, _KIND, _VERSION = "demo.json", "demo", 1
RANDOM_LR = (0.03, 0.1, 0.3)
"""Student learning rates tried for random pairs; the best on the val split is used."""


@dataclass(frozen=True)
class Preset:
    """presets/demo.toml or presets/demo-quick.toml: one table per step, `out` and `root` left to the demo."""

    data: RenderConfig
    teach: TeachConfig
    lors: DistillConfig
    ptm_st: DistillConfig
    evaluate: EvaluateConfig


def preset(name: str) -> Preset:
    with resources.as_file(resources.files("ptmst") / "presets" / f"{name}.toml") as path:
        return configs.from_toml(Preset, path)


def run_demo(data: Literal["scenes", "digits"], out: Path, quick: bool, command: str) -> list[Row]:
    """Run the demo in `out`, or continue it; returns the rows of its table, of which it also writes a page."""
    began = time.perf_counter()
    settings = preset("demo-quick" if quick else "demo")
    _claim(out, data, quick)
    say(f"1/5 data: {data}")
    root = out / "data"
    write_rendered(replace(settings.data, name=data, root=root))
    say("2/5 teachers: warm-up of the image tower, then experts on all real pairs")
    real = DataConfig(name=data, root=root, image_size=settings.data.image_size)
    store = train_teachers(replace(settings.teach, out=out / "store", data=real))
    say("3/5 distillation: LoRS (raw trajectories, one phase)")
    lors = distill(replace(settings.lors, out=out / "lors"), store, resume=True)
    say("4/5 distillation: PTM-ST (shortcut trajectories, phases, EMA)")
    ptm_st = distill(replace(settings.ptm_st, out=out / "ptm-st"), store, resume=True)
    say("5/5 fresh students on each")
    config = settings.evaluate
    random = _random(out / "random", store, ptm_st.num_pairs, config)
    rows = [
        Row("random real pairs", _scored(out / "random", lambda: evaluate(random, config)), random.num_pairs, random),
        Row("LoRS", _scored(out / "lors", lambda: evaluate(lors, config)), lors.num_pairs, lors),
        Row("PTM-ST", _scored(out / "ptm-st", lambda: evaluate(ptm_st, config)), ptm_st.num_pairs, ptm_st),
        Row("all real pairs", _scored(out / "store", lambda: evaluate_experts(store, config.students)), _pairs(store)),
    ]
    title = f"ptmst demo: {ptm_st.num_pairs} pairs distilled from {_pairs(store):,} ({data})"
    write_report(out / PAGE, title, rows, command)
    show(recall_table(rows))
    say(f"{(time.perf_counter() - began) / 60:.1f} min. Everything is in {out}; open {out / PAGE} in a browser.")
    return rows


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
