"""Where students of a set stand on the experts' lines: how far along, how far off, and what lies between two phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from ptmst.config import EvaluateConfig, Phase
from ptmst.diagnosis.ceilings import Judge, Point
from ptmst.evaluation.students import train_students
from ptmst.students.student import Student
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.trajectories.shortcut import Expert


@dataclass(frozen=True)
class Reached:
    """Students after a phase, each of which began at an expert's θ⁰; means over experts."""

    phase: int
    """From 1."""
    point: Point
    """How good they are."""
    along: tuple[float, ...]
    """By group, ⟨θ − θ⁰, δ⟩ / ‖δ‖²: 0 is the start, 1 the end point of the phase's shortcut."""
    off: tuple[float, ...]
    """By group, the distance from the line over ‖δ‖."""
    gap: Gap | None
    """To where the next phase begins; None after the last, and where the next one begins at θ⁰ again."""


@dataclass(frozen=True)
class Gap:
    """The knowledge gap between two phases: from where students stand to where the next one takes them to be."""

    start: int
    """The epoch at which the next phase first begins."""
    distance: tuple[float, ...]
    """By group, ‖θ − θ(start)‖ over ‖θ(start) − θ⁰‖: 1 is as far as from the very beginning."""
    recall: float
    """Points of mean recall that the trajectory is ahead at that epoch."""


def reached(
    distilled: DistilledSet,
    phases: tuple[Phase, ...],
    experts: Mapping[int, Expert],
    student: Student,
    judge: Judge,
    config: EvaluateConfig,
) -> list[Reached]:
    """Train a student from every expert's θ⁰ as `config` says, and measure it after every phase."""
    device, epochs = student.device, config.epochs + 1
    thetas = torch.stack([expert.base for expert in experts.values()]).to(device)
    draws = [(config.seed, "rolled out", number) for number in experts]
    found: list[Reached] = []
    for epoch, trained in train_students(student, thetas, distilled, config, draws):
        if (epoch + 1) % epochs == 0:
            found.append(_measured(len(found), trained.cpu(), phases, experts, judge))
    return found


def _measured(
    number: int, thetas: torch.Tensor, phases: tuple[Phase, ...], experts: Mapping[int, Expert], judge: Judge
) -> Reached:
    points, along, off, distances, ahead = [], [], [], [], []
    following = phases[number + 1] if number + 1 < len(phases) and phases[number + 1].start[0] else None
    for theta, expert in zip(thetas, experts.values(), strict=True):
        layers, here = expert.layers, judge(theta)
        points.append(here)
        move, delta = theta - expert.base, expert.displacements[phases[number].endpoint].decode(expert.layers)
        squared = layers.dot(delta, delta)
        share = layers.dot(move, delta) / squared
        rest = move - layers.scaled(delta, share)
        along.append(share)
        off.append((layers.dot(rest, rest) / squared).sqrt())
        if following is not None:
            start = following.start[0]
            target = expert.shortcut(following.endpoint).point(start)
            away, whole = theta - target, target - expert.base
            distances.append((layers.dot(away, away) / layers.dot(whole, whole)).sqrt())
            ahead.append(judge(target).recall - here.recall)
    gap = None if following is None else Gap(following.start[0], _mean(distances), mean(ahead))
    point = Point(mean(one.recall for one in points), mean(one.loss for one in points))
    return Reached(number + 1, point, _mean(along), _mean(off), gap)


def _mean(vectors: Sequence[torch.Tensor]) -> tuple[float, ...]:
    return tuple(torch.stack(list(vectors)).mean(0).tolist())
