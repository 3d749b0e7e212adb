"""Kernels as torch ops: compiled, differentiated once, refused where a derivative would be lost; and who runs them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lanes import each_lane, running
from torch import Tensor
from torch.autograd import forward_ad

from oracles import relative_error
from ptmst import kernels
from ptmst.cli import doctor
from ptmst.kernels import dispatch, native, reference

OFFSETS, GROUPS = torch.tensor([0, 5, 5, 12]), torch.tensor([0, 1, 1])
needs_native = pytest.mark.skipif(native.library() is None, reason="the native library was not built")


def arguments(name: str, dtype: torch.dtype = torch.float32) -> tuple[list[Any], int]:
    """What a kernel takes, and how many of its first arguments are differentiable."""
    draw = torch.Generator().manual_seed(0)
    vectors = list(torch.randn(4, 12, generator=draw).to(dtype))
    half, scale = torch.randn(12, generator=draw).half(), torch.rand(3, generator=draw).to(dtype)
    beta = torch.rand(3, generator=draw).to(dtype)
    return {
        "shortcut_point": ([vectors[0], half, scale, OFFSETS, beta], 1),
        "matching_residual": ([*vectors[:2], half, scale, OFFSETS, GROUPS, beta / 2, beta, 2], 1),
        "vector_residual": ([*vectors[:3], OFFSETS, GROUPS, 2], 1),
        "flat_sgd_": ([*vectors[:2], torch.tensor([0.1, 0.2]).to(dtype), OFFSETS, GROUPS], 0),
        "sgd_ema_": ([*vectors, 0.1, 0.5, 0.9], 0),
        "soft_contrastive": ([v.view(4, 3) for v in vectors[:2]], 2),
    }[name]


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


each_kernel = pytest.mark.parametrize("name", dispatch.KERNELS)
differentiable = pytest.mark.parametrize("name", [n for n in dispatch.KERNELS if not n.endswith("_")])
updates = pytest.mark.parametrize("name", [n for n in dispatch.KERNELS if n.endswith("_")])


# Traced


@pytest.mark.slow
@each_kernel
@each_lane
def test_compiled_in_one_graph(lane: str, name: str) -> None:
    """Inside a user's function, with work before and behind; whoever runs them."""
    inputs, _ = arguments(name)

    def function(*args: Any) -> list[Tensor]:
        first = args[0] * 2
        found = getattr(kernels, name)(first, *args[1:])
        return [v + 1 for v in flat(found)]

    with running(lane) as device:
        if device.type == "cuda":
            pytest.skip("compiled on the host alone")
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        expected = function(*[v.clone() if isinstance(v, Tensor) else v for v in inputs])
        found = compiled(*[v.clone() if isinstance(v, Tensor) else v for v in inputs])
        torch.compiler.reset()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@differentiable
@each_lane
def test_compiled_with_its_gradient(lane: str, name: str) -> None:
    inputs, count = arguments(name)

    def function(*args: Any) -> Tensor:
        found = getattr(kernels, name)(*(v * 2 for v in args[:count]), *args[count:])
        return sum((v.sin().sum() for v in flat(found)), torch.zeros(()))

    def gradients(run: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [v.clone().requires_grad_() for v in inputs[:count]]
        return list(torch.autograd.grad(run(*leaves, *inputs[count:]), leaves))

    with running(lane) as device:
        if device.type == "cuda":
            pytest.skip("compiled on the host alone")
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for a, b in zip(gradients(compiled), gradients(function), strict=True):
            assert relative_error(a, b) <= 1e-6
        torch.compiler.reset()


@pytest.mark.slow
def test_the_number_of_groups_may_be_known_late() -> None:
    inputs, _ = arguments("vector_residual")
    compiled = torch.compile(lambda *v: kernels.vector_residual(*v)[1] * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs[:5]), 2 * kernels.vector_residual(*inputs)[1])
    torch.compiler.reset()


