"""Where students of a set stand on the experts' lines: how far along, how far off, and what lies between two phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from ptmst.config import DistillConfig, EvaluateConfig, Phase
from ptmst.diagnosis.ceilings import Judge, Point
from ptmst.errors import Diverged, InputError
from ptmst.evaluation.students import train_students
from ptmst.students.student import Student
from ptmst.support import progress
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.trajectories.shortcut import Expert


@dataclass(frozen=True)
class Reached:
    """Students after a phase, each of which began at an expert's θ⁰; means over those that did not diverge."""

    phase: int
    """From 1."""
    point: Point
    """How good they are."""
    along: tuple[float, ...]
    """By group, ⟨θ − θ⁰, δ⟩ / ‖δ‖²: 0 is the start, 1 the phase's end point."""
    off: tuple[float, ...]
    """By group, the distance from the line between the two over ‖δ‖."""
    gap: Gap | None
    """To where the next phase begins; None after the last, where the next one begins at θ⁰ again, and in a progressive
    set, whose phases begin where students stand."""


@dataclass(frozen=True)
class Gap:
    """The knowledge gap between two phases: from where students stand to where the next one takes them to be."""

    start: int
    """The epoch at which the next phase first begins."""
    distance: tuple[float, ...]
    """By group, ‖θ − θ(start)‖ over ‖θ(start) − θ⁰‖: 1 is as far as from the very beginning."""
    recall: float
    """Points of mean recall that the trajectory is ahead at that epoch."""


def refuse_unknown_lines(made_by: DistillConfig, kept: Sequence[int]) -> None:
    """Raises InputError where the end point of a phase is not kept: of raw trajectories it need not be."""
    for number, phase in enumerate(made_by.phases, start=1):
        if phase.endpoint not in kept:
            raise InputError(
                f"set: expected phases to end at kept epochs ({', '.join(map(str, kept))}), found phase {number} to "
                f"end at {phase.endpoint}; teach with it among --endpoints, or leave the set out"
            )


def reached(
    distilled: DistilledSet,
    made_by: DistillConfig,
    experts: Mapping[int, Expert],
    student: Student,
    judge: Judge,
    config: EvaluateConfig,
) -> tuple[list[Reached], int]:
    """Train a student from every expert's θ⁰ as `config` says, one by one, and measure it after every phase.

    Also how many of them diverged, of which nothing else is known.
    """
    of_experts, lost = list[list[_Stand]](), 0
    with progress.bar("students", len(experts)) as bar:
        for number, expert in experts.items():
            try:
                of_experts.append(_stands(distilled, made_by, expert, number, student, judge, config))
            except Diverged:
                lost += 1
            bar.advance(f"expert {number}")
    return [_mean_of(number, stands) for number, stands in enumerate(zip(*of_experts, strict=True), start=1)], lost


@dataclass(frozen=True)
class _Stand:
    """One student after one phase."""

    point: Point
    along: Tensor
    off: Tensor
    start: int | None
    distance: Tensor | None
    ahead: float


def _stands(
    distilled: DistilledSet,
    made_by: DistillConfig,
    expert: Expert,
    number: int,
    student: Student,
    judge: Judge,
    config: EvaluateConfig,
) -> list[_Stand]:
    epochs, found = config.epochs + 1, list[_Stand]()
    draw = (config.seed, "rolled out", number)
    for epoch, (theta,) in train_students(student, expert.base[None].to(student.device), distilled, config, [draw]):
        if (epoch + 1) % epochs == 0:
            found.append(_stand(theta.cpu(), len(found), made_by, expert, judge))
    return found


def _stand(theta: Tensor, number: int, made_by: DistillConfig, expert: Expert, judge: Judge) -> _Stand:
    layers, here, phases = expert.layers, judge(theta), made_by.phases
    move, delta = theta - expert.base, expert.displacements[phases[number].endpoint].decode(layers)
    squared = layers.dot(delta, delta)
    along = layers.dot(move, delta) / squared
    rest = move - layers.scaled(delta, along)
    off = (layers.dot(rest, rest) / squared).sqrt()
    following = _begins_elsewhere(made_by, number)
    if following is None:
        return _Stand(here, along, off, None, None, 0.0)
    start = following.start[0]
    raw = made_by.trajectory == "raw"
    target = expert.raw().point(start) if raw else expert.shortcut(following.endpoint).point(start)
    away, whole = theta - target, target - expert.base
    distance = (layers.dot(away, away) / layers.dot(whole, whole)).sqrt()
    return _Stand(here, along, off, start, distance, judge(target).recall - here.recall)


def _begins_elsewhere(made_by: DistillConfig, number: int) -> Phase | None:
    """The phase after this one, where it begins at a point of the trajectory other than θ⁰."""
    if made_by.progressive or number + 1 == len(made_by.phases):
        return None
    following = made_by.phases[number + 1]
    return following if following.start[0] else None


def _mean_of(number: int, stands: Sequence[_Stand]) -> Reached:
    gap, start = None, stands[0].start
    if start is not None:
        distances = [stand.distance for stand in stands if stand.distance is not None]
        gap = Gap(start, _mean(distances), mean(stand.ahead for stand in stands))
    point = Point(mean(stand.point.recall for stand in stands), mean(stand.point.loss for stand in stands))
    return Reached(number, point, _mean([s.along for s in stands]), _mean([s.off for s in stands]), gap)


def _mean(vectors: Sequence[torch.Tensor]) -> tuple[float, ...]:
    return tuple(torch.stack(list(vectors)).mean(0).tolist())
