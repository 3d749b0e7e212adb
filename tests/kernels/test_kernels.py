"""Every flat kernel of every implementation against float64, relative to plain torch's own error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lanes import LANES, NATIVE, each_lane, running
from torch import Tensor

from oracles import relative_error
from ptmst import kernels
from ptmst.kernels import reference

TINY = torch.finfo(torch.float32).tiny
EPS = torch.finfo(torch.float32).eps
ALIGNED, UGLY, STRANGE = (256, 512, 128), (255, 507, 123), (0, 1, 255, 0, 1, 8, 3, 0)
LONG = (4096, 1, 5000, 0, 4095, 20_001)
"""Several tiles, and several pieces of a thread."""
EMPTY = (0, 0, 0)

each_size = pytest.mark.parametrize("sizes", [ALIGNED, UGLY, STRANGE, LONG], ids=["aligned", "ugly", "strange", "long"])
drawn_tables = st.lists(st.sampled_from((0, 1, 8)) | st.integers(0, 40), min_size=1, max_size=12)
drawn = settings(max_examples=25, deadline=None, derandomize=True, database=None)

Point = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What a shortcut point is decoded from: base, displacement, scale, offsets, β."""
NAMES = ("base", "displacement", "scale", "offsets", "beta")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that a kernel forgets to write is not a number."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **named: Any) -> Tensor:
            tensor = make(*args, **named)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(Tensor, "new_empty", poison(Tensor.new_empty))


@pytest.fixture
def device(lane: str) -> Iterator[torch.device]:
    with running(lane) as found:
        yield found