@each_kernel
def test_fakes_are_of_the_same_kind(name: str) -> None:
    """What a compiler is told of the results is true."""
    inputs, _ = arguments(name)
    op = getattr(torch.ops.ptmst, name)
    if name == "soft_contrastive":
        inputs = [*inputs, torch.tensor(0.1), torch.tensor(0.0), [], 0.0, "wbce"]
    torch.library.opcheck(op, tuple(inputs), test_utils=("test_schema", "test_faketensor"))


# Differentiated


@differentiable
def test_gradients_by_differences(name: str) -> None:
    """In float64, where plain torch runs behind the same autograd."""
    inputs, count = arguments(name, torch.float64)
    leaves = [v.clone().requires_grad_() for v in inputs[:count]]
    assert torch.autograd.gradcheck(lambda *v: getattr(kernels, name)(*v, *inputs[count:]), leaves)


def test_points_are_differentiable_in_scale_and_beta() -> None:
    base, half, scale, offsets, beta = arguments("shortcut_point", torch.float64)[0]
    leaves = [v.requires_grad_() for v in (base, scale, beta)]
    assert torch.autograd.gradcheck(lambda b, s, t: kernels.shortcut_point(b, half, s, offsets, t), leaves)


@differentiable
@each_lane
def test_gradients_of_every_implementation(lane: str, name: str) -> None:
    """Against plain torch in float64, differentiated by autograd."""
    inputs, count = arguments(name)

    def gradients(function: Callable[..., Any], values: list[Any]) -> list[Tensor]:
        leaves = [v.clone().requires_grad_() for v in values[:count]]
        found = flat(function(*leaves, *values[count:]))
        return list(torch.autograd.grad(sum(v.sin().sum() for v in found), leaves))  # type: ignore[arg-type]

    wide = [v.double() if isinstance(v, Tensor) and v.dtype == torch.float32 else v for v in inputs]
    exact = gradients(getattr(reference, name), wide)
    with running(lane) as device:
        moved = [v.to(device) if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs]
        ours = gradients(getattr(kernels, name), moved)
    for a, b in zip(ours, exact, strict=True):
        # In float32 the definition itself loses digits of 1 − σ.
        assert relative_error(a.cpu(), b) <= (2e-4 if name == "soft_contrastive" else 2e-6)


@pytest.mark.parametrize("name", ["matching_residual", "vector_residual"])
def test_each_result_has_its_gradient(name: str) -> None:
    """Those of the residual, of its square and of progress, alone and together."""
    inputs, _ = arguments(name, torch.float64)
    for chosen in ([0], [1], [2], [0, 1], [1, 2], [0, 1, 2]):
        found = []
        for function in (getattr(kernels, name), getattr(reference, name)):
            leaf = inputs[0].clone().requires_grad_()
            results = function(leaf, *inputs[1:])
            found.append(torch.autograd.grad(sum((results[i] ** 2).sum() for i in chosen), leaf)[0])
        assert relative_error(found[0], found[1]) <= 1e-13


@differentiable
def test_a_second_derivative_raises(name: str) -> None:
    inputs, count = arguments(name)
    for number in range(count):
        leaf = inputs[number].clone().requires_grad_()
        found = getattr(kernels, name)(*inputs[:number], leaf, *inputs[number + 1 :])
        squares = torch.stack([(v**2).sum() for v in flat(found)]).sum()
        (first,) = torch.autograd.grad(squares, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=f"^{name} is differentiable once; for a second derivative use plain t"):
            torch.autograd.grad(first.sum(), leaf)


@updates
def test_updates_have_no_gradient(name: str) -> None:
    inputs, _ = arguments(name)
    before = [v.clone() for v in inputs[:2]]
    inputs[1].requires_grad_()
    with pytest.raises(RuntimeError, match=f"^{name}: expected tensors without gradient, since it has none; detach th"):
        getattr(kernels, name)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs[:2], before, strict=True))
    with torch.no_grad():
        getattr(kernels, name)(*inputs)
    assert not torch.equal(inputs[0], before[0])


