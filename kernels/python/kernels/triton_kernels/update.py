"""Updates in place."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import cut
from ptmst.kernels.triton_kernels.tiles import in_segment, launch, tables, tile


@triton.jit(do_not_specialize=["num_params"])
def flat_sgd_kernel(
    p_theta,  # [P] in and out
    p_grad,  # [P]
    p_lr,  # [G]
    p_group_offsets,  # [G+1]
    p_first_group,  # [tiles + 1]
    num_params,
    BLOCK: tl.constexpr,
):
    """θ ← θ − η_group · grad. A program owns BLOCK parameters."""
    for WHOLE in tl.static_range(2):
        i_tile, begin, o, m, applies = tile(num_params, WHOLE, BLOCK)
        if applies:
            b_theta = tl.load(p_theta + begin + o, mask=m, other=0.0)
            b_grad = tl.load(p_grad + begin + o, mask=m, other=0.0)
            b_rate = tl.zeros([BLOCK], tl.float32)
            for i in range(tl.load(p_first_group + i_tile), tl.load(p_first_group + i_tile + 1) + 1):
                b_rate = tl.where(in_segment(p_group_offsets, i, begin, o, BLOCK), tl.load(p_lr + i), b_rate)
            tl.store(p_theta + begin + o, b_theta - b_rate * b_grad, mask=m)


@triton.jit(do_not_specialize=["num_params"])
def sgd_ema_kernel(
    p_param,  # [P] in and out
    p_momentum,  # [P] in and out
    p_ema,  # [P] in and out
    p_grad,  # [P]
    lr,
    momentum,
    weight,  # 1 − decay
    num_params,
    BLOCK: tl.constexpr,
):
    """m ← momentum · m + grad; param ← param − lr · m; ema ← ema + weight · (param − ema).

    A program owns BLOCK elements.
    """
    for WHOLE in tl.static_range(2):
        _, begin, o, m, applies = tile(num_params, WHOLE, BLOCK)
        if applies:
            b_momentum = momentum * tl.load(p_momentum + begin + o, mask=m, other=0.0)
            b_momentum += tl.load(p_grad + begin + o, mask=m, other=0.0)
            b_param = tl.load(p_param + begin + o, mask=m, other=0.0) - lr * b_momentum
            b_ema = tl.load(p_ema + begin + o, mask=m, other=0.0)
            # As torch's lerp: from the nearer end.
            b_step = b_param - b_ema
            b_ema = tl.where(weight < 0.5, b_ema + weight * b_step, b_param - b_step * (1 - weight))
            tl.store(p_momentum + begin + o, b_momentum, mask=m)
            tl.store(p_param + begin + o, b_param, mask=m)
            tl.store(p_ema + begin + o, b_ema, mask=m)


def flat_sgd_(theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> None:
    table = tables(cut(theta.numel(), offsets, groups, lr.numel()), theta.device)
    launch(
        flat_sgd_kernel,
        p_theta=theta,
        p_grad=grad,
        p_lr=lr,
        p_group_offsets=table.group_offsets,
        p_first_group=table.first_group,
        num_params=theta.numel(),
    )


def sgd_ema_(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor, ema: Tensor, lr: float, momentum: float, decay: float
) -> None:
    launch(
        sgd_ema_kernel,
        p_param=param,
        p_momentum=momentum_buffer,
        p_ema=ema,
        p_grad=grad,
        lr=lr,
        momentum=momentum,
        weight=1 - decay,
        num_params=param.numel(),
    )
