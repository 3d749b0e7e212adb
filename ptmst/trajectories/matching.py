"""The trajectory-matching loss and its gradient in the student's last parameters (docs/method.md §4, paper eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ptmst import kernels
from ptmst.errors import InputError
from ptmst.kernels.ops import register
from ptmst.students.layers import LayerTable

Residual = tuple[Tensor, Tensor, Tensor]
"""θ_n − θ_target [P]; per group [G] its squared length, and its inner product with θ_n − θ_start."""


class Match(NamedTuple):
    """L = Σ_g ‖θ_n − θ_target‖²_g / ‖θ_start − θ_target‖²_g."""

    loss: Tensor
    """Scalar L."""
    per_group: Tensor
    """[G], the terms of L."""
    adjoint: Tensor
    """[P], λ_n = ∂L/∂θ_n."""
    progress: Tensor
    """[G], ⟨λ_n, θ_n − θ_start⟩: the truncated ∂L/∂η is this over η."""


def match(residual: Residual, distance: Tensor, layers: LayerTable) -> Match:
    """The match from a residual and the span's squared length [G], which is not 0."""
    vector, squared, progress = residual
    per_group, scale = squared / distance, 2 / distance
    return Match(per_group.sum(), per_group, layers.scaled(vector, scale), progress * scale)


def squared_length(start: Tensor, target: Tensor, layers: LayerTable, span: str = "") -> Tensor:
    """‖θ_start − θ_target‖² of [P] and [P] per group [G]. Raises InputError where a group's span has length 0."""
    offset = start - target
    return refuse_still(layers.dot(offset, offset), layers, span)


def refuse_still(distance: Tensor, layers: LayerTable, span: str = "") -> Tensor:
    """The squared length of a span per group [G], as it is. Raises InputError where one is 0.

    A torch op, since it reads what it is given: compiled code runs it too.
    """
    checked: Tensor = _REFUSE_STILL(distance, list(layers.group_names), span)
    return checked


def _refuse_still(distance: Tensor, names: list[str], span: str) -> Tensor:
    still = [name for name, d in zip(names, distance.tolist(), strict=True) if d == 0]
    if still:
        raise InputError(
            f"{span and f'span {span}, '}group {', '.join(still)}: expected a span that moves, found start equal to "
            "target; match other epochs, or leave the group out of the student"
        )
    return distance.clone()


_REFUSE_STILL = register(
    "refuse_still(Tensor distance, str[] names, str span) -> Tensor",
    _refuse_still,
    lambda distance, names, span: torch.empty_like(distance),
)


class MatchingSpan(Protocol):
    """What a student is matched against: where a span ends, and how long it is."""

    @property
    def distance(self) -> Tensor:
        """[G], the span's squared length; not 0."""

    def residual(self, theta: Tensor) -> Residual:
        """Of θ [P] against the target; differentiable in θ, once."""


class Matched(NamedTuple):
    """L = Σ_g ‖θ − θ_target‖²_g / ‖θ_start − θ_target‖²_g."""

    loss: Tensor
    """Scalar L."""
    per_group: Tensor
    """[G], the terms of L."""


class TrajectoryMatchingLoss(nn.Module):
    """Drop-in trajectory-matching loss for any code base that differentiates through an inner loop.

    `forward(theta, start, target) -> Matched`, each argument a flat vector [P] or the list of the layers' tensors;
    `forward(theta, span)` with a span of a trajectory. Differentiable once, in `theta`: the backward pass is the
    residual, scaled, in one pass over the parameters. Any torch op may stand before it, and torch.compile goes
    through it. Raises InputError where a group's start is its target, and for vectors of another network.
    """

    def __init__(self, layers: LayerTable) -> None:
        super().__init__()
        self.layers = layers

    def forward(
        self,
        theta: Tensor | Sequence[Tensor],
        start: Tensor | Sequence[Tensor] | MatchingSpan,
        target: Tensor | Sequence[Tensor] | None = None,
    ) -> Matched:
        """The loss of θ [P] against the way from `start` to `target` [P], or against a span: scalar and terms [G].

        Raises InputError for vectors of another network, and for a start that is the target.
        """
        student = self._flat("theta", theta)
        if target is None:
            if isinstance(start, Tensor | Sequence):
                raise InputError("target: expected it beside a plain start, found none; give it, or give a span alone")
            _, squared, _ = start.residual(student)
            distance = start.distance
        else:
            if not isinstance(start, Tensor | Sequence):
                raise InputError("target: expected none, since a span knows its own; leave it out")
            points = self._flat("start", start).detach(), self._flat("target", target).detach()
            layers = self.layers
            _, squared, _, distance = kernels.vector_residual(
                student, *points, layers.offsets, layers.groups, layers.num_groups
            )
            distance = refuse_still(distance, layers)
        per_group = squared / distance
        return Matched(per_group.sum(), per_group)

    def _flat(self, name: str, value: Tensor | Sequence[Tensor]) -> Tensor:
        vector = value if isinstance(value, Tensor) else self.layers.flatten(value)
        if vector.shape != (self.layers.num_params,):
            raise InputError(
                f"{name}: expected a vector of {self.layers.num_params} parameters, found shape "
                f"{tuple(vector.shape)}; flatten it in the layers' order"
            )
        return vector
