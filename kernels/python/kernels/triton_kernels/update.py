"""Updates in place."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import cut
from ptmst.kernels.triton_kernels.tiles import inside, launch, tables, tile_begin, within


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
    i_tile, o = tl.program_id(0), tl.arange(0, BLOCK)
    begin = tile_begin(i_tile, BLOCK)
    for WHOLE in tl.static_range(2):
        if (begin + BLOCK <= num_params) == WHOLE:
            m = within(o, num_params - begin, WHOLE, BLOCK)
            b_theta = tl.load(p_theta + begin + o, mask=m, other=0.0)
            b_grad = tl.load(p_grad + begin + o, mask=m, other=0.0)
            b_rate = tl.zeros([BLOCK], tl.float32)
            for i in range(tl.load(p_first_group + i_tile), tl.load(p_first_group + i_tile + 1) + 1):
                b_rate = tl.where(inside(p_group_offsets, i, o, begin, BLOCK), tl.load(p_lr + i), b_rate)
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
    """m ← momentum · m + grad; param ← param − lr · m; ema ← param by weight. A program owns BLOCK elements."""
    o, begin = tl.arange(0, BLOCK), tile_begin(tl.program_id(0), BLOCK)
    for WHOLE in tl.static_range(2):
        if (begin + BLOCK <= num_params) == WHOLE:
            m = within(o, num_params - begin, WHOLE, BLOCK)
            b_momentum = momentum * tl.load(p_momentum + begin + o, mask=m, other=0.0)
            b_momentum += tl.load(p_grad + begin + o, mask=m, other=0.0)
            b_param = tl.load(p_param + begin + o, mask=m, other=0.0) - lr * b_momentum
            b_ema = tl.load(p_ema + begin + o, mask=m, other=0.0)
            # torch's lerp: from whichever end is nearer.
            b_step = b_param - b_ema
            b_ema = tl.where(weight < 0.5, b_ema + weight * b_step, b_param - b_step * (1 - weight))
            tl.store(p_momentum + begin + o, b_momentum, mask=m)
            tl.store(p_param + begin + o, b_param, mask=m)
            tl.store(p_ema + begin + o, b_ema, mask=m)


def flat_sgd_(theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> None:
    table = tables(cut(theta.numel(), offsets, groups, lr.numel()), theta.device)
    launch(
        flat_sgd_kernel,
        theta.numel(),
        p_theta=theta,
        p_grad=grad,
        p_lr=lr,
        p_group_offsets=table.group_offsets,
        p_first_group=table.first_group,
    )


def sgd_ema_(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor, ema: Tensor, lr: float, momentum: float, decay: float
) -> None:
    launch(
        sgd_ema_kernel,
        param.numel(),
        p_param=param,
        p_momentum=momentum_buffer,
        p_ema=ema,
        p_grad=grad,
        lr=lr,
        momentum=momentum,
        weight=1 - decay,
    )
