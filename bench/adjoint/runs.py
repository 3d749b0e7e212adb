"""Run one cell of the study: experts, distillation, students under every protocol of evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.adjoint import why
from bench.adjoint.cells import STUDENTS, TRUNCATED, Cell, Data, Form, Side, Tower, images, teach_config
from bench.adjoint.estimators import TimedStep
from ptmst import TrajectoryStore, schema, train_teachers
from ptmst.config import DataConfig, DistillConfig, EvaluateConfig
from ptmst.data import write_data
from ptmst.distillation.distill import distill_with
from ptmst.errors import Diverged
from ptmst.evaluation.scorer import RetrievalScorer
from ptmst.evaluation.students import train_students
from ptmst.recipe import Recipe
from ptmst.studies.runs import shared_outer_step
from ptmst.support.devices import pick
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity

SPLITS = ("val", "test")
LAST = 20
"""Number of outer steps that the final loss averages."""


def data_config(data: Data, tower: Tower, work: Path) -> DataConfig:
    size = images(tower).image_size
    return DataConfig(name=data, root=work / data / ("data" if tower == "convnet" else f"data-{size}"), image_size=size)


def prepare(data: Data, tower: Tower, work: Path) -> None:
    """Write the files of a data set unless they exist."""
    write_data(replace(images(tower), name=data, root=data_config(data, tower, work).root))


def store_path(cell: Cell, work: Path) -> Path:
    """Folder of a cell's experts, shared by all cells of one seed."""
    return work / cell.data / f"{cell.tower}-{cell.seed}"


def trained_experts(cell: Cell, work: Path) -> TrajectoryStore:
    """The experts of a cell, trained unless they exist."""
    config, data = teach_config(cell.seed, cell.tower), data_config(cell.data, cell.tower, work)
    return train_teachers(replace(config, out=store_path(cell, work), data=data, device="cpu"))


def teach(asked: tuple[Cell, Path]) -> str:
    """Train the experts of a cell before cells share them; returns their name."""
    trained_experts(*asked)
    return store_path(*asked).name


def measure(asked: tuple[Cell, Path]) -> dict[str, Any]:
    """A cell with its results."""
    return {"cell": schema.to_json(asked[0])} | run(*asked)


def run(cell: Cell, work: Path) -> dict[str, Any]:
    """Distill and evaluate; returns the entries of a row."""
    store = trained_experts(cell, work)
    if cell.measure == "experts":
        return {"recall": experts(store)}
    if cell.measure == "why":
        step_of = partial(_outer_step, cell.distill, seed=cell.seed, store=store)
        return {"states": why.measure(cell, store, step_of)}
    step = _outer_step(cell.distill, cell.side, seed=cell.seed, store=store)
    row: dict[str, Any] = {"diverged at": None}
    began = time.process_time()
    try:
        distilled = distill_with(step, cell.distill, store)
    except Diverged as error:
        return row | {"diverged at": len(step.seconds), "why": str(error), "students": {}}
    losses = [phase.history["loss"].sum(1) for phase in distilled.phases]
    return row | {
        "cpu s": time.process_time() - began,
        "cpu s of a step": median(step.seconds),
        "loss": [float(values[-LAST:].mean()) for values in losses],
        "curve": [[round(float(v), 4) for v in values.view(-1, LAST).mean(1)] for values in losses],
        "lr": [phase.pairs.lr.tolist() for phase in distilled.phases],
        "students": evaluations(cell, distilled),
    }


def _outer_step(config: DistillConfig, side: Side, *, seed: int, store: TrajectoryStore) -> TimedStep:
    """One outer step for all settings that need the derivative in θ, and one for the truncated gradient."""
    config = replace(config, adjoint=0.0 if side == TRUNCATED else 1.0, adjoint_clip=None)
    return TimedStep(shared_outer_step(config, store), side, seed)


def evaluations(cell: Cell, distilled: DistilledSet) -> dict[Form, list[dict[str, float] | None]]:
    """Mean recall of every student on val and test, by protocol; None for a student that diverged."""
    config = EvaluateConfig(seed=cell.seed, protocol="per-phase", device="cpu")
    protocols: dict[Form, Callable[[], tuple[DistilledSet, EvaluateConfig]]] = {
        "per-phase": lambda: (distilled, config),
        "reference": lambda: (distilled, replace(config, protocol="reference")),
        "fixed": lambda: (_at_rate(distilled, cell.distill.student_lr), config),
        "first": lambda: (replace(distilled, phases=distilled.phases[:1]), config),
        "second": lambda: (replace(distilled, phases=distilled.phases[1:]), config),
        "at once": lambda: (at_once(distilled), config),
    }
    return {form: _students(*protocols[form]()) for form in cell.forms}


def _at_rate(distilled: DistilledSet, student_lr: float) -> DistilledSet:
    eta = torch.full((2,), student_lr)
    alike = (replace(one, pairs=one.pairs.replace(one.pairs.leaves() | {"lr": eta})) for one in distilled.phases)
    return replace(distilled, phases=tuple(replace(phase, last_lr=eta) for phase in alike))


def at_once(distilled: DistilledSet) -> DistilledSet:
    """The pairs of all phases as one: no pair matches one of another phase; η is the mean over phases."""
    phases, pairs = distilled.phases, list(distilled)
    merged = SyntheticPairs(
        torch.cat([one.images for one in pairs]),
        torch.cat([one.texts for one in pairs]),
        FullSimilarity(torch.block_diag(*(one.similarity.dense() for one in pairs))),
        torch.stack([one.lr for one in pairs]).mean(0),
    )
    last_lr = torch.stack([phase.last_lr for phase in phases]).mean(0)
    captions = tuple(caption for phase in phases for caption in phase.captions)
    return replace(distilled, phases=(DistilledPhase(merged, last_lr, captions),))


def experts(store: TrajectoryStore) -> list[list[float]]:
    """Mean recall on test of every expert at every epoch from 0."""
    student = store.student(("experts",))
    test = _scorer(store.recipe, "test")
    trajectories = [store.expert(number).raw() for number in sorted(store.experts)]
    return [
        [round(test.score(student, one.point(epoch))["mean"], 3) for epoch in range(store.epochs + 1)]
        for one in trajectories
    ]


def _students(distilled: DistilledSet, config: EvaluateConfig) -> list[dict[str, float] | None]:
    recalls: list[dict[str, float] | None] = []
    for number in range(STUDENTS):
        draw = (config.seed, "student", number)
        student = distilled.student(draw)
        theta: Tensor = student.flatten()[None]
        try:
            for _, trained in train_students(student, theta, distilled, config, [draw]):
                theta = trained
        except Diverged:
            recalls.append(None)
            continue
        scored = {split: _scorer(distilled.recipe, split).score(student, theta[0]) for split in SPLITS}
        recalls.append({split: round(scores["mean"], 3) for split, scores in scored.items()})
    return recalls


_SPLITS: dict[tuple[str, str], RetrievalScorer] = {}


def _scorer(recipe: Recipe, split: str) -> RetrievalScorer:
    """A split that stays in memory for all cells of a process."""
    key = str(recipe.data.root), split
    if key not in _SPLITS:
        _SPLITS[key] = RetrievalScorer(recipe.pairs(split), recipe.text_tower(), pick("cpu"))
    return _SPLITS[key]
