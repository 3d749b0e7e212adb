"""Every kernel against float64, relative to plain torch's own error; the implementations bit for bit."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oracles import contrastive, relative_error
from ptmst import kernels
from ptmst.config import LossKind
from ptmst.kernels import dispatch, reference

TINY = torch.finfo(torch.float32).tiny
EPS = torch.finfo(torch.float32).eps
ALIGNED, UGLY, STRANGE = (256, 512, 128), (255, 507, 123), (0, 1, 255, 0, 1, 8, 3, 0)

needs_native = pytest.mark.skipif(dispatch.native() is None, reason="native library not built, or forbidden")
each_kernel = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(reference.shortcut_point, id="reference"),
        pytest.param(kernels.shortcut_point, id="native", marks=needs_native),
    ],
)
each_size = pytest.mark.parametrize("sizes", [ALIGNED, UGLY, STRANGE], ids=["aligned", "ugly", "strange"])
drawn_tables = st.lists(st.sampled_from((0, 1, 8)) | st.integers(0, 40), min_size=1, max_size=12)

Point = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What a shortcut point is decoded from: base, displacement, scale, offsets, β."""
NAMES = ("base", "displacement", "scale", "offsets", "beta")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that a kernel forgets to write is not a number."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, torch.nan))


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def force(implementation: str) -> None:
        monkeypatch.setenv("PTMST_KERNELS", implementation)
        dispatch.native.cache_clear()

    dispatch.native.cache_clear()
    yield force
    dispatch.native.cache_clear()


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


@each_kernel
@each_size
def test_shortcut_point_against_float64(kernel: Callable[..., Tensor], sizes: tuple[int, ...]) -> None:
    point = stored(sizes)
    assert_as_exact_as_torch(kernel(*point), point)


