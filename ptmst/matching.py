"""The trajectory-matching loss and its gradient in the student's last parameters (METHOD §4, paper eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ptmst.errors import InputError
from ptmst.flat import LayerTable


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


def match(theta: Tensor, start: Tensor, target: Tensor, distance: Tensor, layers: LayerTable) -> Match:
    """Match θ_n [P] against a span from `start` [P] to `target` [P] of squared length `distance` [G]."""
    residual = theta - target
    return match_residual(
        residual, layers.dot(residual, residual), layers.dot(residual, theta - start), distance, layers
    )


def match_residual(residual: Tensor, squared: Tensor, progress: Tensor, distance: Tensor, layers: LayerTable) -> Match:
    """The match from residual θ_n − θ_target [P], and per group [G] its squared norm, its inner product with
    θ_n − θ_start, and the span's squared length, which is not 0."""
    per_group, scale = squared / distance, 2 / distance
    return Match(per_group.sum(), per_group, residual * layers.expand(scale), progress * scale)


def squared_length(start: Tensor, target: Tensor, layers: LayerTable) -> Tensor:
    """‖θ_start − θ_target‖² of [P] and [P] per group [G]. Raises InputError where a group's span has length 0."""
    offset = start - target
    return refuse_still(layers.dot(offset, offset), layers)


def refuse_still(distance: Tensor, layers: LayerTable) -> Tensor:
    """The squared length of a span per group [G], as it is. Raises InputError where one is 0."""
    still = [name for name, d in zip(layers.group_names, distance.tolist(), strict=True) if d == 0]
    if still:
        raise InputError(
            f"group {', '.join(still)}: expected a span that moves, found start equal to target; "
            "match other epochs, or leave the group out of the student"
        )
    return distance


class TrajectoryMatchingLoss(nn.Module):
    """Drop-in trajectory-matching loss for any code base that differentiates through an inner loop.

    `forward(theta, start, target) -> Match`, each argument a flat vector [P] or the list of the layers' tensors.
    Only `loss` is differentiable, once and in `theta`; its gradient is the residual, found in the forward pass.
    """

    def __init__(self, layers: LayerTable) -> None:
        super().__init__()
        self.layers = layers

    def forward(
        self, theta: Tensor | Sequence[Tensor], start: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]
    ) -> Match:
        flat = [v if isinstance(v, Tensor) else self.layers.flatten(v) for v in (theta, start, target)]
        for name, vector in zip(("theta", "start", "target"), flat, strict=True):
            if vector.shape != (self.layers.num_params,):
                raise InputError(
                    f"{name}: expected a vector of {self.layers.num_params} parameters, found shape "
                    f"{tuple(vector.shape)}; flatten it in the layers' order"
                )
        return Match(*_MatchingLoss.apply(*flat, self.layers))


class _MatchingLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, start: Tensor, target: Tensor, layers: LayerTable) -> Match:
        found = match(theta, start, target, squared_length(start, target, layers), layers)
        ctx.save_for_backward(theta, found.adjoint)
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        theta, adjoint = ctx.saved_tensors
        return grad_loss * _Once.apply(theta, adjoint), None, None, None


class _Once(torch.autograd.Function):
    """λ_n as a function of θ_n that raises where it is differentiated.

    `once_differentiable` does so only for a second derivative by way of the incoming gradient: by way of θ_n it
    would be dropped without a word.
    """

    @staticmethod
    def forward(ctx: Any, theta: Tensor, adjoint: Tensor) -> Tensor:
        return adjoint.view_as(adjoint)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None]:
        raise RuntimeError("TrajectoryMatchingLoss is differentiable once; for a second derivative use autograd's own")
