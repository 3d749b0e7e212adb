"""What a process on the null device needs of Python besides: convolutions without cuDNN.

cuDNN has no stand-in and would fail. So a convolution here is what it is on a device with cuDNN as the host sees it:
outputs in the memory format that torch would choose, and a launch for each of them (one more for a bias).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

_KEPT: list[Any] = []
"""Registrations last as long as these objects."""


def install() -> None:
    """Stand in for convolutions on CUDA, for the rest of the process."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its own are replaced, as is wanted
        library.impl("convolution", _convolution, "CUDA")
        library.impl("convolution_backward", _convolution_backward, "CUDA")
    _KEPT.append(library)


def _convolution(images: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    shape = torch.ops.aten.convolution(*(_meta(t) for t in (images, weight, bias)), *how)
    out = _written(shape, images, _format(images, weight, bias, how, None))
    return out if bias is None else out.add_(0)


def _convolution_backward(
    grad: Tensor, images: Tensor, weight: Tensor, bias_sizes: list[int] | None, *how: Any
) -> tuple[Tensor | None, ...]:
    wanted = how[-1]
    shapes = torch.ops.aten.convolution_backward(*(_meta(t) for t in (grad, images, weight)), bias_sizes, *how)
    memory = _format(images, weight, None, how[:-1], bias_sizes)
    formats = (memory, memory, torch.contiguous_format)
    return tuple(
        _written(shape, images, each) if asked else None
        for shape, each, asked in zip(shapes, formats, wanted, strict=True)
    )


def _meta(tensor: Tensor | None) -> Tensor | None:
    return (
        None
        if tensor is None
        else torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    )


def _format(
    images: Tensor, weight: Tensor, bias: Tensor | None, how: Any, bias_sizes: list[int] | None
) -> torch.memory_format:
    stride, padding, dilation, transposed, output_padding, groups = how
    chosen = torch._C._select_conv_backend(
        images, weight, bias, stride, padding, dilation, transposed, output_padding, groups, bias_sizes
    )
    found: torch.memory_format = torch._C._conv_determine_backend_memory_format(images, weight, chosen)
    return found


def _written(shape: Tensor, like: Tensor, memory: torch.memory_format) -> Tensor:
    """A new tensor, and a launch that would have filled it."""
    out = torch.empty(shape.shape, dtype=shape.dtype, device=like.device, memory_format=memory)
    return out.zero_()


def answer() -> None:
    """Answer what the host asks of numbers to go on, for the rest of the process.

    What it reads of the device is 1 where it is a float and true where it is a bool, so that all is finite, positive
    and in motion; but no comparison holds of any. Whole tensors come as they are, but finite. All is asked of the
    device nevertheless, and waited for.
    """
    tensor: Any = torch.Tensor
    item, tolist, any_, is_true, cpu = tensor.item, tensor.tolist, tensor.any, tensor.__bool__, tensor.cpu

    def ones(value: Any) -> Any:
        return [ones(v) for v in value] if isinstance(value, list) else type(value)(1)

    def answered(read: Any) -> Any:
        def asked(self: Tensor) -> Any:
            value = read(self)
            return ones(value) if self.is_cuda and (self.is_floating_point() or self.dtype == torch.bool) else value

        return asked

    def none(self: Tensor, *args: Any, **named: Any) -> Any:
        value = any_(self, *args, **named)
        if not self.is_cuda or args or named:
            return value
        item(value)
        return torch.tensor(False)

    def finite(self: Tensor) -> Tensor:
        value: Tensor = cpu(self)
        return value.nan_to_num_(0, 0, 0) if self.is_cuda and value.is_floating_point() else value

    tensor.item, tensor.tolist, tensor.__bool__ = answered(item), answered(tolist), answered(is_true)
    tensor.any, tensor.cpu, tensor.__float__ = none, finite, answered(tensor.__float__)