@each_kernel
@given(sizes=drawn_tables, seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_shortcut_point_of_any_table(kernel: Callable[..., Tensor], sizes: list[int], seed: int) -> None:
    point = stored(sizes, seed)
    ours = kernel(*point)
    assert_as_exact_as_torch(ours, point)
    assert torch.equal(ours, reference.shortcut_point(*point))


@each_kernel
@pytest.mark.parametrize("size", [1, 7, 9, 1 << 16])
def test_every_finite_half_is_decoded(kernel: Callable[..., Tensor], size: int) -> None:
    """Each of them in layers of `size`: odd ones end in the loop for what is left over."""
    patterns = np.arange(1 << 16, dtype=np.int64)
    exponent, fraction = (patterns >> 10) & 31, patterns & 1023
    patterns, exponent, fraction = (v[exponent < 31] for v in (patterns, exponent, fraction))
    magnitude = np.ldexp(fraction + 1024 * (exponent > 0), np.maximum(exponent, 1) - 25)
    expected = torch.from_numpy(np.where(patterns >> 15, -magnitude, magnitude))
    offsets = torch.tensor([*range(0, len(patterns), size), len(patterns)])
    ones = torch.ones(len(offsets) - 1)
    displacement = torch.from_numpy(patterns.astype(np.uint16).view(np.float16))
    ours = kernel(torch.zeros(len(patterns)), displacement, ones, offsets, ones)
    assert torch.equal(ours.double(), expected)


@needs_native
def test_bits_do_not_depend_on_threads() -> None:
    point = stored((70_001, 0, 1, 150_000, 29_999))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(kernels.shortcut_point(*point))
        assert torch.equal(found[-1], reference.shortcut_point(*point))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@each_kernel
def test_strided_tensors(kernel: Callable[..., Tensor]) -> None:
    base, displacement, scale, offsets, _ = stored(UGLY)
    strided = (
        torch.stack([base, -base], 1)[:, 0],
        torch.stack([displacement, -displacement, displacement], 1)[:, 0],
        torch.stack([scale, -scale], 1)[:, 0],
        torch.stack([offsets, -offsets], 1)[:, 0],
        torch.tensor(0.3).expand(3),
    )
    assert not any(v.is_contiguous() for v in strided)
    assert_as_exact_as_torch(kernel(*strided), (base, displacement, scale, offsets, torch.full((3,), 0.3)))


def test_inputs_stay_as_they_were() -> None:
    point = stored(UGLY)
    before = [v.clone() for v in point]
    theta = kernels.shortcut_point(*point)
    theta.zero_()
    assert all(torch.equal(a, b) for a, b in zip(point, before, strict=True))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("base", torch.zeros(2, 3), "base: expected torch.float32 of shape (6,), found torch.float32 of shape (2, 3)"),
        ("base", torch.zeros(6).double(), "base: expected torch.float32 of shape (6,), found torch.float64"),
        ("displacement", torch.zeros(6), "displacement: expected torch.float16 of shape (6,), found torch.float32"),
        ("displacement", torch.zeros(6).bfloat16(), "displacement: expected torch.float16 of shape (6,), found"),
        ("displacement", torch.zeros(5).half(), "of shape (6,), found torch.float16 of shape (5,)"),
        (
            "displacement",
            torch.zeros(6, device="meta").half(),
            "displacement: expected it on cpu, as base is, found it",
        ),
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


@pytest.mark.parametrize("name", ["base", "displacement", "scale", "beta"])
def test_a_gradient_through_it_is_refused(name: str) -> None:
    point = dict(zip(NAMES, stored((4, 2)), strict=True))
    expected = kernels.shortcut_point(**point)
    point[name].requires_grad_()
    with pytest.raises(
        ValueError, match=f"^{name}: expected a tensor without gradient, since this kernel has none; det"
    ):
        kernels.shortcut_point(**point)
    with torch.no_grad():
        assert torch.equal(kernels.shortcut_point(**point), expected)


def matched(
    dtype: torch.dtype, theta: Tensor, point: Point, groups: Tensor, start: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    residual = theta.to(dtype) - by_layer(dtype, *point[:4], target)
    moved = theta.to(dtype) - by_layer(dtype, *point[:4], start)
    members = [groups.repeat_interleave(point[3].diff()) == g for g in range(int(groups.max()) + 1)]
    squared = torch.stack([(residual[m] ** 2).sum() for m in members])
    return residual, squared, torch.stack([(residual[m] * moved[m]).sum() for m in members])


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [(ALIGNED, (0, 1, 1)), (UGLY, (0, 0, 1)), (UGLY, (0, 0, 0)), (STRANGE, (0, 0, 0, 1, 2, 2, 2, 2))],
)
def test_matching_residual_against_float64(sizes: tuple[int, ...], groups: tuple[int, ...]) -> None:
    point, group_of_layer = stored(sizes), torch.tensor(groups)
    start, target = point[4] / 2, point[4]
    theta = by_layer(torch.float32, *point[:4], start) + 0.02 * torch.randn(sum(sizes))
    ours = kernels.matching_residual(theta, *point[:4], group_of_layer, start, target)
    exact = matched(torch.float64, theta, point, group_of_layer, start, target)
    plain = matched(torch.float32, theta, point, group_of_layer, start, target)
    for a, b, c in zip(ours, exact, plain, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) <= 2 * relative_error(c, b) + EPS


@pytest.mark.parametrize(
    ("sizes", "groups"), [(ALIGNED, (0, 1, 1)), (UGLY, (0, 0, 1)), (STRANGE, (0, 0, 0, 1, 2, 2, 2, 2))]
)
def test_flat_sgd_against_float64_and_in_place(sizes: tuple[int, ...], groups: tuple[int, ...]) -> None:
    theta, gradient, rates = torch.randn(sum(sizes)), torch.randn(sum(sizes)), torch.rand(max(groups) + 1)
    rate = torch.tensor([rates[g] for g, size in zip(groups, sizes, strict=True) for _ in range(size)])
    exact, plain = theta.double() - rate.double() * gradient.double(), theta - rate * gradient
    before = gradient.clone(), rates.clone()
    offsets = torch.tensor([0, *accumulate(sizes)])
    assert kernels.flat_sgd_(theta, gradient, rates, offsets, torch.tensor(groups)) is theta
    assert relative_error(theta, exact) <= 2 * relative_error(plain, exact)
    assert torch.equal(gradient, before[0])
    assert torch.equal(rates, before[1])


def optimised(
    dtype: torch.dtype, start: Tensor, gradients: Tensor, momentum: float, decay: float
) -> tuple[Tensor, Tensor]:
    leaf, ema = start.to(dtype).clone().requires_grad_(), start.to(dtype).clone()
    optimiser = torch.optim.SGD([leaf], lr=0.3, momentum=momentum)
    for gradient in gradients:
        leaf.grad = gradient.to(dtype)
        optimiser.step()
        ema = decay * ema + (1 - decay) * leaf.detach()
    return leaf.detach(), ema


@pytest.mark.parametrize("shape", [(3, 16, 16), (255,), ()])
@pytest.mark.parametrize(("momentum", "decay"), [(0.5, 0.99), (0.9, 0.2), (0.0, 0.0)])
def test_sgd_ema_against_torchs_own(shape: tuple[int, ...], momentum: float, decay: float) -> None:
    start, gradients = torch.randn(shape), torch.randn(6, *shape)
    leaf, buffer, ema = start.clone(), torch.zeros(shape), start.clone()
    for gradient in gradients.clone():
        assert kernels.sgd_ema_(leaf, gradient, buffer, ema, 0.3, momentum, decay) is leaf
        assert torch.equal(ema, leaf) or decay > 0
    exact = optimised(torch.float64, start, gradients, momentum, decay)
    plain = optimised(torch.float32, start, gradients, momentum, decay)
    for a, b, c in zip((leaf, ema), exact, plain, strict=True):
        assert relative_error(a, b) <= 2 * relative_error(c, b) + EPS


def unit(rows: Tensor) -> Tensor:
    return rows / (rows**2).sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("kind", typing.get_args(LossKind))
@pytest.mark.parametrize("width", [32, 27])
def test_soft_contrastive_against_float64(kind: LossKind, width: int) -> None:
    ours: list[Tensor] = []
    plain: list[Tensor] = []
    exact: list[Tensor] = []
    for pairs in (2, 5, 16, 33):
        images, texts, labels = torch.randn(pairs, width), 3 * torch.randn(pairs, width), torch.rand(pairs, pairs)
        for similarity in (None, labels):
            values = [v.double() for v in (images, texts, torch.eye(pairs) if similarity is None else similarity)]
            for found, (a, b, s) in ((exact, values), (plain, [v.float() for v in values])):
                found.append(contrastive(kind, unit(a) @ unit(b).T / 0.2, s))
            ours.append(kernels.soft_contrastive(images, texts, similarity, kind=kind, temperature=0.2))
    a, b, c = (torch.stack([v.double() for v in values]) for values in (ours, exact, plain))
    assert all(v.dtype == torch.float32 and v.shape == () for v in ours)
    assert relative_error(a, b) <= 2 * relative_error(c, b) + EPS


def test_soft_contrastive_defaults_are_the_papers() -> None:
    images, texts = torch.randn(5, 8).double(), torch.randn(5, 8).double()
    expected = contrastive("wbce", unit(images) @ unit(texts).T / 0.07, torch.eye(5).double())
    assert relative_error(kernels.soft_contrastive(images, texts), expected) <= 1e-13


def test_active_names_every_kernel() -> None:
    assert {*kernels.active(), "active"} == set(kernels.__all__)
    assert set(dispatch.NATIVE) < set(kernels.active())


@needs_native
def test_active_says_native() -> None:
    assert re.match(r"native C\+\+ \(.+\) on the CPU", kernels.active()["shortcut_point"])
    assert kernels.active()["soft_contrastive"].startswith("plain torch")


def test_reference_is_chosen_by_the_environment(choose: Callable[[str], None]) -> None:
    choose("reference")
    assert dispatch.native() is None
    assert kernels.active()["shortcut_point"] == "plain torch (PTMST_KERNELS=reference)"
    point = stored(UGLY)
    assert_as_exact_as_torch(kernels.shortcut_point(*point), point)


def test_an_unknown_choice_is_refused(choose: Callable[[str], None]) -> None:
    choose("nonsense")
    message = r"^PTMST_KERNELS: expected reference or native, found nonsense; mend it or unset it$"
    with pytest.raises(OSError, match=message):
        kernels.active()
    with pytest.raises(OSError, match=message):
        kernels.shortcut_point(*stored(UGLY))


def test_without_the_native_library(choose: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    choose("native")
    with pytest.raises(OSError, match=r"^PTMST_KERNELS=native: expected the native library, found none; install"):
        kernels.active()
    monkeypatch.delenv("PTMST_KERNELS")
    assert "the native library was not built: install with g++" in kernels.active()["shortcut_point"]
    point = stored(UGLY)
    assert_as_exact_as_torch(kernels.shortcut_point(*point), point)


def test_the_folder_is_not_a_package_of_its_own() -> None:
    root = Path(__file__).parents[1]
    tried = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=root, capture_output=True, text=True, check=False
    )
    assert tried.returncode == 1
    assert "ImportError: expected to be imported as ptmst.kernels, found kernels; " in tried.stderr
    assert tried.stderr.endswith("write `from ptmst import kernels`\n")
