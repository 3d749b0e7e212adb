"""The diagnosis of a store, and of a set made from it: what is measured, in which order, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any, get_args

import torch
from torch import Tensor

from ptmst import schema
from ptmst.config import DiagnoseConfig, DistillConfig, EvaluateConfig, Phase, Selection
from ptmst.data import Pairs
from ptmst.diagnosis.ceilings import Ceiling, Judge, ceiling, looks
from ptmst.diagnosis.findings import Findings, findings
from ptmst.diagnosis.geometry import Shape, Shared, shape, shared
from ptmst.diagnosis.rollouts import Reached, reached, refuse_unknown_lines
from ptmst.diagnosis.signals import Signal, signals
from ptmst.distillation.budget import settled
from ptmst.distillation.draws import draw_batches, initial_phases
from ptmst.engine.outer_step import OuterStep
from ptmst.errors import InputError
from ptmst.evaluation.scorer import CHOOSING
from ptmst.students.student import Student
from ptmst.support import devices, progress
from ptmst.support.provenance import versions
from ptmst.support.seeds import generator
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.trajectories.shortcut import Expert, Trajectory
from ptmst.trajectories.store import TrajectoryStore

_MOST_LINES = 5
"""Shortcuts that are looked along, the longest among them."""


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a store, and of a set."""

    groups: tuple[str, ...]
    layers: tuple[str, ...]
    shapes: dict[int, Shape]
    """By expert."""
    shared: Shared
    """At the last kept end point."""
    ceilings: dict[int, Ceiling]
    """By expert."""
    endpoint: int
    """Of the shortcut that signals are measured along."""
    signals: dict[str, dict[int, dict[str, Signal]]]
    """By trajectory (raw, where its epochs are kept, and shortcut), start point and leaf."""
    reached: tuple[Reached, ...]
    """By phase of the set; none without one."""
    lost: int
    """Students of the set that diverged."""
    findings: Findings
    provenance: Mapping[str, Any]

    def recalls(self) -> dict[int, float]:
        """Mean recall of the experts on val by kept epoch, percent."""
        return _mean_recalls(self.ceilings)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values (format: docs/formats.md)."""
        record: dict[str, Any] = _plain(asdict(self))
        return {"format": "ptmst-diagnosis", "version": 1, **record}


def diagnose(config: DiagnoseConfig, store: TrajectoryStore, distilled: DistilledSet | None = None) -> Diagnosis:
    """Measure a store of experts and, if given, how far students of a set get along their lines.

    Raises InputError for a store that records no data, data without a split val, an end point that is not kept, and a
    set of other experts.
    """
    schema.check(config)
    store = store.at(config)
    if not len(store):
        raise InputError(f"{store.path}: expected at least one expert, found none; run `ptmst teach` to its end")
    endpoint = _endpoint(config, store)
    made_by = None if distilled is None else _made_by(distilled, store)
    device = devices.pick(config.device)
    real = store.recipe.training_pairs(device)
    if len(real[0].image_names) < config.pairs:
        raise InputError(
            f"pairs: expected at most the {len(real[0].image_names)} training images, found {config.pairs}; lower it"
        )
    numbers = sorted(store.experts)[: config.experts]
    experts = {number: store.expert(number) for number in numbers}
    student = store.student((config.seed, "diagnosis")).to(device)
    judge = Judge(student, store.recipe.pairs(CHOOSING), store.recipe.text_tower(), store.recipe.temperature)
    with devices.arithmetic("fp32"):
        shapes = {number: shape(expert) for number, expert in experts.items()}
        lines = _lines(store.endpoints)
        with progress.bar("recall", len(experts) * looks(experts[numbers[0]], lines)) as bar:
            ceilings = {number: ceiling(expert, judge, lines, bar) for number, expert in experts.items()}
        told = _signals(config, made_by, store, real, experts, student, endpoint)
        rolled_out, lost = list[Reached](), 0
        if distilled is not None and made_by is not None:
            evaluation = EvaluateConfig(protocol="as-matched", seed=config.seed, device=config.device)
            rolled_out, lost = reached(distilled.at(config), made_by, experts, student, judge, evaluation)
    progressive = distilled is not None and distilled.is_progressive
    found = findings(_mean_recalls(ceilings), told, endpoint, rolled_out, lost, progressive)
    provenance = {
        "config": schema.decisive(config),
        "store_sha256": store.fingerprint,
        "set": None if distilled is None else dict(distilled.provenance),
        "versions": versions(),
    }
    return Diagnosis(
        groups=store.layers.group_names,
        layers=store.layers.names,
        shapes=shapes,
        shared=shared(experts, store.endpoints[-1]),
        ceilings=ceilings,
        endpoint=endpoint,
        signals=told,
        reached=tuple(rolled_out),
        lost=lost,
        findings=found,
        provenance=provenance,
    )


def _endpoint(config: DiagnoseConfig, store: TrajectoryStore) -> int:
    endpoint = config.endpoint or store.endpoints[-1]
    if endpoint not in store.endpoints:
        kept = ", ".join(map(str, store.endpoints))
        raise InputError(f"endpoint: expected one that is kept in {store.path} ({kept}), found {endpoint}; choose it")
    return endpoint


def _made_by(distilled: DistilledSet, store: TrajectoryStore) -> DistillConfig:
    """The settings that a set was distilled with. Raises InputError where it is of other experts."""
    of, record = distilled.provenance.get("store_sha256"), distilled.provenance.get("config")
    selected = distilled.provenance.get("method") in get_args(Selection)
    if record is None or selected or of != store.fingerprint:
        found = "real pairs" if selected else "none that is recorded" if record is None or of is None else "other ones"
        raise InputError(f"set: expected one that was distilled from the experts of {store.path}, found {found}")
    made_by = schema.from_json(DistillConfig, record)
    refuse_unknown_lines(made_by, store.endpoints)
    return made_by


def _lines(endpoints: tuple[int, ...]) -> tuple[int, ...]:
    """Up to some kept end points, evenly from the last one down; a line to the first epoch has no points between."""
    long = [endpoint for endpoint in endpoints if endpoint > 1]
    every = -(-len(long) // _MOST_LINES)
    return tuple(long[::-1][::every][::-1]) if long else ()


def _signals(
    config: DiagnoseConfig,
    made_by: DistillConfig | None,
    store: TrajectoryStore,
    real: tuple[Pairs, Tensor],
    experts: Mapping[int, Expert],
    student: Student,
    endpoint: int,
) -> dict[str, dict[int, dict[str, Signal]]]:
    """Of truncated gradients, under the loss of the set if there is one."""
    device = student.device
    there = {number: expert.to(device) for number, expert in experts.items()}
    lr = config.student_lr or (store.recipe.teaching.lr if store.recipe.teaching else DistillConfig.student_lr)
    steps = DistillConfig(
        phases=(Phase(config.pairs, endpoint, (0, endpoint)),),
        inner_steps=config.inner_steps,
        batch_size=config.batch_size,
        loss="wbce" if made_by is None else made_by.loss,
        temperature=store.recipe.temperature if made_by is None else made_by.temperature,
        image_leaves="pixels" if student.frozen is None else "features",
        student_lr=lr,
        adjoint=0.0,
        adjoint_clip=None,
        compile="off",
        seed=config.seed,
    )
    step = OuterStep.of(student, settled(steps, store, student))
    (pairs,) = initial_phases(steps, student, real)
    draws = [
        draw_batches(config.pairs, config.batch_size, config.inner_steps, generator(config.seed, "diagnosis", number))
        for number in range(config.draws)
    ]
    kinds: dict[str, Callable[[Expert], Trajectory]] = {"shortcut": lambda expert: expert.shortcut(endpoint)}
    if {*range(1, endpoint + 1)} <= {*store.endpoints}:
        kinds = {"raw": lambda expert: expert.raw(), **kinds}
    batches = [devices.sent(one, device) for one in draws]
    with progress.bar("gradients", len(kinds) * endpoint * len(experts) * config.draws) as bar:
        return {
            kind: signals(step, there, along, range(endpoint), pairs.to(device), batches, bar.advance)
            for kind, along in kinds.items()
        }


def _mean_recalls(ceilings: Mapping[int, Ceiling]) -> dict[int, float]:
    every = list(ceilings.values())
    return {t: mean(one.epochs[t].recall for one in every) for t in every[0].epochs}


def _plain(value: Any) -> Any:
    """As JSON has it: tensors as lists, keys as strings, no infinity."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not torch.isfinite(torch.tensor(value)):
        return None
    return value
