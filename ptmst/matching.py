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


def match(theta: Tensor, start: Tensor, target: Tensor, layers: LayerTable) -> Match:
    """Match θ_n [P] against a span from `start` [P] to `target` [P]."""
    offset = start - target
    residual = theta - target
    return match_residual(residual, layers.dot(residual, residual), layers.dot(offset, offset), layers)


def match_residual(residual: Tensor, squared: Tensor, distance: Tensor, layers: LayerTable) -> Match:
    """The match from residual θ_n − θ_target [P], its squared norm per group [G] and the span's squared length [G].

    Raises InputError where the span of a group has length 0.
    """
    still = [name for name, d in zip(layers.group_names, distance.tolist(), strict=True) if d == 0]
    if still:
        raise InputError(
            f"group {', '.join(still)}: expected a span that moves, found start equal to target; "
            "match other epochs, or leave the group out of the student"
        )
    per_group = squared / distance
    return Match(per_group.sum(), per_group, residual * layers.expand(2 / distance))


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
    def forward(
        ctx: Any, theta: Tensor, start: Tensor, target: Tensor, layers: LayerTable
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = match(theta, start, target, layers)
        ctx.save_for_backward(theta, found.adjoint)
        ctx.mark_non_differentiable(found.per_group, found.adjoint)
        return found.loss, found.per_group, found.adjoint

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
