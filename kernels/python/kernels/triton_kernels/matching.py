"""The residual of a student against its target, and sums per group: first per tile, then of those in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import Cut, cut
from ptmst.kernels.triton_kernels.tiles import (
    BLOCK,
    OPTIONS,
    Tables,
    aligned,
    in_segment,
    launch,
    num_tiles,
    tables,
    tile,
)

_SUMMED = 4096
"""Sums of tiles that are added at once."""


@triton.jit
def tile_sums(
    p_sums,  # [QUANTITIES, places] out
    b_first,  # [BLOCK]
    b_second,  # [BLOCK]
    b_third,  # [BLOCK]
    p_group_offsets,  # [G+1]
    p_first_group,  # [tiles + 1]
    i_tile,
    begin,
    o,  # [BLOCK] offsets in the tile
    num_places,
    QUANTITIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum two or three quantities of a tile over each of its groups.

    The sum of group i goes to place tile + i of tiles + G. The first group of a tile is the last of the tile before, or
    a later one: so no two sums share a place, and those of a group are adjacent.
    """
    for i in range(tl.load(p_first_group + i_tile), tl.load(p_first_group + i_tile + 1) + 1):
        m = in_segment(p_group_offsets, i, begin, o, BLOCK)
        p_own = p_sums + i_tile + i
        tl.store(p_own, tl.sum(tl.where(m, b_first, 0.0), axis=0))
        tl.store(p_own + num_places, tl.sum(tl.where(m, b_second, 0.0), axis=0))
        if QUANTITIES == 3:
            tl.store(p_own + 2 * num_places, tl.sum(tl.where(m, b_third, 0.0), axis=0))


@triton.jit(do_not_specialize=["num_params", "num_places"])
def shortcut_residual_kernel(
    p_residual,  # [P] out
    p_sums,  # [2, places] out
    p_theta,  # [P]
    p_base,  # [P]
    p_displacement,  # [P] half
    p_scale,  # [L]
    p_beta_start,  # [L]
    p_beta_target,  # [L]
    p_offsets,  # [L+1]
    p_group_offsets,  # [G+1]
    p_first_layer,  # [tiles + 1]
    p_first_group,  # [tiles + 1]
    num_params,
    num_places,
    BLOCK: tl.constexpr,
):
    """residual = θ − target; Σ residual², Σ residual (θ − start); start, target = base + β · scale · displacement.

    A program owns BLOCK parameters, and has start and target in registers only.
    """
    for WHOLE in tl.static_range(2):
        i_tile, begin, o, m, applies = tile(num_params, WHOLE, BLOCK)
        if applies:
            b_theta = tl.load(p_theta + begin + o, mask=m, other=0.0)
            b_base = tl.load(p_base + begin + o, mask=m, other=0.0)
            b_moved = tl.load(p_displacement + begin + o, mask=m, other=0.0).to(tl.float32)
            b_start = tl.zeros([BLOCK], tl.float32)
            b_target = tl.zeros([BLOCK], tl.float32)
            # Over the layers of the tile, most often one.
            for i in range(tl.load(p_first_layer + i_tile), tl.load(p_first_layer + i_tile + 1) + 1):
                m_layer, scale = in_segment(p_offsets, i, begin, o, BLOCK), tl.load(p_scale + i)
                b_start = tl.where(m_layer, tl.load(p_beta_start + i) * scale, b_start)
                b_target = tl.where(m_layer, tl.load(p_beta_target + i) * scale, b_target)
            b_residual = b_theta - (b_base + b_target * b_moved)
            b_progress = b_residual * (b_theta - (b_base + b_start * b_moved))
            tl.store(p_residual + begin + o, b_residual, mask=m)
            b_squared = b_residual * b_residual
            tile_sums(
                p_sums,
                b_squared,
                b_progress,
                b_progress,
                p_group_offsets,
                p_first_group,
                i_tile,
                begin,
                o,
                num_places,
                2,
                BLOCK,
            )


