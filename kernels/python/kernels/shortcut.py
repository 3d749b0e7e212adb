"""Points of a shortcut trajectory, decoded from half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptmst.kernels.dispatch import implementation
from ptmst.kernels.layout import check, cut, precision
from ptmst.kernels.ops import below_autograd, filling, once, register


def shortcut_point(
    base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor, out: Tensor | None = None
) -> Tensor:
    """θ = base + β · scale · displacement, layer by layer (docs/method.md §2).

    base float32 [P], displacement float16 [P], scale and beta float32 [L], offsets int64 [L+1] → float32 [P].
    All implementations return the same bits. 10 bytes of memory traffic per parameter. `offsets` may stay on the
    host, which avoids a synchronisation with CUDA. Differentiable once, in base, scale and beta. With `out` [P], which
    shares no memory with an input, it is filled and returned, and nothing is differentiated. Float64 runs in plain
    torch. Raises ValueError for shapes or types that do not match.
    """
    if out is not None:
        _INTO(base, displacement, scale, offsets, beta, out)
        return out
    theta: Tensor = _OP(base, displacement, scale, offsets, beta)
    return theta


def _checked(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor) -> Tensor:
    parameters, layers, dtype = base.numel(), scale.numel(), precision(base)
    check(
        {
            "base": (base, dtype, (parameters,)),
            "displacement": (displacement, torch.float16, (parameters,)),
            "scale": (scale, dtype, (layers,)),
            "offsets": (offsets, torch.int64, (layers + 1,)),
            "beta": (beta, dtype, (layers,)),
        }
    )
    return torch.empty_like(base, memory_format=torch.contiguous_format)


def _run(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor) -> Tensor:
    _checked(base, displacement, scale, offsets, beta)
    cut(base.numel(), offsets)
    tensors = (v.contiguous() for v in (base, displacement, scale, offsets, beta))
    theta: Tensor = implementation(base).shortcut_point(*tensors)
    return theta


def _check_into(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor, out: Tensor) -> None:
    _checked(base, displacement, scale, offsets, beta)
    check({"base": (base, base.dtype, tuple(base.shape)), "out": (out, base.dtype, tuple(base.shape))})


def _run_into(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor, out: Tensor) -> None:
    _check_into(base, displacement, scale, offsets, beta, out)
    cut(base.numel(), offsets)
    with filling(out, (base, displacement, scale, beta)) as whole:
        tensors = (v.contiguous() for v in (base, displacement, scale, offsets, beta, whole))
        implementation(base).shortcut_point(*tensors)


class _Point(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Any:
        ctx.save_for_backward(*inputs)
        return below_autograd(_OP, *inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        base, displacement, scale, offsets, beta = ctx.saved_tensors
        gradient = gradients[0]
        of_scale = of_beta = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[4]:
            with torch.no_grad():
                along = _DOTS_OP(gradient, displacement, offsets)
                of_scale, of_beta = along * beta, along * scale
        of_base, of_scale, of_beta = once(
            "shortcut_point", [gradient, of_scale, of_beta], [base, scale, beta, gradient]
        )
        return of_base, None, of_scale, None, of_beta


def _dots(gradient: Tensor, displacement: Tensor, offsets: Tensor) -> Tensor:
    """Σ gradient · displacement of each layer → [L]. An op, since it reads the offsets."""
    sizes = offsets.diff().tolist()
    parts = zip(gradient.split(sizes), displacement.split(sizes), strict=True)
    return torch.stack([torch.dot(g, d.to(g.dtype)) for g, d in parts])


_DOTS_OP = register(
    "layer_dots(Tensor gradient, Tensor displacement, Tensor offsets) -> Tensor",
    _dots,
    lambda gradient, _, offsets: gradient.new_empty(len(offsets) - 1),
)
_OP = register(
    "shortcut_point(Tensor base, Tensor displacement, Tensor scale, Tensor offsets, Tensor beta) -> Tensor",
    _run,
    _checked,
    _Point.apply,
)
_INTO = register(
    "shortcut_point_into(Tensor base, Tensor displacement, Tensor scale, Tensor offsets, Tensor beta, Tensor(a!) out) "
    "-> ()",
    _run_into,
    _check_into,
)
