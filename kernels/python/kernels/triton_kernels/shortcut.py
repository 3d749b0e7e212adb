"""Decoding a shortcut's point."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import cut
from ptmst.kernels.triton_kernels.tiles import inside, launch, tables, tile_begin, within


@triton.jit(do_not_specialize=["num_params"])
def point_kernel(
    p_theta,  # [P] out
    p_base,  # [P]
    p_displacement,  # [P] half
    p_scale,  # [L]
    p_beta,  # [L]
    p_offsets,  # [L+1]
    p_first_layer,  # [tiles + 1]
    num_params,
    BLOCK: tl.constexpr,
):
    """θ = base + β · scale · displacement. A program owns BLOCK parameters."""
    i_tile, o = tl.program_id(0), tl.arange(0, BLOCK)
    begin = tile_begin(i_tile, BLOCK)
    for WHOLE in tl.static_range(2):
        if (begin + BLOCK <= num_params) == WHOLE:
            m = within(o, num_params - begin, WHOLE, BLOCK)
            b_base = tl.load(p_base + begin + o, mask=m, other=0.0)
            b_moved = tl.load(p_displacement + begin + o, mask=m, other=0.0).to(tl.float32)
            b_factor = tl.zeros([BLOCK], tl.float32)
            # Factors of the tile's layers, most often one.
            for i in range(tl.load(p_first_layer + i_tile), tl.load(p_first_layer + i_tile + 1) + 1):
                m_layer = inside(p_offsets, i, o, begin, BLOCK)
                b_factor = tl.where(m_layer, tl.load(p_beta + i) * tl.load(p_scale + i), b_factor)
            tl.store(p_theta + begin + o, b_base + b_factor * b_moved, mask=m)


def shortcut_point(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor) -> Tensor:
    theta = torch.empty_like(base)
    table = tables(cut(base.numel(), offsets), base.device)
    launch(
        point_kernel,
        base.numel(),
        p_theta=theta,
        p_base=base,
        p_displacement=displacement,
        p_scale=scale,
        p_beta=beta,
        p_offsets=table.offsets,
        p_first_layer=table.first_layer,
    )
    return theta