@triton.jit(do_not_specialize=["num_params", "num_places"])
def vector_residual_kernel(
    p_residual,  # [P] out
    p_sums,  # [3, places] out
    p_theta,  # [P]
    p_start,  # [P]
    p_target,  # [P]
    p_group_offsets,  # [G+1]
    p_first_group,  # [tiles + 1]
    num_params,
    num_places,
    BLOCK: tl.constexpr,
):
    """residual = θ − target; Σ residual², Σ residual (θ − start), Σ (target − start)².

    A program owns BLOCK parameters.
    """
    for WHOLE in tl.static_range(2):
        i_tile, begin, o, m, applies = tile(num_params, WHOLE, BLOCK)
        if applies:
            b_theta = tl.load(p_theta + begin + o, mask=m, other=0.0)
            b_start = tl.load(p_start + begin + o, mask=m, other=0.0)
            b_target = tl.load(p_target + begin + o, mask=m, other=0.0)
            b_residual, b_moved = b_theta - b_target, b_target - b_start
            tl.store(p_residual + begin + o, b_residual, mask=m)
            b_squared, b_progress, b_distance = (
                b_residual * b_residual,
                b_residual * (b_theta - b_start),
                b_moved * b_moved,
            )
            tile_sums(
                p_sums,
                b_squared,
                b_progress,
                b_distance,
                p_group_offsets,
                p_first_group,
                i_tile,
                begin,
                o,
                num_places,
                3,
                BLOCK,
            )


@triton.jit(do_not_specialize=["num_places"])
def group_sums_kernel(
    p_squared,  # [G] out
    p_progress,  # [G] out
    p_distance,  # [G] out
    p_sums,  # [quantities, places]
    p_group_offsets,  # [G+1]
    num_places,
    BLOCK: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """A program owns the sum of one quantity over one group: in float64, in a fixed order."""
    i_group, i_quantity = tl.program_id(0), tl.program_id(1)
    begin, end = tl.load(p_group_offsets + i_group), tl.load(p_group_offsets + i_group + 1)
    p_own = p_sums + i_quantity * num_places + i_group
    first, last = (begin // BLOCK).to(tl.int32), tl.cdiv(end, BLOCK).to(tl.int32)
    b_total = tl.zeros([SUMMED], tl.float64)
    for i in range(first, tl.where(begin < end, last, first), SUMMED):
        o = i + tl.arange(0, SUMMED)
        b_total += tl.load(p_own + o, mask=o < last, other=0.0).to(tl.float64)
    total = tl.sum(b_total, axis=0)
    if i_quantity == 0:
        tl.store(p_squared + i_group, total)
    elif i_quantity == 1:
        tl.store(p_progress + i_group, total)
    else:
        tl.store(p_distance + i_group, total)


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
    layout = cut(theta.numel(), offsets, groups, num_groups)
    table, sums = tables(layout, theta.device), _sums(layout, theta, 2)
    residual = torch.empty_like(theta) if out is None else out
    launch(
        shortcut_residual_kernel,
        p_residual=residual,
        p_sums=sums,
        p_theta=aligned(theta),
        p_base=aligned(base),
        p_displacement=aligned(displacement),
        p_scale=scale,
        p_beta_start=beta_start,
        p_beta_target=beta_target,
        p_offsets=table.offsets,
        p_group_offsets=table.group_offsets,
        p_first_layer=table.first_layer,
        p_first_group=table.first_group,
        num_params=theta.numel(),
        num_places=sums.shape[1],
    )
    squared, progress = _added(layout, table, sums)
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
    layout = cut(theta.numel(), offsets, groups, num_groups)
    table, sums = tables(layout, theta.device), _sums(layout, theta, 3)
    residual = torch.empty_like(theta) if out is None else out
    launch(
        vector_residual_kernel,
        p_residual=residual,
        p_sums=sums,
        p_theta=aligned(theta),
        p_start=aligned(start),
        p_target=aligned(target),
        p_group_offsets=table.group_offsets,
        p_first_group=table.first_group,
        num_params=theta.numel(),
        num_places=sums.shape[1],
    )
    squared, progress, distance = _added(layout, table, sums)
    return residual, squared, progress, distance


def _sums(layout: Cut, theta: Tensor, quantities: int) -> Tensor:
    return theta.new_empty(quantities, num_tiles(theta.numel()) + layout.num_groups)


def _added(layout: Cut, table: Tables, sums: Tensor) -> list[Tensor]:
    """The sum [G] of each quantity."""
    added = [sums.new_empty(layout.num_groups) for _ in sums]
    if layout.num_groups:
        group_sums_kernel[(layout.num_groups, len(sums))](
            p_squared=added[0],
            p_progress=added[1],
            p_distance=added[-1],
            p_sums=sums,
            p_group_offsets=table.group_offsets,
            num_places=sums.shape[1],
            BLOCK=BLOCK,
            SUMMED=_SUMMED,
            **OPTIONS,
        )
    return added
