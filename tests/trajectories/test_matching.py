"""The matching loss and its gradient against float64 autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oracles import relative_error
from ptmst import kernels
from ptmst.errors import InputError
from ptmst.students.layers import LayerTable
from ptmst.trajectories.matching import Match, TrajectoryMatchingLoss, match, refuse_still, squared_length
from ptmst.trajectories.shortcut import Displacement, Shortcut
from ptmst.trajectories.spans import RawSpan

TABLE = LayerTable(("image.a", "text.b", "text.c"), ((31, 4), (255,), (3,)), (0, 1, 1))
SIZES = (124, 258)


def span() -> tuple[Tensor, Tensor, Tensor]:
    """θ, start and target, with distances as they are in training: small against the parameters."""
    start = torch.randn(382)
    return start + 0.02 * torch.randn(382), start, start + 0.05 * torch.randn(382)


def terms(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
    far, whole = (theta - target).split(SIZES), (start - target).split(SIZES)
    return torch.stack([(a**2).sum() / (b**2).sum() for a, b in zip(far, whole, strict=True)])


def matched(theta: Tensor, start: Tensor, target: Tensor) -> Match:
    residual = kernels.vector_residual(theta, start, target, TABLE.offsets, TABLE.groups)[:3]
    return match(residual, squared_length(start, target, TABLE), TABLE)


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
    assert relative_error(matched(theta, start, target).adjoint, by_hand) <= 2 * relative_error(plain, by_hand) + 1e-7


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
    found = matched(theta, start, target).progress
    wide = [v.double() for v in (theta, start, target)]
    exact, plain = progressed(*wide), progressed(theta, start, target)
    assert found.shape == (2,)
    assert relative_error(found, exact) <= 2 * relative_error(plain, exact) + 1e-6
    assert relative_error(matched(*wide).progress, exact) <= 1e-13


def test_progress_is_the_slope_of_the_step_length() -> None:
    """θ = start + s (θ₁ − start): dL/ds at s = 1, which over η is the truncated gradient in η."""
    theta, start, target = (v.double() for v in span())
    sizes = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.cat([size.expand(count) for size, count in zip(sizes, SIZES, strict=True)])
    (slope,) = torch.autograd.grad(terms(start + scale * (theta - start), start, target).sum(), sizes)
    assert relative_error(matched(theta, start, target).progress, slope) <= 1e-12


def test_lists_of_layers() -> None:
    theta, start, target = span()
    leaves = [part.clone().requires_grad_() for part in TABLE.split(theta)]
    loss = TrajectoryMatchingLoss(TABLE)
    gradients = torch.autograd.grad(loss(leaves, list(TABLE.split(start)), target).loss, leaves)
    flat = gradient(lambda v: loss(v, start, target).loss, theta)
    assert torch.equal(TABLE.flatten(gradients), flat)


def shortcut() -> Shortcut:
    draw = torch.Generator().manual_seed(1)
    moved = Displacement.encode(0.05 * torch.randn(382, generator=draw), TABLE)
    beta = torch.linspace(0, 1, 4)[:, None] * torch.tensor([1.0, 0.9, 1.0])
    return Shortcut(TABLE, torch.randn(382, generator=draw), moved, beta)


def test_spans_of_a_trajectory() -> None:
    """On a shortcut and between raw points, as between the plain vectors that they stand for."""
    trajectory, theta = shortcut(), span()[0]
    start, target = trajectory.point(1), trajectory.point(3)
    exact = terms(theta.double(), start.double(), target.double())
    by_hand = gradient(lambda v: terms(v, start.double(), target.double()).sum(), theta.double())
    loss = TrajectoryMatchingLoss(TABLE)
    for given in (trajectory.span(1, 3), RawSpan.between(start, target, TABLE)):
        assert relative_error(loss(theta, given).per_group, exact) <= 1e-5
        ours = gradient(lambda v, given=given: loss(v, given).loss, theta)  # type: ignore[misc]
        assert relative_error(ours, by_hand) <= 1e-5


def test_each_group_can_be_weighed() -> None:
    theta, start, target = span()
    weights = torch.tensor([2.0, -0.5])
    ours = gradient(lambda v: (weights * TrajectoryMatchingLoss(TABLE)(v, start, target).per_group).sum(), theta)
    wide = [v.double() for v in (start, target)]
    assert relative_error(ours, gradient(lambda v: (weights * terms(v, *wide)).sum(), theta.double())) <= 1e-5


def test_inside_a_plain_inner_loop() -> None:
    """As other code bases match: autograd through an unrolled loop, and the loss at its end."""
    _, start, target = span()
    leaf = torch.randn(382, dtype=torch.float64)

    def trained(pull: Tensor, begin: Tensor) -> Tensor:
        for _ in range(3):
            begin = begin - 0.1 * torch.tanh(begin * pull)
        return begin

    ours = gradient(lambda v: TrajectoryMatchingLoss(TABLE)(trained(v, start), start, target).loss, leaf.float())
    wide = [v.double() for v in (start, target)]
    exact = gradient(lambda v: terms(trained(v, wide[0]), *wide).sum(), leaf)
    assert relative_error(ours, exact) <= 1e-5


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    theta, start, target = span()
    # Of its own, so that the first to use it is the compiler.
    loss = TrajectoryMatchingLoss(LayerTable.from_json(TABLE.to_json()))
    compiled = torch.compile(lambda v, a, b: 2 * loss(torch.tanh(v), a, b).loss, fullgraph=True, backend="aot_eager")
    ours = gradient(lambda v: compiled(v, start, target), theta)
    assert relative_error(ours, gradient(lambda v: 2 * loss(torch.tanh(v), start, target).loss, theta)) <= 1e-6
    still = target.clone()
    still[124:] = start[124:]
    with pytest.raises(InputError, match="group text: expected a span that moves"):
        compiled(theta, start, still)
    torch.compiler.reset()


def test_it_is_differentiable_in_theta_and_once() -> None:
    theta, start, target = span()
    leaf = theta.requires_grad_()
    found = TrajectoryMatchingLoss(TABLE)(leaf, start.requires_grad_(), target.requires_grad_())
    (first,) = torch.autograd.grad(found.loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="vector_residual is differentiable once; for a second derivative use"):
        torch.autograd.grad(first.sum(), leaf)
    with pytest.raises(RuntimeError, match="vector_residual: expected no forward-mode differentiation"):
        torch.func.jvp(lambda v: TrajectoryMatchingLoss(TABLE)(v, start, target).loss, (theta,), (theta,))


def test_a_still_group_is_named() -> None:
    theta, start, target = span()
    target[:124] = start[:124]
    with pytest.raises(InputError, match=r"^group image: expected a span that moves, found start equal to target; mat"):
        TrajectoryMatchingLoss(TABLE)(theta, start, target)
    with pytest.raises(InputError, match=r"^group image, text: "):
        TrajectoryMatchingLoss(TABLE)(theta, start, start)
    with pytest.raises(InputError, match=r"^span 2 → 2, group image, text: expected a span that moves"):
        shortcut().span(2, 2)


def test_a_checked_length_is_a_new_tensor() -> None:
    distance = torch.tensor([1.0, 2.0])
    checked = refuse_still(distance, TABLE)
    assert torch.equal(checked, distance) and checked.data_ptr() != distance.data_ptr()


def test_another_network_is_refused() -> None:
    theta, start, target = span()
    loss = TrajectoryMatchingLoss(TABLE)
    with pytest.raises(InputError, match=r"start: expected a vector of 382 parameters, found shape \(381,\); flatten"):
        loss(theta, start[1:], target)
    with pytest.raises(InputError, match="the table is of another network"):
        loss([theta], start, target)


def test_a_span_has_its_own_target() -> None:
    theta, start, target = span()
    loss = TrajectoryMatchingLoss(TABLE)
    with pytest.raises(
        InputError, match=r"^target: expected it beside a plain start, found none; give it, or give a sp"
    ):
        loss(theta, start)
    with pytest.raises(InputError, match=r"^target: expected none, since a span knows its own; leave it out"):
        loss(theta, shortcut().span(0, 1), target)


@pytest.mark.slow
def test_long_vectors_are_summed_exactly() -> None:
    """At the size of NFNet, where plain float32 sums are off by 10⁻³; to the same bits for any number of threads."""
    sizes = (32_769_488, 7_087_104)
    table = LayerTable(("image.a", "text.a"), ((sizes[0],), (sizes[1],)), (0, 1))
    start = torch.randn(sum(sizes))
    target = start + 1e-2 * torch.rand(sum(sizes))
    # Start and target are the same numbers in float64; their difference is rounded once, as in training.
    moved = (start - target).double().split(sizes)
    squared = torch.stack([part @ part for part in moved])
    terms = [a * b for a, b in zip(moved, start.double().split(sizes), strict=True)]
    inner, size = (torch.stack([part.sum() for part in parts]) for parts in (terms, [part.abs() for part in terms]))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((RawSpan.between(start, target, table).distance, table.dot(start - target, start)))
        assert relative_error(found[-1][0], squared) <= 1e-6
        assert ((found[-1][1].double() - inner).abs() <= 1e-6 * size).all()
    for distance, product in found:
        assert torch.equal(distance, found[0][0]) and torch.equal(product, found[0][1])


@pytest.mark.parametrize("parameters", [0, 1, 3, (1 << 14) - 1, 1 << 14, 70_001])
def test_sums_of_any_length(parameters: int) -> None:
    table = LayerTable(("a.a", "b.a"), ((parameters,), (5,)), (0, 1), ("a", "b"))
    a, b = torch.randn(2, parameters + 5)
    terms = (a.double() * b.double()).split((parameters, 5))
    # What rounding may do to a sum is in proportion to the sizes of its terms, which may cancel.
    exact, size = (torch.stack([part.sum() for part in parts]) for parts in (terms, [part.abs() for part in terms]))
    assert ((table.dot(a, b).double() - exact).abs() <= 1e-6 * size).all()
    assert ((table.dot(a.double(), b.double()) - exact).abs() <= 1e-14 * size).all()
