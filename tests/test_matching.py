"""The matching loss and its gradient against float64 autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oracles import relative_error
from ptmst.errors import InputError
from ptmst.flat import LayerTable
from ptmst.matching import TrajectoryMatchingLoss

TABLE = LayerTable(("image.a", "text.b", "text.c"), ((31, 4), (255,), (3,)), (0, 1, 1))
SIZES = (124, 258)


def span() -> tuple[Tensor, Tensor, Tensor]:
    """θ, start and target, with distances as they are in training: small against the parameters."""
    start = torch.randn(382)
    return start + 0.02 * torch.randn(382), start, start + 0.05 * torch.randn(382)


def terms(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
    far, whole = (theta - target).split(SIZES), (start - target).split(SIZES)
    return torch.stack([(a**2).sum() / (b**2).sum() for a, b in zip(far, whole, strict=True)])


def gradient(loss_of: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf), leaf)[0]


def test_loss_and_gradient() -> None:
    theta, start, target = span()
    loss = TrajectoryMatchingLoss(TABLE)
    found = loss(theta, start, target)
    wide = [v.double() for v in (theta, start, target)]
    exact = terms(*wide)
    by_hand = gradient(lambda v: terms(v, *wide[1:]).sum(), wide[0])
    plain = gradient(lambda v: terms(v, start, target).sum(), theta)
    ours = gradient(lambda v: 3 * loss(v, start, target).loss, theta)
    assert relative_error(found.per_group, exact) <= 2 * relative_error(terms(theta, start, target), exact) + 1e-7
    assert relative_error(found.loss, exact.sum()) <= 1e-6
    assert relative_error(ours, 3 * by_hand) <= 2 * relative_error(plain, by_hand) + 1e-7
    assert relative_error(found.adjoint, by_hand) <= 2 * relative_error(plain, by_hand) + 1e-7


def test_float64_to_the_last_digits() -> None:
    theta, start, target = (v.double() for v in span())
    ours = gradient(lambda v: TrajectoryMatchingLoss(TABLE)(v, start, target).loss, theta)
    assert relative_error(ours, gradient(lambda v: terms(v, start, target).sum(), theta)) <= 1e-13


def progressed(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """⟨∂L/∂θ, θ − start⟩ over each group."""
    moved = gradient(lambda v: terms(v, start, target).sum(), theta) * (theta - start)
    return torch.stack([part.sum() for part in moved.split(SIZES)])


def test_progress_is_the_gradient_along_the_way() -> None:
    theta, start, target = span()
    found = TrajectoryMatchingLoss(TABLE)(theta, start, target).progress
    wide = [v.double() for v in (theta, start, target)]
    exact, plain = progressed(*wide), progressed(theta, start, target)
    assert found.shape == (2,)
    assert relative_error(found, exact) <= 2 * relative_error(plain, exact) + 1e-6
    assert relative_error(TrajectoryMatchingLoss(TABLE)(*wide).progress, exact) <= 1e-13


def test_progress_is_the_slope_of_the_step_length() -> None:
    """θ = start + s (θ₁ − start): dL/ds at s = 1, which over η is the truncated gradient in η."""
    theta, start, target = (v.double() for v in span())
    sizes = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.cat([size.expand(count) for size, count in zip(sizes, SIZES, strict=True)])
    (slope,) = torch.autograd.grad(terms(start + scale * (theta - start), start, target).sum(), sizes)
    assert relative_error(TrajectoryMatchingLoss(TABLE)(theta, start, target).progress, slope) <= 1e-12


def test_lists_of_layers() -> None:
    theta, start, target = span()
    leaves = [part.clone().requires_grad_() for part in TABLE.split(theta)]
    loss = TrajectoryMatchingLoss(TABLE)
    found = loss(leaves, list(TABLE.split(start)), target).loss
    gradients = torch.autograd.grad(found, leaves)
    assert torch.equal(TABLE.flatten(gradients), TrajectoryMatchingLoss(TABLE)(theta, start, target).adjoint)


def test_only_the_loss_is_differentiable_and_once() -> None:
    theta, start, target = span()
    leaf = theta.requires_grad_()
    found = TrajectoryMatchingLoss(TABLE)(leaf, start.requires_grad_(), target)
    assert not found.per_group.requires_grad
    assert not found.adjoint.requires_grad and not found.progress.requires_grad
    (first,) = torch.autograd.grad(found.loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="TrajectoryMatchingLoss is differentiable once"):
        torch.autograd.grad(first.sum(), leaf)


def test_a_still_group_is_named() -> None:
    theta, start, target = span()
    target[:124] = start[:124]
    with pytest.raises(InputError, match=r"^group image: expected a span that moves, found start equal to target"):
        TrajectoryMatchingLoss(TABLE)(theta, start, target)
    with pytest.raises(InputError, match=r"^group image, text: "):
        TrajectoryMatchingLoss(TABLE)(theta, start, start)


def test_another_network_is_refused() -> None:
    theta, start, target = span()
    loss = TrajectoryMatchingLoss(TABLE)
    with pytest.raises(InputError, match=r"start: expected a vector of 382 parameters, found shape \(381,\); flatten"):
        loss(theta, start[1:], target)
    with pytest.raises(InputError, match="the table is of another network"):
        loss([theta], start, target)
