"""The residual of a student against the target of its span, and sums per group, in one pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ptmst.kernels.dispatch import implementation
from ptmst.kernels.layout import check, cut, precision
from ptmst.kernels.ops import below_autograd, filling, once, register
from ptmst.kernels.shortcut import shortcut_point


def matching_residual(
    theta: Tensor,
    base: Tensor,
    displacement: Tensor,
    scale: Tensor,
    offsets: Tensor,
    groups: Tensor,
    beta_start: Tensor,
    beta_target: Tensor,
    num_groups: int | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """θ against the shortcut's point at `beta_target` (docs/method.md §4) → residual [P], squared, progress [G].

    residual = θ − target; squared_g = Σ residual²; progress_g = Σ residual · (θ − start), from which ∂L/∂η follows.
    theta, base float32 [P], displacement float16 [P], scale, beta_start, beta_target float32 [L], offsets int64
    [L+1], groups int64 [L], the layers of a group adjacent. The target is never formed: 14 bytes of memory traffic per
    parameter. Without `num_groups` G is groups[-1] + 1, which under torch.compile is a data-dependent size.
    Differentiable once, in theta. With `out` [P], which shares no memory with an input, that becomes the residual, and
    nothing is differentiated. Float64 runs in plain torch. Raises ValueError for shapes or types that do not match.
    """
    inputs = theta, base, displacement, scale, offsets, groups, beta_start, beta_target, num_groups
    if out is not None:
        squared, progress = _SHORTCUT_INTO(*inputs, out)
        return out, squared, progress
    residual, squared, progress = _SHORTCUT_OP(*inputs)
    return residual, squared, progress


def vector_residual(
    theta: Tensor,
    start: Tensor,
    target: Tensor,
    offsets: Tensor,
    groups: Tensor,
    num_groups: int | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Like matching_residual, between plain vectors → residual [P], squared, progress, distance [G].

    theta, start, target float32 [P]; distance_g = Σ (target − start)², the squared length of the span. 16 bytes of
    memory traffic per parameter. Differentiable once, in theta. With `out` [P], which shares no memory with an input,
    that becomes the residual, and nothing is differentiated. Raises ValueError for shapes or types that do not match.
    """
    inputs = theta, start, target, offsets, groups, num_groups
    if out is not None:
        squared, progress, distance = _VECTOR_INTO(*inputs, out)
        return out, squared, progress, distance
    residual, squared, progress, distance = _VECTOR_OP(*inputs)
    return residual, squared, progress, distance


def _check_shortcut(
    theta: Tensor,
    base: Tensor,
    displacement: Tensor,
    scale: Tensor,
    offsets: Tensor,
    groups: Tensor,
    beta_start: Tensor,
    beta_target: Tensor,
) -> None:
    parameters, layers, dtype = base.numel(), scale.numel(), precision(theta)
    check(
        {
            "theta": (theta, dtype, (parameters,)),
            "base": (base, dtype, (parameters,)),
            "displacement": (displacement, torch.float16, (parameters,)),
            "scale": (scale, dtype, (layers,)),
            "offsets": (offsets, torch.int64, (layers + 1,)),
            "groups": (groups, torch.int64, (layers,)),
            "beta_start": (beta_start, dtype, (layers,)),
            "beta_target": (beta_target, dtype, (layers,)),
        }
    )


def _check_vectors(theta: Tensor, start: Tensor, target: Tensor, offsets: Tensor, groups: Tensor) -> None:
    parameters, layers, dtype = theta.numel(), groups.numel(), precision(theta)
    check(
        {
            "theta": (theta, dtype, (parameters,)),
            "start": (start, dtype, (parameters,)),
            "target": (target, dtype, (parameters,)),
            "offsets": (offsets, torch.int64, (layers + 1,)),
            "groups": (groups, torch.int64, (layers,)),
        }
    )


def _run_shortcut(*args: Any, out: Tensor | None = None) -> Any:
    *tensors, num_groups = args
    _check_shortcut(*tensors)
    theta, _, _, _, offsets, groups = tensors[:6]
    cut(theta.numel(), offsets, groups, num_groups)
    arguments = [*(v.contiguous() for v in tensors), num_groups, out]
    return implementation(theta).matching_residual(*arguments)


def _run_vectors(*args: Any, out: Tensor | None = None) -> Any:
    *tensors, num_groups = args
    _check_vectors(*tensors)
    theta, _, _, offsets, groups = tensors
    cut(theta.numel(), offsets, groups, num_groups)
    arguments = [*(v.contiguous() for v in tensors), num_groups, out]
    return implementation(theta).vector_residual(*arguments)


