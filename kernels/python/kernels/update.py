"""Updates in place: of the flat vector of a student, and of a synthetic leaf and its moving average."""

from __future__ import annotations

import torch
from torch import Tensor

from ptmst.kernels.dispatch import implementation
from ptmst.kernels.layout import check, cut
from ptmst.kernels.ops import register, written


def flat_sgd_(theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> Tensor:
    """θ ← θ − η_group · grad, in place (docs/method.md §4); returns θ.

    theta, grad float32 [P], lr float32 [G], offsets int64 [L+1], groups int64 [L]. 12 bytes of memory traffic per
    parameter. Has no gradient. torch.compile fuses `theta - rate * grad` into as fast a kernel, and into a faster one
    together with the computation of `grad`, as in the inner steps of the engine. Raises ValueError for shapes or types
    that do not match.
    """
    _FLAT_SGD(theta, grad, lr, offsets, groups)
    return theta


def sgd_ema_(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor, ema: Tensor, lr: float, momentum: float, decay: float
) -> Tensor:
    """One step of SGD with momentum on a leaf and of its moving average (docs/method.md §3, §5), in place → `param`.

    m ← momentum · m + grad;  param ← param − lr · m;  ema ← decay · ema + (1 − decay) · param. Float32, all of one
    shape; 28 bytes of memory traffic per element, as torch.compile needs. Has no gradient. Raises ValueError for shapes
    or types that differ.
    """
    _SGD_EMA(param, grad, momentum_buffer, ema, lr, momentum, decay)
    return param


def _check_flat(theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> None:
    parameters, layers = theta.numel(), groups.numel()
    check(
        {
            "theta": (theta, torch.float32, (parameters,)),
            "grad": (grad, torch.float32, (parameters,)),
            "lr": (lr, torch.float32, (lr.numel(),)),
            "offsets": (offsets, torch.int64, (layers + 1,)),
            "groups": (groups, torch.int64, (layers,)),
        }
    )


def _check_leaf(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor, ema: Tensor, lr: float, momentum: float, decay: float
) -> None:
    named = {"param": param, "grad": grad, "momentum_buffer": momentum_buffer, "ema": ema}
    check({name: (tensor, torch.float32, tuple(param.shape)) for name, tensor in named.items()})


def _run_flat(theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> None:
    _check_flat(theta, grad, lr, offsets, groups)
    cut(theta.numel(), offsets, groups, lr.numel())
    whole = theta.contiguous()
    others = (v.contiguous() for v in (grad, lr, offsets, groups))
    implementation(theta).flat_sgd_(whole, *others)
    written(theta, whole)


def _run_leaf(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor, ema: Tensor, lr: float, momentum: float, decay: float
) -> None:
    _check_leaf(param, grad, momentum_buffer, ema, lr, momentum, decay)
    changed = param, momentum_buffer, ema
    whole, buffer, average = (v.contiguous() for v in changed)
    implementation(param).sgd_ema_(whole, grad.contiguous(), buffer, average, lr, momentum, decay)
    for tensor, copy in zip(changed, (whole, buffer, average), strict=True):
        written(tensor, copy)


_FLAT_SGD = register(
    "flat_sgd_(Tensor(a!) theta, Tensor grad, Tensor lr, Tensor offsets, Tensor groups) -> ()", _run_flat, _check_flat
)
_SGD_EMA = register(
    "sgd_ema_(Tensor(a!) param, Tensor grad, Tensor(b!) momentum_buffer, Tensor(c!) ema, float lr, float momentum, "
    "float decay) -> ()",
    _run_leaf,
    _check_leaf,
)
