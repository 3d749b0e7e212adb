"""The native C++ kernels (csrc/), called through ctypes. Tensors are float32 on the CPU, contiguous, and checked.

The contract is dispatch.py's `TiledImplementation`.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ptmst.kernels.layout import cut
from ptmst.kernels.steps import (
    LABEL_MAX,
    LOGIT_MAX,
    LOWEST,
    pair_weights,
    softmax_coefficients,
    through_norms,
    totals,
    unit_pairs,
)

__all__ = [
    "choose",
    "flat_sgd_",
    "instructions",
    "library",
    "matching_residual",
    "pairwise",
    "sgd_ema_",
    "shortcut_point",
    "softmax_coefficients",
    "softmax_gradient",
    "softmax_stats",
    "through_norms",
    "totals",
    "unit_pairs",
    "vector_residual",
]

_POINTERS = (torch.float32, torch.float64, torch.float16, torch.int64)
_KINDS = ("wbce", "bce", "mse", "siglip", "linear", "kl")
"""In the order of `Kind` in csrc/kernels.hpp."""


def library() -> ctypes.CDLL | None:
    """The library; None where there is none."""
    loaded = _loaded()
    return None if isinstance(loaded, str) else loaded


def lacks() -> str:
    """Why there is no library, and what to do; empty where there is one."""
    loaded = _loaded()
    return loaded if isinstance(loaded, str) else ""


@cache
def _loaded() -> ctypes.CDLL | str:
    # An editable install does not put it beside this file, so the import system is asked.
    spec = importlib.util.find_spec("ptmst.kernels._native")
    if spec is None or spec.origin is None:
        return "was not built: install with g++ and cmake"
    try:
        loaded = ctypes.CDLL(spec.origin)
        loaded.ptmst_instructions.restype = ctypes.c_char_p
        loaded.ptmst_choose.argtypes = [ctypes.c_char_p]
    except (OSError, AttributeError) as error:
        return f"does not load ({error}): reinstall, with g++ and cmake"
    return loaded


def instructions() -> str:
    """The instruction set in use, in words."""
    return str(_library().ptmst_instructions().decode())


def choose(instruction_set: str) -> bool:
    """Use "portable", "avx2", "avx512" or the "best" from now on; false where the machine or the library lacks it."""
    return bool(_library().ptmst_choose(instruction_set.encode()))


def shortcut_point(
    base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor, out: Tensor | None = None
) -> Tensor:
    table = cut(base.numel(), offsets)
    theta = torch.empty_like(base) if out is None else out
    _call("shortcut_point", theta, base, displacement, scale, beta, table.offsets, len(scale))
    return theta


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
    table = cut(base.numel(), offsets, groups, num_groups)
    residual = torch.empty_like(theta) if out is None else out
    squared, progress = (torch.empty(table.num_groups) for _ in range(2))
    tensors = (residual, squared, progress, theta, base, displacement, scale, beta_start, beta_target)
    _call("match_shortcut", *tensors, table.offsets, table.groups, len(scale), table.num_groups)
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
    table = cut(theta.numel(), offsets, groups, num_groups)
    residual = torch.empty_like(theta) if out is None else out
    squared, progress, distance = (torch.empty(table.num_groups) for _ in range(3))
    _call(
        "match_vectors", residual, squared, progress, distance, theta, start, target, table.group_offsets,
        table.num_groups,
    )  # fmt: skip
    return residual, squared, progress, distance


def flat_sgd_(theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> None:
    table = cut(theta.numel(), offsets, groups, lr.numel())
    _call("flat_sgd", theta, grad, lr, table.group_offsets, table.num_groups)


def sgd_ema_(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor, ema: Tensor, lr: float, momentum: float, decay: float
) -> None:
    numbers = (ctypes.c_float(v) for v in (lr, momentum, 1 - decay))
    _call("sgd_ema", param, grad, momentum_buffer, ema, *numbers, param.numel())


def pairwise(
    kind: str, z: Tensor, labels: Tensor | None, d_labels: Tensor | None, first: int, bias: Tensor,
    positives: Tensor | None, differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if added := float(bias):
        z += added
    weights = torch.tensor(pair_weights(kind, z.shape[1], positives), dtype=torch.float64)
    sums, stride = torch.zeros(4, dtype=torch.float64), 0 if labels is None else labels.stride(0)
    tile = (z, labels, d_labels, *z.shape, stride, first)
    _call("pairwise", _KINDS.index(kind), *tile, weights.float(), differentiate, sums)
    return sums[:2] * weights, sums[2:3] - added * sums[3:], sums[3:]


def softmax_stats(form: str, z: Tensor, labels: Tensor | None, first: int, rows: Tensor, columns: Tensor) -> None:
    if first == 0:
        columns.zero_()
        columns[[LOGIT_MAX, LABEL_MAX]] = LOWEST
    stride = 0 if labels is None else labels.stride(0)
    _call("softmax_stats", _KINDS.index(form), z, labels, *z.shape, stride, first, rows, columns)


def softmax_gradient(
    form: str, z: Tensor, labels: Tensor | None, d_labels: Tensor | None, first: int, rows: Tensor, columns: Tensor,
) -> Tensor:  # fmt: skip
    sums, stride = torch.zeros(2, dtype=torch.float64), 0 if labels is None else labels.stride(0)
    _call("softmax_gradient", _KINDS.index(form), z, labels, d_labels, *z.shape, stride, first, rows, columns, sums)
    return sums[:1]


def _library() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None
    return loaded


def _call(name: str, *args: Any) -> None:
    """Call a function of the library: tensors as addresses, integers as 64 bits, and the number of torch's threads."""
    getattr(_library(), f"ptmst_{name}")(*map(_argument, args), ctypes.c_int64(torch.get_num_threads()))


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        assert value.is_contiguous() or (value.dim() == 2 and value.stride(1) == 1)
        assert value.dtype in _POINTERS, value.dtype  # C++ cannot tell types
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p(None)
    return ctypes.c_int64(value) if isinstance(value, int) else value