def _into(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, of which the first result goes into the last argument."""

    def run_into(*args: Any) -> Any:
        *inputs, out = args
        _check_out(inputs[0], out)
        with filling(out, inputs[:-1]) as whole:
            return run(*inputs, out=whole)[1:]

    return run_into


def _fake_into(fake: Callable[..., Any]) -> Callable[..., Any]:
    def run_into(*args: Any) -> Any:
        *inputs, out = args
        _check_out(inputs[0], out)
        return fake(*inputs)[1:]

    return run_into


def _check_out(theta: Tensor, out: Tensor) -> None:
    check({name: (tensor, theta.dtype, tuple(theta.shape)) for name, tensor in (("theta", theta), ("out", out))})


def _fake_shortcut(*args: Any) -> Any:
    *tensors, num_groups = args
    _check_shortcut(*tensors)
    return _fakes(tensors[0], num_groups, 2)


def _fake_vectors(*args: Any) -> Any:
    *tensors, num_groups = args
    _check_vectors(*tensors)
    return _fakes(tensors[0], num_groups, 3)


def _fakes(theta: Tensor, num_groups: int | None, sums: int) -> Any:
    count = torch.library.get_ctx().new_dynamic_size() if num_groups is None else num_groups
    residual = torch.empty_like(theta, memory_format=torch.contiguous_format)
    return residual, *(theta.new_empty(count) for _ in range(sums))


class _ShortcutResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        _only_in_theta("matching_residual", ctx)
        outputs = below_autograd(_SHORTCUT_OP, *args)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*args[:7], outputs[0])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        theta, base, displacement, scale, offsets, groups, beta_start, residual = ctx.saved_tensors
        with torch.no_grad():
            moved = None
            if gradients[2] is not None:
                moved = theta - shortcut_point(base, displacement, scale, offsets, beta_start)
            of_theta = _of_theta(residual, moved, offsets, groups, gradients)
        return *once("matching_residual", [of_theta], [theta, *gradients]), *(None,) * 8


class _VectorResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        _only_in_theta("vector_residual", ctx)
        outputs = below_autograd(_VECTOR_OP, *args)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(outputs[3])
        theta, start, _, offsets, groups, _ = args
        ctx.save_for_backward(theta, start, offsets, groups, outputs[0])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        theta, start, offsets, groups, residual = ctx.saved_tensors
        with torch.no_grad():
            moved = None if gradients[2] is None else theta - start
            of_theta = _of_theta(residual, moved, offsets, groups, gradients)
        return *once("vector_residual", [of_theta], [theta, *gradients[:3]]), *(None,) * 5


def _only_in_theta(name: str, ctx: Any) -> None:
    if any(ctx.needs_input_grad[1:]):
        raise RuntimeError(f"{name}: expected a gradient in theta alone; detach the other tensors")


def _of_theta(
    residual: Tensor,
    moved: Tensor | None,
    offsets: Tensor,
    groups: Tensor,
    gradients: tuple[Tensor | None, ...],
) -> Tensor | None:
    """The gradient in θ from those of residual, squared and progress; moved = θ − start. One pass where only `squared`
    has one, as in the matching loss."""
    of_residual, of_squared, of_progress = gradients[:3]
    parts = [] if of_residual is None else [of_residual]
    if of_squared is not None:
        parts.append(_SCALED_OP(residual, 2 * of_squared, offsets, groups))
    if of_progress is not None and moved is not None:
        parts.append(_SCALED_OP(residual + moved, of_progress, offsets, groups))
    return functools.reduce(torch.add, parts) if parts else None


def _scaled(vector: Tensor, factors: Tensor, offsets: Tensor, groups: Tensor) -> Tensor:
    """Each group of a vector [P] times its factor of [G]. An op, since it reads the offsets."""
    out = torch.empty_like(vector)
    ends = cut(vector.numel(), offsets, groups, factors.numel()).group_ends
    for factor, span in zip(factors.unbind(), pairwise(ends), strict=True):
        torch.mul(vector[slice(*span)], factor, out=out[slice(*span)])
    return out


_SCALED_OP = register(
    "scaled_groups(Tensor vector, Tensor factors, Tensor offsets, Tensor groups) -> Tensor",
    _scaled,
    lambda vector, *_: torch.empty_like(vector),
)
_SHORTCUT_OP = register(
    "matching_residual(Tensor theta, Tensor base, Tensor displacement, Tensor scale, Tensor offsets, Tensor groups, "
    "Tensor beta_start, Tensor beta_target, int? num_groups) -> (Tensor, Tensor, Tensor)",
    _run_shortcut,
    _fake_shortcut,
    _ShortcutResidual.apply,
)
_VECTOR_OP = register(
    "vector_residual(Tensor theta, Tensor start, Tensor target, Tensor offsets, Tensor groups, int? num_groups) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run_vectors,
    _fake_vectors,
    _VectorResidual.apply,
)
_SHORTCUT_INTO = register(
    "matching_residual_into(Tensor theta, Tensor base, Tensor displacement, Tensor scale, Tensor offsets, "
    "Tensor groups, Tensor beta_start, Tensor beta_target, int? num_groups, Tensor(a!) out) -> (Tensor, Tensor)",
    _into(_run_shortcut),
    _fake_into(_fake_shortcut),
)
_VECTOR_INTO = register(
    "vector_residual_into(Tensor theta, Tensor start, Tensor target, Tensor offsets, Tensor groups, int? num_groups, "
    "Tensor(a!) out) -> (Tensor, Tensor, Tensor)",
    _into(_run_vectors),
    _fake_into(_fake_vectors),
)
