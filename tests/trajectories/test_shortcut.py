"""Displacements in half precision, shortcuts and spans, against float64 (docs/method.md §2, §4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import oracles
from oracles import relative_error
from ptmst.errors import InputError
from ptmst.students.layers import LayerTable
from ptmst.trajectories.shortcut import Displacement, Expert, shortcut_beta

TABLE = LayerTable(
    names=("image.a", "image.still", "image.b", "text.scale", "text.c"),
    shapes=((32, 16), (7,), (507,), (), (123,)),
    group_of_layer=(0, 0, 0, 1, 1),
)
STILL, GROUPS = 1, (1026, 124)
EPOCHS, KEPT = 6, (2, 3, 5)
HALF = 2**-11
"""Largest relative error of one rounding to half precision."""


def walk() -> list[Tensor]:
    """θ after each epoch, its steps small against it; one layer never moves."""
    thetas = [torch.randn(TABLE.num_params)]
    for _ in range(EPOCHS):
        step = 0.02 * torch.randn(TABLE.num_params)
        TABLE.split(step)[STILL].zero_()
        thetas.append(thetas[-1] + step)
    return thetas


def expert(thetas: list[Tensor]) -> Expert:
    return Expert(
        TABLE,
        thetas[0],
        {k: Displacement.encode(thetas[k] - thetas[0], TABLE) for k in KEPT},
        torch.from_numpy(norms(thetas)).float(),
    )


def norms(thetas: list[Tensor]) -> np.ndarray:
    steps = [np.split((b - a).double().numpy(), TABLE.offsets.tolist()[1:-1]) for a, b in pairwise(thetas)]
    return np.array([[np.linalg.norm(part) for part in parts] for parts in steps])


def per_parameter(per_layer: Tensor) -> Tensor:
    return torch.cat([value.expand(size) for value, size in zip(per_layer, TABLE.sizes, strict=True)])


def by_hand(record: Expert, endpoint: int, t: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """θ⁰ + β(t) δ from the stored numbers."""
    d = record.displacements[endpoint]
    beta = torch.from_numpy(oracles.beta(record.step_norms.double().numpy(), endpoint))[t]
    return record.base.to(dtype) + per_parameter((beta * d.scale.double()).to(dtype)) * d.values.to(dtype)


def terms(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
    far, whole = (theta - target).split(GROUPS), (start - target).split(GROUPS)
    return torch.stack([(a**2).sum() / (b**2).sum() for a, b in zip(far, whole, strict=True)])


def gradient(loss_of: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf), leaf)[0]


@pytest.mark.parametrize("size", [10.0**-k for k in range(1, 9)] + [1e-30, 1e30])
def test_half_precision_loses_as_little_at_any_size(size: float) -> None:
    theta, delta = 0.05 * torch.randn(TABLE.num_params), torch.randn(TABLE.num_params)
    delta = delta * (size * theta.norm() / delta.norm())
    found = Displacement.encode(delta, TABLE)
    assert found.values.dtype == torch.float16 and found.scale.dtype == found.norms.dtype == torch.float32
    assert relative_error(found.decode(TABLE), delta) <= 3e-4


def test_every_layer_has_its_own_scale() -> None:
    delta = torch.randn(TABLE.num_params) * per_parameter(torch.tensor([1.0, 1e-30, 1e-9, 1e9, 1e-4]))
    found = Displacement.encode(delta, TABLE)
    for ours, theirs in zip(TABLE.split(found.decode(TABLE)), TABLE.split(delta), strict=True):
        assert relative_error(ours, theirs) <= (3e-4 if ours.numel() > 100 else HALF)
    assert (torch.frexp(found.scale).mantissa == 0.5).all()
    largest = torch.stack([part.abs().max() for part in TABLE.split(found.values.float())])
    assert (largest >= 2**14).all() and (largest <= 2**15).all()


@pytest.mark.parametrize("value", [1.0, -3.0, 2 - 2**-23, 2**-100, 65504.0, 65520.0, 1e-38])
def test_layers_of_one_element(value: float) -> None:
    table = LayerTable(("a", "b"), ((), (1,)), (0, 1))
    found = Displacement.encode(torch.tensor([value, value]), table)
    for ours in found.decode(table).tolist():
        assert ours == pytest.approx(value, rel=HALF)


def test_a_layer_that_stays_is_nothing() -> None:
    delta = torch.randn(TABLE.num_params)
    TABLE.split(delta)[STILL].zero_()
    found = Displacement.encode(delta, TABLE)
    assert (TABLE.split(found.decode(TABLE))[STILL] == 0).all()
    assert found.norms[STILL] == 0 and found.scale.isfinite().all()
    still = Displacement.encode(torch.zeros(TABLE.num_params), TABLE)
    assert (still.decode(TABLE) == 0).all() and (still.norms == 0).all()


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-30])
def test_norms_are_those_of_what_is_stored(size: float) -> None:
    delta = size * torch.randn(TABLE.num_params)
    found = Displacement.encode(delta, TABLE)
    stored = per_parameter(found.scale.double()) * found.values.double()
    expected = [part.norm().item() for part in TABLE.split(stored)]
    np.testing.assert_allclose(found.norms.numpy(), expected, rtol=2e-7)
    assert relative_error(found.norms[0], TABLE.split(delta)[0].double().norm()) > 1e-9


@pytest.mark.parametrize("endpoint", range(1, EPOCHS + 1))
def test_beta(endpoint: int) -> None:
    steps = np.random.default_rng(endpoint).gamma(1.0, size=(EPOCHS, 5)) * [1, 0, 1e-30, 1e9, 1]
    steps[:2, 4] = 0
    table = torch.from_numpy(steps).float()
    found = shortcut_beta(table, endpoint)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), oracles.beta(table.double().numpy(), endpoint), rtol=1.2e-7)
    moves = table[:endpoint].sum(0) > 0
    assert (found[0] == 0).all()
    assert torch.equal(found[-1], moves.float())
    assert torch.equal(found, shortcut_beta(table[:endpoint], endpoint))


def test_a_shortcut_runs_from_the_start_to_the_end_point() -> None:
    thetas = walk()
    for endpoint in KEPT:
        way = expert(thetas).shortcut(endpoint)
        delta = thetas[endpoint] - thetas[0]
        assert torch.equal(way.point(0), thetas[0])
        assert (way.point(endpoint) - thetas[endpoint]).norm() <= 3.1e-4 * delta.norm()


def test_points_lie_on_the_straight_way_layer_by_layer() -> None:
    thetas = walk()
    record = expert(thetas)
    for t in range(6):
        exact, found = by_hand(record, 5, t), record.shortcut(5).point(t)
        plain = by_hand(record, 5, t, torch.float32)
        assert relative_error(found, exact) <= 2 * relative_error(plain, exact)
        assert torch.equal(TABLE.split(found)[STILL], TABLE.split(thetas[0])[STILL])
        moved = 0 if t == 0 else (found - thetas[0]).norm() / (thetas[5] - thetas[0]).norm()
        assert moved == pytest.approx(t / 5, abs=0.05)


@pytest.mark.parametrize(("s", "t"), [(0, 1), (1, 2), (2, 5), (0, 5)])
def test_a_span_is_the_matching_formula(s: int, t: int) -> None:
    record = expert(walk())
    start, target = by_hand(record, 5, s), by_hand(record, 5, t)
    theta = (start + 0.01 * torch.randn(TABLE.num_params)).float()
    span = record.shortcut(5).span(s, t)
    found = span.match(theta)
    plain = theta, by_hand(record, 5, s, torch.float32), by_hand(record, 5, t, torch.float32)
    exact = terms(theta.double(), start, target)
    by_autograd = gradient(lambda v: terms(v, start, target).sum(), theta.double())
    plain_gradient = gradient(lambda v: terms(v, *plain[1:]).sum(), theta)
    assert torch.equal(span.start, record.shortcut(5).point(s))
    assert relative_error(found.per_group, exact) <= 2 * relative_error(terms(*plain), exact) + 1e-6
    assert relative_error(found.loss, exact.sum()) <= 2 * relative_error(terms(*plain), exact) + 1e-6
    assert relative_error(found.adjoint, by_autograd) <= 2 * relative_error(plain_gradient, by_autograd) + 1e-6


@pytest.mark.parametrize(("s", "t"), [(0, 1), (1, 3), (0, 5)])
def test_a_distance_is_read_from_tables_alone(s: int, t: int) -> None:
    record = expert(walk())
    expected = [part.square().sum() for part in (by_hand(record, 5, t) - by_hand(record, 5, s)).split(GROUPS)]
    way = record.shortcut(5)
    unread = torch.full_like(way.base, torch.nan)
    poisoned = replace(way, base=unread, displacement=replace(way.displacement, values=unread.half()))
    assert relative_error(poisoned.span(s, t).distance, torch.stack(expected)) <= 1e-6


@pytest.mark.parametrize("way", ["shortcut", "raw"])
def test_a_group_that_stays_has_no_span(way: str) -> None:
    thetas = walk()
    for theta in thetas:
        theta[: GROUPS[0]] = thetas[0][: GROUPS[0]]
    record = expert(thetas)
    with pytest.raises(
        InputError, match=r"^span 0 → 2, group image: expected a span that moves, found start equal to target"
    ):
        (record.shortcut(5) if way == "shortcut" else record.raw()).span(0, 2)
    with pytest.raises(InputError, match=r"^span 2 → 2, group image, text: "):
        (record.shortcut(5) if way == "shortcut" else record.raw()).span(2, 2)


@pytest.mark.parametrize(("s", "t"), [(0, 2), (2, 3), (0, 3)])
@pytest.mark.parametrize("way", ["shortcut", "raw"])
def test_progress_along_a_span(way: str, s: int, t: int) -> None:
    record = expert(walk())
    trajectory = record.shortcut(3) if way == "shortcut" else record.raw()
    span = trajectory.span(s, t)
    start, target = (by_hand(record, 3, k) if way == "shortcut" else record.raw().point(k).double() for k in (s, t))
    theta = (start + 0.01 * torch.randn(TABLE.num_params)).float()

    def progress(v: Tensor, v_start: Tensor, v_target: Tensor) -> Tensor:
        along = gradient(lambda u: terms(u, v_start, v_target).sum(), v) * (v - v_start)
        return torch.stack([part.sum() for part in along.split(GROUPS)])

    exact = progress(theta.double(), start, target)
    plain = progress(theta, start.float(), target.float())
    assert relative_error(span.match(theta).progress, exact) <= 2 * relative_error(plain, exact) + 1e-6


@pytest.mark.parametrize("way", ["shortcut", "raw"])
def test_a_span_is_its_tensors(way: str) -> None:
    """Whatever tells one expert's span from another's is among them: the rest may stay from the first."""
    spans = []
    for _ in range(2):
        record = expert(walk())
        spans.append((record.shortcut(3) if way == "shortcut" else record.raw()).span(0, 2))
    first, other = spans
    assert sorted(first.tensors()) == sorted(other.tensors())
    assert all(isinstance(value, Tensor) for value in first.tensors().values())
    again = first.replace({name: value.clone() for name, value in other.tensors().items()})
    assert type(again) is type(first)
    theta = other.start + 0.01 * torch.randn(TABLE.num_params)
    assert torch.equal(again.start, other.start)
    for ours, theirs in zip(again.match(theta), other.match(theta), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first.match(theta).loss, other.match(theta).loss)
    assert set(again.tensors()) == set(other.tensors())
    for name, value in other.tensors().items():
        assert torch.equal(again.tensors()[name], value)


def test_raw_points_are_the_epochs_themselves() -> None:
    thetas = walk()
    raw = expert(thetas).raw()
    assert torch.equal(raw.point(0), thetas[0])
    for t in KEPT:
        assert (raw.point(t) - thetas[t]).norm() <= 3.1e-4 * (thetas[t] - thetas[0]).norm()
    assert torch.equal(raw.point(5), expert(thetas).shortcut(5).point(5))


@pytest.mark.parametrize(("s", "t"), [(0, 2), (2, 3)])
def test_a_raw_span_is_the_matching_formula(s: int, t: int) -> None:
    thetas = walk()
    span = expert(thetas).raw().span(s, t)
    theta = thetas[s] + 0.01 * torch.randn(TABLE.num_params)
    found = span.match(theta)
    # Half precision moves either end by a little, which the formula feels in first order.
    start, target = (expert(thetas).raw().point(k).double() for k in (s, t))
    assert torch.equal(span.start.double(), start)
    assert relative_error(found.loss, terms(theta.double(), start, target).sum()) <= 1e-6
    by_autograd = gradient(lambda v: terms(v, start, target).sum(), theta.double())
    assert relative_error(found.adjoint, by_autograd) <= 1e-5
    assert found.loss.item() == pytest.approx(terms(theta, thetas[s], thetas[t]).sum().item(), rel=5e-3)


def test_an_epoch_that_was_not_kept_is_refused() -> None:
    record = expert(walk())
    message = (
        r"^epoch 4: expected one of the kept end points 2, 3, 5; name one of them, or teach again with it among "
        r"--endpoints \(or all\)$"
    )
    for ask in (lambda: record.shortcut(4), lambda: record.raw().point(4), lambda: record.raw().span(3, 4)):
        with pytest.raises(InputError, match=message):
            ask()


def test_a_record_moves_whole() -> None:
    record = expert(walk())
    moved = record.to("cpu")
    assert torch.equal(moved.shortcut(3).point(2), record.shortcut(3).point(2))
    assert record.to("meta").displacements[3].values.is_meta and record.to("meta").base.is_meta
