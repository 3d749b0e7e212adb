"""The shape of an expert's trajectory: how long its steps are, how straight it is, what experts share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmst.students.layers import LayerTable
from ptmst.trajectories.shortcut import Expert


@dataclass(frozen=True)
class Shape:
    """Of one expert. Groups are those of the layer table."""

    endpoints: tuple[int, ...]
    """The kept epochs."""
    step_norms: Tensor
    """[E, G], ‖θ^{k+1} − θ^k‖ of every epoch."""
    straightness: Tensor
    """[kept, G], ‖θ^K − θ⁰‖ over the length of the path to K: 1 is a straight line."""
    straightness_of_layers: Tensor
    """[L], of every layer at the last kept epoch; 1 where it never moved."""
    turns: Tensor
    """[turns, G], cosines between a step and the next one, at the epochs `turns_at` between them; where three epochs
    in a row are kept."""
    turns_at: tuple[int, ...]


def shape(expert: Expert) -> Shape:
    """The shape of a trajectory. Vectors [P] of three epochs are held at a time."""
    layers, endpoints = expert.layers, tuple(sorted(expert.displacements))
    steps = layers.group_norms(expert.step_norms)
    moved = torch.stack([expert.displacements[k].norms for k in endpoints])
    walked = torch.stack([expert.step_norms[:k].sum(0) for k in endpoints])
    walked_by_group = torch.stack([steps[:k].sum(0) for k in endpoints])
    raw, turns, turns_at = expert.raw(), list[Tensor](), list[int]()
    points, kept = dict[int, Tensor](), {0, *endpoints}
    for t in range(1, expert.step_norms.shape[0]):
        if {t - 1, t, t + 1} <= kept:
            points = {k: points[k] if k in points else raw.point(k) for k in (t - 1, t, t + 1)}
            turns.append(cosine(layers, points[t] - points[t - 1], points[t + 1] - points[t]))
            turns_at.append(t)
    return Shape(
        endpoints,
        steps,
        _ratio(layers.group_norms(moved), walked_by_group),
        _ratio(moved[-1], walked[-1]),
        torch.stack(turns) if turns else torch.empty(0, layers.num_groups),
        tuple(turns_at),
    )


def cosine(layers: LayerTable, a: Tensor, b: Tensor) -> Tensor:
    """[G], between two vectors [P]; 0 where one has no length."""
    return _ratio(layers.dot(a, b), (layers.dot(a, a) * layers.dot(b, b)).sqrt(), 0.0)


def _ratio(a: Tensor, b: Tensor, otherwise: float = 1.0) -> Tensor:
    return torch.where(b > 0, a / b.where(b > 0, 1.0), otherwise)


@dataclass(frozen=True)
class Shared:
    """What the displacements of several experts have in common, at one end point."""

    cosine: Tensor
    """[G], the mean over pairs of experts; 1 for a single one."""
    leading: Tensor
    """[G], the share of the leading direction: 1 where all move alike, 1/n where n experts have nothing in common."""


def shared(experts: Mapping[int, Expert], endpoint: int) -> Shared:
    """The moves of all experts from θ⁰ to an end point, which are held at a time."""
    layers = next(iter(experts.values())).layers
    moves = [expert.displacements[endpoint].decode(layers) for expert in experts.values()]
    gram = _cosines(layers, moves)
    count = len(moves)
    others = (gram.sum((0, 1)) - count) / (count * (count - 1)) if count > 1 else torch.ones(layers.num_groups)
    leading = torch.stack([torch.linalg.eigvalsh(one.double())[-1] / count for one in gram.unbind(-1)]).float()
    return Shared(others, leading)


def _cosines(layers: LayerTable, vectors: Sequence[Tensor]) -> Tensor:
    """[n, n, G] between n vectors [P]."""
    gram = torch.ones(len(vectors), len(vectors), layers.num_groups)
    for i, one in enumerate(vectors):
        for j in range(i):
            gram[i, j] = gram[j, i] = cosine(layers, one, vectors[j])
    return gram