@pytest.mark.parametrize("name", ["matching_residual", "vector_residual"])
def test_targets_have_no_gradient(name: str) -> None:
    inputs, _ = arguments(name)
    inputs[1].requires_grad_()
    with pytest.raises(RuntimeError, match=f"^{name}: expected a gradient in theta alone; detach the other tensors"):
        getattr(kernels, name)(*inputs)


@updates
def test_autograd_learns_of_an_update(name: str) -> None:
    """A graph that needs the old values says so, instead of using the new ones."""
    inputs, _ = arguments(name)
    leaf = torch.ones(12, requires_grad=True)
    product = leaf * inputs[0]
    getattr(kernels, name)(*inputs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


# Refused: derivatives that would be lost


@each_kernel
def test_forward_mode_is_refused(name: str) -> None:
    inputs, _ = arguments(name)
    message = rf"^{name}: expected no forward-mode differentiation, which would lose its derivatives; call it outside"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        with pytest.raises(RuntimeError, match=message):
            getattr(kernels, name)(dual, *inputs[1:])
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(lambda v: getattr(kernels, name)(v, *inputs[1:]), (inputs[0],), (torch.ones_like(inputs[0]),))


@pytest.mark.slow
@differentiable
def test_a_compiled_forward_mode_is_refused(name: str) -> None:
    inputs, _ = arguments(name)

    def tangents(value: Tensor) -> Any:
        return torch.func.jvp(lambda v: getattr(kernels, name)(v, *inputs[1:]), (value,), (torch.ones_like(value),))

    with pytest.raises(Exception, match="expected no forward-mode differentiation"):
        torch.compile(tangents, backend="aot_eager")(inputs[0])
    torch.compiler.reset()


@differentiable
def test_a_functional_gradient_is_refused(name: str) -> None:
    inputs, _ = arguments(name)
    with pytest.raises(RuntimeError, match=f"{name}: expected no a? ?transform of torch.func, which would lose"):
        torch.func.grad(lambda v: flat(getattr(kernels, name)(v, *inputs[1:]))[0].sum())(inputs[0])


@pytest.mark.parametrize("name", ["shortcut_point", "vector_residual", "soft_contrastive"])
def test_the_definition_takes_every_transform(name: str) -> None:
    """What the refusal advises: its tangent against differences."""
    inputs, _ = arguments(name, torch.float64)
    direction = torch.randn_like(inputs[0])

    def function(value: Tensor) -> Tensor:
        return flat(getattr(reference, name)(value, *inputs[1:]))[0]

    tangent = torch.func.jvp(function, (inputs[0],), (direction,))[1]
    step = 1e-6
    difference = (function(inputs[0] + step * direction) - function(inputs[0] - step * direction)) / (2 * step)
    assert relative_error(tangent, difference) <= 1e-6


def test_a_batch_of_them_is_a_loop() -> None:
    """vmap has no rule of ours, and falls back to one call each."""
    inputs, _ = arguments("vector_residual")
    students = torch.randn(3, 12)
    found = torch.func.vmap(lambda v: kernels.vector_residual(v, *inputs[1:])[1])(students)
    for row, student in zip(found, students, strict=True):
        assert torch.equal(row, kernels.vector_residual(student, *inputs[1:])[1])


# Who runs them


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    def force(implementation: str | None) -> None:
        if implementation is None:
            monkeypatch.delenv("PTMST_KERNELS", raising=False)
        else:
            monkeypatch.setenv("PTMST_KERNELS", implementation)
        dispatch.on_device.cache_clear()

    dispatch.on_device.cache_clear()
    yield force
    dispatch.on_device.cache_clear()


def test_active_names_every_kernel() -> None:
    assert {*kernels.active(), "active"} == set(kernels.__all__)


@needs_native
def test_native_runs_on_the_cpu(choose: Callable[[str | None], None]) -> None:
    choose(None)
    assert dispatch.implementation(torch.zeros(1)) is native
    assert dispatch.implementation(torch.zeros(1).double()) is reference
    for how in kernels.active().values():
        assert re.match(r"native C\+\+ \(.+\) on the CPU; (no CUDA device here|Triton on CUDA)$", how)


def test_triton_runs_on_cuda(choose: Callable[[str | None], None]) -> None:
    choose(None)
    if dispatch.lacks_triton():
        pytest.skip("Triton cannot run here")
    assert dispatch.on_device("cuda", None) is importlib.import_module("ptmst.kernels.triton_kernels")


def test_reference_is_chosen_by_the_environment(choose: Callable[[str | None], None]) -> None:
    choose("reference")
    assert dispatch.implementation(torch.zeros(1)) is reference
    assert kernels.active()["shortcut_point"].startswith("plain torch on the CPU (PTMST_KERNELS=reference)")


def test_an_unknown_choice_is_refused(choose: Callable[[str | None], None]) -> None:
    choose("nonsense")
    message = r"^PTMST_KERNELS: expected reference, native, triton, found nonsense; correct it or unset it$"
    with pytest.raises(OSError, match=message):
        kernels.active()
    with pytest.raises(OSError, match=message):
        kernels.shortcut_point(*arguments("shortcut_point")[0])


@pytest.mark.parametrize("ailment", ["missing", "broken", "another's"])
def test_without_the_native_library(
    choose: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ailment: str
) -> None:
    """Not built, no library, or one that is not ours: plain torch runs, and that is told in a line."""
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"\x7fELF and no more")
    found = {"missing": None, "broken": str(broken), "another's": torch._C.__file__}[ailment]
    why = {
        "missing": "was not built: install with g++ and cmake",
        "broken": f"does not load ({broken}: ",
        "another's": "does not load (",
    }[ailment]
    real = importlib.util.find_spec
    spec = None if found is None else SimpleNamespace(origin=found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name.endswith("._native") else real(name))
    native._loaded.cache_clear()
    try:
        choose("native")
        expected = f"PTMST_KERNELS=native: expected the native library, which {why}"
        with pytest.raises(OSError, match="^" + re.escape(expected)):
            kernels.active()
        choose(None)
        (shown,) = {how for name, how in doctor.report() if name.startswith("kernel ")}
        assert shown.startswith(f"plain torch on the CPU (the native library {why}") and "\n" not in shown
        assert "with g++ and cmake" in shown
        assert dispatch.implementation(torch.zeros(1)) is reference
    finally:
        native._loaded.cache_clear()


