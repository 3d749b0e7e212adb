"""What a trajectory tells a set: the truncated gradient of real pairs, from every start point.

A set can follow what experts, start points and batches agree on. What they disagree on is noise, or pulls it about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ptmst.engine.outer_step import OuterStep
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.trajectories.shortcut import Expert, Trajectory

LEAVES = ("images", "texts")


@dataclass(frozen=True)
class Signal:
    """The gradient in one leaf from one start point, over several experts and draws of batches."""

    norm: float
    """Mean ‖g‖."""
    batches: float
    """Mean cosine between draws of batches, of the same expert."""
    experts: float
    """Mean cosine between experts, on the same batches; 1 for a single one."""
    neighbors: float | None
    """Mean cosine with the start point before, of the same expert and batches; None at the first."""
    snr: float
    """‖E g‖² over E‖g − E g‖², over draws of batches, whose inner products estimate the first without bias; 0 where
    they tell of no signal."""


def signals(
    step: OuterStep,
    experts: Mapping[int, Expert],
    trajectory: Callable[[Expert], Trajectory],
    starts: Sequence[int],
    pairs: SyntheticPairs,
    draws: Sequence[Tensor],
    advance: Callable[[], object],
) -> dict[int, dict[str, Signal]]:
    """By start point and leaf, along the trajectories of experts; a span is one epoch. `draws` are two or more batches
    [n, B] that differ.

    Gradients of all experts and draws are held for two start points.
    """
    items = list(product(experts, range(len(draws))))
    before: dict[str, Tensor] = {}
    found: dict[int, dict[str, Signal]] = {}
    for start in starts:
        rows: dict[str, list[Tensor]] = {leaf: [] for leaf in LEAVES}
        for expert in experts.values():
            span = trajectory(expert).span(start, start + 1)
            for batches in draws:
                gradient = step(span, pairs, batches)
                for leaf in LEAVES:
                    rows[leaf].append(gradient.grads[leaf].flatten().clone())
                advance()
        now = {leaf: torch.stack(vectors) for leaf, vectors in rows.items()}
        found[start] = {leaf: _signal(now[leaf], before.get(leaf), items) for leaf in LEAVES}
        before = now
    return found


def _signal(now: Tensor, before: Tensor | None, items: Sequence[tuple[int, int]]) -> Signal:
    """Of gradients [n, M], each of an (expert, draw)."""
    gram = (now @ now.T).double()
    length = gram.diagonal().sqrt()
    cosines = gram / torch.outer(length, length)
    expert, draw = torch.tensor(items).unbind(1)
    alike, other = expert[:, None] == expert, ~torch.eye(len(items), dtype=torch.bool)
    between = alike & other
    across = (draw[:, None] == draw) & other
    signal = float(gram[between].mean())
    noise = float(gram.diagonal().mean()) - signal
    neighbors = None
    if before is not None:
        dots = (now * before).sum(1).double() / (length * before.norm(dim=1).double())
        neighbors = float(dots.mean())
    return Signal(
        norm=float(length.mean()),
        batches=float(cosines[between].mean()),
        experts=float(cosines[across].mean()) if across.any() else 1.0,
        neighbors=neighbors,
        snr=max(0.0, signal) / noise if noise > 0 else float("inf"),
    )