def groups_of(sizes: Sequence[int]) -> Tensor:
    """Two groups, of the first layers and of the rest."""
    return torch.tensor([int(i > len(sizes) // 2) for i in range(len(sizes))])


def stored(sizes: Sequence[int], seed: int = 0) -> Point:
    """Displacements as they are stored: half precision and a scale per layer."""
    rng = torch.Generator().manual_seed(seed)
    parameters, layers = sum(sizes), len(sizes)
    return (
        torch.randn(parameters, generator=rng),
        torch.randn(parameters, generator=rng).half(),
        torch.rand(layers, generator=rng) * 2.0 ** torch.randint(-12, 3, (layers,), generator=rng),
        torch.tensor([0, *accumulate(sizes)]),
        torch.rand(layers, generator=rng),
    )


def by_layer(
    dtype: torch.dtype, base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor
) -> Tensor:
    base, displacement, scale, beta = (v.to(dtype) for v in (base, displacement, scale, beta))
    spans = pairwise(offsets.tolist())
    return torch.cat([base[a:b] + beta[i] * scale[i] * displacement[a:b] for i, (a, b) in enumerate(spans)])


def assert_as_exact_as_torch(ours: Tensor, point: Point) -> None:
    exact, plain = by_layer(torch.float64, *point), by_layer(torch.float32, *point)
    assert ours.dtype == torch.float32
    assert ours.shape == exact.shape
    assert bool((abs(ours - exact) <= 2 * abs(plain - exact) + TINY).all())


def on(device: torch.device, *tensors: Tensor) -> Any:
    """Offsets and groups, which are integers, stay on the host."""
    return [v if v.dtype == torch.int64 else v.to(device) for v in tensors]


# Points


@pytest.mark.slow
@each_lane
@each_size
def test_shortcut_point_against_float64(device: torch.device, sizes: tuple[int, ...]) -> None:
    point = stored(sizes)
    ours = kernels.shortcut_point(*on(device, *point)).cpu()
    assert_as_exact_as_torch(ours, point)
    assert torch.equal(ours, reference.shortcut_point(*point))


@pytest.mark.slow
@pytest.mark.parametrize("lane", LANES)
@given(sizes=drawn_tables, seed=st.integers(0, 2**32))
@example(sizes=[33], seed=3212291180)  # whose inner product's terms cancel
@drawn
def test_flat_kernels_of_any_table(lane: str, sizes: list[int], seed: int) -> None:
    with running(lane) as device:
        point = stored(sizes, seed)
        ours = kernels.shortcut_point(*on(device, *point)).cpu()
        assert_as_exact_as_torch(ours, point)
        assert torch.equal(ours, reference.shortcut_point(*point))
        assert_matching(device, sizes, point, seed)
        assert_descended(device, sizes, seed)


@pytest.mark.slow
@each_lane
@pytest.mark.parametrize("size", [1, 7, 9, 1 << 16])
def test_every_finite_half_is_decoded(lane: str, device: torch.device, size: int) -> None:
    """Each of them in layers of `size`: odd ones end in the loop for what is left over."""
    if lane == "triton" and size < 9:
        pytest.skip("the interpreter takes minutes over so many layers")
    patterns = np.arange(1 << 16, dtype=np.int64)
    exponent, fraction = (patterns >> 10) & 31, patterns & 1023
    patterns, exponent, fraction = (v[exponent < 31] for v in (patterns, exponent, fraction))
    magnitude = np.ldexp(fraction + 1024 * (exponent > 0), np.maximum(exponent, 1) - 25)
    expected = torch.from_numpy(np.where(patterns >> 15, -magnitude, magnitude))
    offsets = torch.tensor([*range(0, len(patterns), size), len(patterns)])
    ones = torch.ones(len(offsets) - 1)
    displacement = torch.from_numpy(patterns.astype(np.uint16).view(np.float16))
    ours = kernels.shortcut_point(*on(device, torch.zeros(len(patterns)), displacement, ones, offsets, ones))
    assert torch.equal(ours.cpu().double(), expected)


# Residuals


def matched(
    dtype: torch.dtype,
    member: Tensor,
    theta: Tensor,
    start: Tensor,
    target: Tensor,
    term: Callable[[Tensor], Tensor] = torch.positive,
) -> list[Tensor]:
    residual, moved, apart = ((a - b).to(dtype) for a, b in ((theta, target), (theta, start), (target, start)))

    def sums(values: Tensor) -> Tensor:
        return torch.stack([term(values[member == g]).sum() for g in range(2)])

    return [residual, sums(residual**2), sums(residual * moved), sums(apart**2)]


def assert_matching(device: torch.device, sizes: Sequence[int], point: Point, seed: int) -> None:
    """On a shortcut and between plain vectors, with and without the number of groups."""
    rng = torch.Generator().manual_seed(seed + 1)
    groups = groups_of(sizes)
    member = groups.repeat_interleave(torch.tensor(sizes))
    betas: Any = (point[4] / 2, point[4])
    ends: Any = [[by_layer(dtype, *point[:4], beta) for beta in betas] for dtype in (torch.float64, torch.float32)]
    theta = ends[1][0] + 0.02 * torch.randn(sum(sizes), generator=rng)
    exact = matched(torch.float64, member, theta.double(), *ends[0])
    terms = matched(torch.float64, member, theta.double(), ends[0][0], ends[0][1], torch.abs)
    plain = matched(torch.float32, member, theta, *ends[1])
    table = point[3], groups
    number: Any = () if len(sizes) > 2 else (2,)
    ours = kernels.matching_residual(*on(device, theta, *point[:4], groups, *betas), *number)
    assert_near(ours, exact[:3], plain[:3], terms[:3])
    wide = matched(torch.float64, member, theta.double(), *(v.double() for v in ends[1]))
    vectors = kernels.vector_residual(*on(device, theta, *ends[1], *table), *number)
    assert_near(vectors, wide, plain, terms)


def assert_near(
    ours: Sequence[Tensor], exact: Sequence[Tensor], plain: Sequence[Tensor], sizes: Sequence[Tensor] | None = None
) -> None:
    """Twice torch's own error, which may be 0 by chance, and two roundings of `sizes`, larger where terms cancel."""
    for a, b, c, size in zip(ours, exact, plain, sizes or exact, strict=True):
        assert a.dtype == torch.float32
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        assert float((a.cpu() - b).norm()) <= 2 * float((c - b).norm()) + 2 * EPS * float(size.norm())


@pytest.mark.slow
@each_lane
@each_size
def test_residuals_against_float64(device: torch.device, sizes: tuple[int, ...]) -> None:
    assert_matching(device, sizes, stored(sizes), 0)


@each_lane
def test_a_group_without_layers_sums_to_nothing(device: torch.device) -> None:
    theta, start, target = torch.randn(3, 8)
    table = torch.tensor([0, 3, 8]), torch.tensor([0, 2])
    four: Any = (4,)
    _, squared, progress, distance = kernels.vector_residual(*on(device, theta, start, target, *table), *four)
    for found in (squared, progress, distance):
        assert found.shape == (4,)
        assert found.cpu()[[1, 3]].tolist() == [0, 0]
        assert (found.cpu()[[0, 2]] != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("lane", NATIVE)
def test_vectors_that_are_written_past_the_caches(device: torch.device) -> None:
    """Beyond two million parameters; layers begin and end beside any alignment."""
    sizes = (700_001, 3, 1_500_002)
    point = stored(sizes)
    assert torch.equal(kernels.shortcut_point(*point), reference.shortcut_point(*point))
    assert_matching(device, sizes, point, 0)
    shifted_point = shifted(point[0]), shifted(point[1]), *point[2:]
    assert torch.equal(kernels.shortcut_point(*shifted_point), reference.shortcut_point(*point))


# Updates


def assert_descended(device: torch.device, sizes: Sequence[int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed + 2)
    theta, gradient = torch.randn(2, sum(sizes), generator=rng)
    rates, groups = torch.rand(2, generator=rng), groups_of(sizes)
    rate = rates[groups].repeat_interleave(torch.tensor(sizes))
    exact, plain = theta.double() - rate.double() * gradient.double(), theta - rate * gradient
    inputs = on(device, theta.clone(), gradient, rates, torch.tensor([0, *accumulate(sizes)]), groups)
    before = [v.clone() for v in inputs[1:3]]
    assert kernels.flat_sgd_(*inputs) is inputs[0]
    assert_near([inputs[0]], [exact], [plain])
    assert all(torch.equal(a, b) for a, b in zip(inputs[1:3], before, strict=True))


@each_lane
@each_size
def test_flat_sgd_against_float64(device: torch.device, sizes: tuple[int, ...]) -> None:
    assert_descended(device, sizes, 0)


def optimized(
    dtype: torch.dtype, start: Tensor, gradients: Tensor, momentum: float, decay: float
) -> tuple[Tensor, Tensor]:
    leaf, ema = start.to(dtype).clone().requires_grad_(), start.to(dtype).clone()
    optimizer = torch.optim.SGD([leaf], lr=0.3, momentum=momentum)
    for gradient in gradients:
        leaf.grad = gradient.to(dtype)
        optimizer.step()
        ema = decay * ema + (1 - decay) * leaf.detach()
    return leaf.detach(), ema


@pytest.mark.slow
@each_lane
@pytest.mark.parametrize("shape", [(3, 16, 16), (255,), (), (4097,), (0,)])
@pytest.mark.parametrize(("momentum", "decay"), [(0.5, 0.99), (0.9, 0.2), (0.0, 0.0)])
def test_sgd_ema_against_torchs_own(
    device: torch.device, shape: tuple[int, ...], momentum: float, decay: float
) -> None:
    start, gradients = torch.randn(shape), torch.randn(6, *shape)
    leaf, buffer, ema = (v.to(device) for v in (start.clone(), torch.zeros(shape), start.clone()))
    for gradient in gradients.clone().to(device):
        assert kernels.sgd_ema_(leaf, gradient, buffer, ema, 0.3, momentum, decay) is leaf
        assert torch.equal(ema, leaf) or decay > 0
    exact = optimized(torch.float64, start, gradients, momentum, decay)
    plain = optimized(torch.float32, start, gradients, momentum, decay)
    assert_near((leaf, ema), exact, plain)


@each_lane
@pytest.mark.parametrize("count", [1, 255, 4097])
def test_nothing_is_written_beside_a_leaf(device: torch.device, count: int) -> None:
    """Which lies within another tensor, and fills neither a register nor a tile."""
    tensors = torch.randn(4, count + 64, device=device)
    before = tensors.clone()
    leaf, gradient, buffer, ema = (v[32:-32] for v in tensors)
    kernels.sgd_ema_(leaf, gradient, buffer, ema, 0.3, 0.5, 0.99)
    for beside in (slice(32), slice(-32, None)):
        assert torch.equal(tensors[:, beside], before[:, beside])
    assert not torch.equal(leaf, before[0, 32:-32])


# What is common to them


@each_lane
def test_nothing_in_them(device: torch.device) -> None:
    point = stored(EMPTY)
    table = point[3], torch.tensor([0, 0, 1])
    assert kernels.shortcut_point(*on(device, *point)).shape == (0,)
    found = kernels.matching_residual(*on(device, point[0], *point[:3], *table, point[4], point[4]))
    assert [v.tolist() for v in found] == [[], [0, 0], [0, 0]]
    nothing = kernels.vector_residual(*on(device, *(point[0],) * 3, *table))
    assert [v.tolist() for v in nothing] == [[], [0, 0], [0, 0], [0, 0]]
    assert kernels.flat_sgd_(*on(device, point[0], point[0], torch.rand(2), *table)).shape == (0,)


def with_gaps(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, -tensor, tensor], -1)[..., 0]


def shifted(tensor: Tensor) -> Tensor:
    """Contiguous, one element behind any alignment."""
    room = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    room[1:] = tensor.flatten()
    return room[1:].view(tensor.shape)


@pytest.mark.slow
@each_lane
@pytest.mark.parametrize("place", [with_gaps, shifted])
@pytest.mark.parametrize("sizes", [UGLY, (4096, 1, 4095)])
def test_wherever_tensors_lie(device: torch.device, place: Callable[[Tensor], Tensor], sizes: tuple[int, ...]) -> None:
    """With gaps between elements, or beside the alignment that registers like: the same bits."""
    point, groups = stored(sizes), groups_of(sizes)
    theta, lr = torch.randn(sum(sizes)), torch.rand(2)

    def results(at: Callable[[Tensor], Tensor]) -> list[Tensor]:
        base, displacement, scale, offsets, beta = (at(v) for v in on(device, *point))
        group, student, rates = (at(v) for v in on(device, groups, theta, lr))
        found = [
            kernels.shortcut_point(base, displacement, scale, offsets, beta),
            *kernels.matching_residual(student, base, displacement, scale, offsets, group, beta / 3, beta),
            *kernels.vector_residual(student, base, at(base + 1), offsets, group),
        ]
        changed = at(student.clone())
        kernels.flat_sgd_(changed, base, rates, offsets, group)
        leaf, buffer, ema = (at(v.clone()) for v in (student, base, base))
        kernels.sgd_ema_(leaf, base, buffer, ema, 0.1, 0.5, 0.9)
        return [*found, changed, leaf, buffer, ema]

    assert not with_gaps(theta).is_contiguous() and shifted(theta).is_contiguous()
    same = [torch.equal(a, b) for a, b in zip(results(place), results(torch.clone), strict=True)]
    assert same == [True] * len(same)


@pytest.mark.parametrize("lane", NATIVE)
def test_bits_do_not_depend_on_threads(device: torch.device) -> None:
    sizes = (70_001, 0, 1, 150_000, 29_999)
    point, groups = stored(sizes), groups_of(sizes)
    theta = torch.randn(sum(sizes))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        updated = [theta.clone() for _ in range(4)]
        kernels.flat_sgd_(updated[0], point[0], torch.rand(2).fill_(0.1), point[3], groups)
        kernels.sgd_ema_(updated[1], point[0], updated[2], updated[3], 0.1, 0.5, 0.9)
        found.append(
            [
                kernels.shortcut_point(*point),
                *kernels.matching_residual(theta, *point[:4], groups, point[4] / 2, point[4]),
                *kernels.vector_residual(theta, point[0], theta.flip(0), point[3], groups),
                *updated,
            ]
        )
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_native_sums_beyond_two_to_the_31() -> None:
    """The C functions get addresses that lie 2³¹ parameters back, and offsets that begin there: no memory is needed
    in between, and an index of 32 bits would miss."""
    from ptmst.kernels import native

    if native.library() is None:
        pytest.skip("the native library was not built")
    far, count = 2**31 + 5, 3000
    base, theta = torch.randn(2, count)
    half, out = torch.randn(count).half(), torch.full((count,), torch.nan)
    scale, beta = torch.rand(2), torch.rand(2)
    offsets, sums = torch.tensor([far, far + 1001, far + count]), torch.full((2, 2), torch.nan)
    groups = torch.tensor([0, 1])

    class Far:
        """A tensor's address as if its first element were number `far`."""

        def __init__(self, tensor: Tensor) -> None:
            self.address = tensor.data_ptr() - far * tensor.element_size()

    def call(name: str, *args: Any) -> None:
        import ctypes

        plain = [
            ctypes.c_void_p(v.address)
            if isinstance(v, Far)
            else ctypes.c_void_p(v.data_ptr())
            if isinstance(v, Tensor)
            else ctypes.c_int64(v)
            for v in args
        ]
        getattr(native.library(), f"ptmst_{name}")(*plain)

    near = offsets - far
    call("shortcut_point", Far(out), Far(base), Far(half), scale, beta, offsets, 2, 2)
    assert torch.equal(out, reference.shortcut_point(base, half, scale, near, beta))
    vectors = Far(out), sums[0], sums[1], Far(theta), Far(base), Far(half)
    call("match_shortcut", *vectors, scale, beta / 2, beta, offsets, groups, 2, 2, 2)
    exact = reference.matching_residual(
        theta.double(), base.double(), half, scale.double(), near, groups, beta.double() / 2, beta.double()
    )
    for found, expected in zip((out, *sums), exact, strict=True):
        assert relative_error(found, expected) <= 1e-6


# Refusals


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("base", torch.zeros(2, 3), "base: expected torch.float32 of shape (6,), found torch.float32 of shape (2, 3)"),
        ("base", torch.zeros(6).half(), "base: expected torch.float32 of shape (6,), found torch.float16"),
        ("base", torch.zeros(6).double(), "scale: expected torch.float64 of shape (2,), found torch.float32"),
        ("displacement", torch.zeros(6), "displacement: expected torch.float16 of shape (6,), found torch.float32"),
        ("displacement", torch.zeros(6).bfloat16(), "displacement: expected torch.float16 of shape (6,), found"),
        ("displacement", torch.zeros(5).half(), "of shape (6,), found torch.float16 of shape (5,)"),
        ("scale", torch.ones(3), "offsets: expected torch.int64 of shape (4,), found torch.int64 of shape (3,)"),
        ("scale", torch.ones(2).double(), "scale: expected torch.float32 of shape (2,), found torch.float64"),
        ("beta", torch.ones(1), "beta: expected torch.float32 of shape (2,), found torch.float32 of shape (1,)"),
        ("beta", torch.tensor([1, 1]), "beta: expected torch.float32 of shape (2,), found torch.int64"),
        ("offsets", torch.tensor([0, 4, 6]).int(), "offsets: expected torch.int64 of shape (3,), found torch.int32"),
        ("offsets", torch.tensor([0, 4, 5]), "offsets: expected them to rise from 0 to 6, found 0 … 5"),
        ("offsets", torch.tensor([0, 4, 7]), "offsets: expected them to rise from 0 to 6, found 0 … 7"),
        ("offsets", torch.tensor([1, 4, 6]), "offsets: expected them to rise from 0 to 6, found 1 … 6"),
        ("offsets", torch.tensor([0, 7, 6]), "offsets: expected them to rise from 0 to 6"),
        ("offsets", torch.tensor([0, -1, 6]), "offsets: expected them to rise from 0 to 6"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(name: str, value: Tensor, message: str) -> None:
    point = dict(zip(NAMES, stored((4, 2)), strict=True)) | {name: value}
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.shortcut_point(**point)


def test_tensors_of_two_devices_are_refused() -> None:
    point = dict(zip(NAMES, stored((4, 2)), strict=True)) | {"displacement": torch.zeros(6, device="meta").half()}
    with pytest.raises(ValueError, match="displacement: expected it on cpu, as base is, found it on meta"):
        kernels.shortcut_point(**point)


def test_tables_of_other_vectors_are_refused() -> None:
    theta, start, target = torch.randn(3, 6)
    offsets = torch.tensor([0, 2, 4, 6])
    with pytest.raises(ValueError, match=r"^groups: expected the layers of a group side by side, found \[0, 1, 0\]"):
        kernels.vector_residual(theta, start, target, offsets, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match=r"^groups: expected the layers of a group side by side, found \[-1, 0, 0\]"):
        kernels.vector_residual(theta, start, target, offsets, torch.tensor([-1, 0, 0]))
    with pytest.raises(ValueError, match=r"^groups: expected numbers below 2, found 2"):
        kernels.vector_residual(theta, start, target, offsets, torch.tensor([0, 1, 2]), 2)
    with pytest.raises(ValueError, match=r"^groups: expected numbers below 1, found 1"):
        kernels.flat_sgd_(theta, start, torch.ones(1), offsets, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"^target: expected torch.float32 of shape \(6,\), found torch.float32 of sh"):
        kernels.vector_residual(theta, start, target[1:], offsets, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"^ema: expected torch.float32 of shape \(6,\), found"):
        kernels.sgd_ema_(theta, start, target, torch.randn(7), 0.1, 0.5, 0.9)


def test_inputs_stay_as_they_were() -> None:
    point = stored(UGLY)
    before = [v.clone() for v in point]
    theta = kernels.shortcut_point(*point)
    theta.zero_()
    assert all(torch.equal(a, b) for a, b in zip(point, before, strict=True))


# Results in a tensor of the caller's

INTO = ("shortcut_point", "matching_residual", "vector_residual")


@each_lane
@pytest.mark.parametrize("name", INTO)
@pytest.mark.parametrize("place", ["whole", "strided", "shifted"])
def test_results_in_a_given_tensor_are_the_same(lane: str, name: str, place: str) -> None:
    """Bit by bit, wherever it lies; and that it was written is known to autograd."""
    with running(lane) as device:
        inputs = into_arguments(name, device)
        expected = flat_outputs(getattr(kernels, name)(*inputs))
        parameters = len(expected[0])
        out = {
            "whole": torch.full((parameters,), torch.nan, device=device),
            "strided": torch.full((2 * parameters,), torch.nan, device=device)[::2],
            "shifted": torch.full((parameters + 1,), torch.nan, device=device)[1:],
        }[place]
        version = out._version
        found = flat_outputs(getattr(kernels, name)(*inputs, out=out))
        assert found[0] is out and out._version > version
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", INTO)
def test_a_given_tensor_is_checked_and_not_differentiated(name: str) -> None:
    inputs = into_arguments(name, torch.device("cpu"))
    parameters = len(inputs[0])
    for wrong in (torch.empty(parameters - 1), torch.empty(parameters, dtype=torch.float64)):
        with pytest.raises(ValueError, match=rf"^out: expected torch.float32 of shape \({parameters},\), found "):
            getattr(kernels, name)(*inputs, out=wrong)
    leaf = [inputs[0].clone().requires_grad_(), *inputs[1:]]
    with pytest.raises(RuntimeError, match=rf"^{name}: expected tensors without gradient"):
        getattr(kernels, name)(*leaf, out=torch.empty(parameters))
    with pytest.raises(ValueError, match=r"^out: expected memory of its own, found that of an input"):
        getattr(kernels, name)(*inputs, out=inputs[0])
    double = [v.double() if isinstance(v, Tensor) and v.dtype == torch.float32 else v for v in inputs]
    out = torch.empty(parameters, dtype=torch.float64)
    expected = flat_outputs(getattr(kernels, name)(*double))
    assert all(map(torch.equal, flat_outputs(getattr(kernels, name)(*double, out=out)), expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", INTO)
def test_a_given_tensor_is_filled_by_compiled_code(name: str) -> None:
    inputs = into_arguments(name, torch.device("cpu"))

    def function(out: Tensor, *args: Any) -> list[Tensor]:
        return [v + 1 for v in flat_outputs(getattr(kernels, name)(*args, out=out))]

    expected = [v + 1 for v in flat_outputs(getattr(kernels, name)(*inputs))]
    out = torch.empty_like(inputs[0])
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(out, *inputs)
    torch.compiler.reset()
    assert all(map(torch.equal, found, expected)) and torch.equal(out + 1, expected[0])


def flat_outputs(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def into_arguments(name: str, device: torch.device) -> list[Any]:
    draw = torch.Generator().manual_seed(3)
    sizes, groups = (300, 0, 41, 1700), torch.tensor([0, 0, 1, 1])
    offsets, parameters = torch.tensor([0, *accumulate(sizes)]), sum(sizes)
    a, b, c = (torch.randn(parameters, generator=draw).to(device) for _ in range(3))
    half = torch.randn(parameters, generator=draw).half().to(device)
    scale, start, target = (torch.rand(4, generator=draw).to(device) for _ in range(3))
    arguments: dict[str, list[Any]] = {
        "shortcut_point": [a, half, scale, offsets, target],
        "matching_residual": [a, b, half, scale, offsets, groups, start, target, 2],
        "vector_residual": [a, b, c, offsets, groups, 2],
    }
    return arguments[name]