def test_native_on_cuda_is_refused(choose: Callable[[str | None], None]) -> None:
    choose("native")
    with pytest.raises(OSError, match=r"^PTMST_KERNELS=native: expected tensors on the CPU, found them on cuda; move"):
        dispatch.on_device("cuda", "native")


def test_triton_without_an_interpreter_is_refused(
    choose: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    choose("triton")
    with pytest.raises(OSError, match=r"^PTMST_KERNELS=triton: expected tensors on CUDA, found them on cpu; move them"):
        kernels.shortcut_point(*arguments("shortcut_point")[0])


def test_triton_where_it_is_not_installed(
    choose: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "lacks_triton", lambda: "triton, found none; pip install triton")
    choose("triton")
    with pytest.raises(OSError, match=r"^PTMST_KERNELS=triton: expected triton, found none; pip install triton$"):
        dispatch.on_device("cuda", "triton")
    assert dispatch.on_device("cuda", None) is reference


@pytest.mark.slow
def test_triton_is_not_imported_for_the_cpu() -> None:
    source = (
        "import sys, torch; from ptmst import kernels; "
        "kernels.flat_sgd_(torch.ones(3), torch.ones(3), torch.ones(1), torch.tensor([0, 3]), torch.tensor([0])); "
        "print('ptmst.kernels.triton_kernels' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PTMST_KERNELS")}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"
