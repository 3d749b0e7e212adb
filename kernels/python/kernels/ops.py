"""Kernels as torch ops: how they are traced and differentiated, and where they refuse to run.

`register` runs once per op, at import. The kernel is registered below autograd; the Autograd key has a guard that
refuses function transforms, in which a kernel's tangents would silently be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("ptmst", "DEF")
_ALIGNMENT = 16
"""Bytes."""


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: Callable[..., Any] | None = None,
) -> Any:
    """The op `ptmst::schema`. `gradient` is called with the op's arguments where one of them requires a gradient;
    without it such a call is refused."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, _on_its_device(kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"ptmst::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.ptmst, name)

    shown = name.removesuffix("_into")  # which is called with `out`

    def guard(*args: Any) -> Any:
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            refuse_transforms(shown, args)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(args)):
            if gradient is None:
                raise RuntimeError(
                    f"{shown}: expected tensors without gradient, since it has none; "
                    "detach them, or call it under torch.no_grad()"
                )
            return gradient(*args)
        return below_autograd(op, *args)

    _LIBRARY.impl(name, guard, "Autograd")
    return op


def _on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be the device of the tensors."""

    def run(*args: Any) -> Any:
        if not args[0].is_cuda:
            return kernel(*args)
        with torch.cuda.device(args[0].device):
            return kernel(*args)

    return run


def below_autograd(op: Any, *args: Any) -> Any:
    """Run an op without autograd, as the forward pass of an autograd Function does."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def refuse_transforms(name: str, args: tuple[Any, ...]) -> None:
    """Raises RuntimeError for a tensor with a tangent, and inside torch.func's grad and jvp."""
    forward = any(torch._VF._unpack_dual(t, level=0).tangent is not None for t in _tensors(args))
    if forward or torch._C._are_functorch_transforms_active():
        what = "forward-mode differentiation" if forward else "a transform of torch.func"
        raise RuntimeError(
            f"{name}: expected no {what}, which would lose its derivatives; "
            f"call it outside, or use ptmst.kernels.reference.{name}, plain torch, inside"
        )


class _Once(torch.autograd.Function):
    """The identity on a gradient; differentiating it raises.

    torch's `once_differentiable` raises only for a second derivative through the incoming gradient; one through the
    inputs it would silently drop.
    """

    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *inputs: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.name} is differentiable once; for a second derivative use plain torch "
            f"(ptmst.kernels.reference) or drop create_graph=True"
        )


def once(name: str, gradients: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients that a backward pass computed under no_grad, such that differentiating them raises.

    inputs: everything they depend on, the incoming gradients included.
    """
    if not torch.is_grad_enabled():
        return list(gradients)
    present = [v for v in inputs if v is not None]
    return [None if g is None else _Once.apply(name, g, *present) for g in gradients]


@contextmanager
def filling(out: Tensor, inputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """A contiguous tensor like `out`, or `out` itself where it is one, whose values `out` has after the block.

    Raises ValueError where `out` has memory of an input.
    """
    if any(_overlap(out, tensor) for tensor in inputs):
        raise ValueError("out: expected memory of its own, found that of an input; give another tensor")
    # Kernels on CUDA sum in another order where a vector begins elsewhere.
    fits = out.is_contiguous() and out.data_ptr() % _ALIGNMENT == 0
    whole = out if fits else torch.empty_like(out, memory_format=torch.contiguous_format)
    yield whole
    written(out, whole)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether some bytes between the first and the last of one are between those of the other."""
    (a_first, a_end), (b_first, b_end) = map(_extent, (a, b))
    return a.device == b.device and a_first < b_end and b_first < a_end


def _extent(tensor: Tensor) -> tuple[int, int]:
    if not tensor.numel():
        return 0, 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (steps + 1) * tensor.element_size()


def written(tensor: Tensor, copy: Tensor) -> None:
    """Tell autograd and torch.compile of the change, after copying it to a tensor that is not contiguous itself."""
    if copy.data_ptr() != tensor.data_ptr():
        tensor.copy_(copy)
    elif not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    tensors = [value for value in args if isinstance(value, Tensor)]
    return tensors + [v for value in args if isinstance(value, list) for v in value if isinstance(v, Tensor)]
