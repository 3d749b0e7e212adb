"""Decoding a shortcut's point."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import cut
from ptmst.kernels.triton_kernels.tiles import launch, of_part, tables, tile_offsets, within


@triton.jit(do_not_specialize=["i_begin"])
def point_kernel(
    p_theta,  # [P] out
    p_base,  # [P]
    p_displacement,  # [P] half
    p_factor,  # [L] β · scale
    p_offsets,  # [L+1]
    p_first_layer,  # [tiles + 1]
    num_params,
    i_begin,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """θ = base + factor · displacement. A program owns BLOCK parameters."""
    i_tile = i_begin + tl.program_id(0)
    o = tile_offsets(i_tile, BLOCK)
    m = within(o, num_params, FULL, BLOCK)
    i_first, i_last = tl.load(p_first_layer + i_tile), tl.load(p_first_layer + i_tile + 1)
    b_factor = of_part(p_factor, p_offsets, o, i_first, i_last, BLOCK)
    b_moved = tl.load(p_displacement + o, mask=m, other=0.0).to(tl.float32)
    tl.store(p_theta + o, tl.load(p_base + o, mask=m, other=0.0) + b_factor * b_moved, mask=m)


def shortcut_point(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor) -> Tensor:
    theta = torch.empty_like(base)
    table = tables(cut(base.numel(), offsets), base.device)
    launch(
        point_kernel,
        base.numel(),
        p_theta=theta,
        p_base=base,
        p_displacement=displacement,
        p_factor=beta * scale,
        p_offsets=table.offsets,
        p_first_layer=table.first_layer,
    )
    return theta
