"""Residual of a student against its target, with sums per group: tiles first, then their sums in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import Cut, cut
from ptmst.kernels.triton_kernels.tiles import launch, num_tiles, of_part, tables, tile_offsets, within

_SUMMED = 1024
"""Tiles' sums that are added at once."""


@triton.jit
def tile_sums(
    p_partial,  # [tiles, G, QUANTITIES] out; zeros before
    b_value,  # [BLOCK]
    o,  # [BLOCK]
    m,  # [BLOCK]
    p_group_offsets,  # [G+1]
    i_tile,
    i_first,
    i_last,
    i_quantity,
    num_groups,
    QUANTITIES: tl.constexpr,
):
    """Sum a tile's values over each of its groups i_first to i_last."""
    for i in range(i_first, i_last + 1):
        inside = m & (o >= tl.load(p_group_offsets + i)) & (o < tl.load(p_group_offsets + i + 1))
        total = tl.sum(tl.where(inside, b_value, 0.0), axis=0)
        tl.store(p_partial + (i_tile.to(tl.int64) * num_groups + i) * QUANTITIES + i_quantity, total)


@triton.jit(do_not_specialize=["i_begin"])
def shortcut_residual_kernel(
    p_residual,  # [P] out
    p_partial,  # [tiles, G, 3] out; zeros before
    p_theta,  # [P]
    p_base,  # [P]
    p_displacement,  # [P] half
    p_start_factor,  # [L] β(s) · scale
    p_target_factor,  # [L] β(t) · scale
    p_offsets,  # [L+1]
    p_group_offsets,  # [G+1]
    p_first_layer,  # [tiles + 1]
    p_first_group,  # [tiles + 1]
    num_params,
    num_groups,
    i_begin,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """residual = θ − target; Σ residual², Σ residual (θ − start). A program owns BLOCK parameters; start and target
    live in registers only."""
    i_tile = i_begin + tl.program_id(0)
    o = tile_offsets(i_tile, BLOCK)
    m = within(o, num_params, FULL, BLOCK)
    i_first, i_last = tl.load(p_first_layer + i_tile), tl.load(p_first_layer + i_tile + 1)
    b_theta = tl.load(p_theta + o, mask=m, other=0.0)
    b_base = tl.load(p_base + o, mask=m, other=0.0)
    b_moved = tl.load(p_displacement + o, mask=m, other=0.0).to(tl.float32)
    b_start = b_base + of_part(p_start_factor, p_offsets, o, i_first, i_last, BLOCK) * b_moved
    b_target = b_base + of_part(p_target_factor, p_offsets, o, i_first, i_last, BLOCK) * b_moved
    b_residual = b_theta - b_target
    tl.store(p_residual + o, b_residual, mask=m)
    i_first, i_last = tl.load(p_first_group + i_tile), tl.load(p_first_group + i_tile + 1)
    b_squared, b_progress = b_residual * b_residual, b_residual * (b_theta - b_start)
    tile_sums(p_partial, b_squared, o, m, p_group_offsets, i_tile, i_first, i_last, 0, num_groups, 3)
    tile_sums(p_partial, b_progress, o, m, p_group_offsets, i_tile, i_first, i_last, 1, num_groups, 3)


@triton.jit(do_not_specialize=["i_begin"])
def vector_residual_kernel(
    p_residual,  # [P] out
    p_partial,  # [tiles, G, 3] out; zeros before
    p_theta,  # [P]
    p_start,  # [P]
    p_target,  # [P]
    p_group_offsets,  # [G+1]
    p_first_group,  # [tiles + 1]
    num_params,
    num_groups,
    i_begin,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same between plain vectors, and Σ (target − start)²."""
    i_tile = i_begin + tl.program_id(0)
    o = tile_offsets(i_tile, BLOCK)
    m = within(o, num_params, FULL, BLOCK)
    b_theta = tl.load(p_theta + o, mask=m, other=0.0)
    b_start = tl.load(p_start + o, mask=m, other=0.0)
    b_target = tl.load(p_target + o, mask=m, other=0.0)
    b_residual, b_distance = b_theta - b_target, b_target - b_start
    tl.store(p_residual + o, b_residual, mask=m)
    i_first, i_last = tl.load(p_first_group + i_tile), tl.load(p_first_group + i_tile + 1)
    b_squared, b_progress = b_residual * b_residual, b_residual * (b_theta - b_start)
    tile_sums(p_partial, b_squared, o, m, p_group_offsets, i_tile, i_first, i_last, 0, num_groups, 3)
    tile_sums(p_partial, b_progress, o, m, p_group_offsets, i_tile, i_first, i_last, 1, num_groups, 3)
    tile_sums(p_partial, b_distance * b_distance, o, m, p_group_offsets, i_tile, i_first, i_last, 2, num_groups, 3)


@triton.jit
def add_up_kernel(
    p_sums,  # [columns] out
    p_partial,  # [rows, columns]
    num_rows,
    num_columns,
    SUMMED: tl.constexpr,
):
    """A program owns a column: its sum in float64, in an order that is always the same."""
    i_column = tl.program_id(0)
    o = tl.arange(0, SUMMED)
    b_total = tl.zeros([SUMMED], tl.float64)
    for i_row in range(0, num_rows, SUMMED):
        o_row = (i_row + o).to(tl.int64)
        b_total += tl.load(p_partial + o_row * num_columns + i_column, mask=o_row < num_rows, other=0.0).to(tl.float64)
    tl.store(p_sums + i_column, tl.sum(b_total, axis=0))


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
) -> tuple[Tensor, Tensor, Tensor]:
    layout = cut(theta.numel(), offsets, groups, num_groups)
    table = tables(layout, theta.device)
    residual, partial = torch.empty_like(theta), _partial(layout, theta)
    launch(
        shortcut_residual_kernel,
        theta.numel(),
        p_residual=residual,
        p_partial=partial,
        p_theta=theta,
        p_base=base,
        p_displacement=displacement,
        p_start_factor=beta_start * scale,
        p_target_factor=beta_target * scale,
        p_offsets=table.offsets,
        p_group_offsets=table.group_offsets,
        p_first_layer=table.first_layer,
        p_first_group=table.first_group,
        num_groups=layout.num_groups,
    )
    squared, progress, _ = _added(layout, partial)
    return residual, squared, progress


def vector_residual(
    theta: Tensor, start: Tensor, target: Tensor, offsets: Tensor, groups: Tensor, num_groups: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = cut(theta.numel(), offsets, groups, num_groups)
    table = tables(layout, theta.device)
    residual, partial = torch.empty_like(theta), _partial(layout, theta)
    launch(
        vector_residual_kernel,
        theta.numel(),
        p_residual=residual,
        p_partial=partial,
        p_theta=theta,
        p_start=start,
        p_target=target,
        p_group_offsets=table.group_offsets,
        p_first_group=table.first_group,
        num_groups=layout.num_groups,
    )
    squared, progress, distance = _added(layout, partial)
    return residual, squared, progress, distance


def _partial(layout: Cut, theta: Tensor) -> Tensor:
    return theta.new_zeros(num_tiles(theta.numel()), layout.num_groups, 3)


def _added(layout: Cut, partial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sums = partial.new_empty(layout.num_groups, 3)
    if layout.num_groups:
        add_up_kernel[(3 * layout.num_groups,)](
            p_sums=sums,
            p_partial=partial,
            num_rows=len(partial),
            num_columns=3 * layout.num_groups,
            SUMMED=_SUMMED,
            num_warps=4,
        )
    squared, progress, distance = (column.clone() for column in sums.unbind(1))
    return squared, progress, distance
