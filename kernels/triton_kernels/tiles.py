"""How a flat vector is cut into tiles, and where layers and groups lie in them."""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import Cut

BLOCK = 4096
"""Parameters of a tile."""
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}
"""Of every launch. Fused, a·b + c would round once, and a shortcut's point have other bits than plain torch's."""


class Tables(NamedTuple):
    """On a device, of one cut."""

    offsets: Tensor
    """int64 [L+1]."""
    first_layer: Tensor
    """int32 [tiles + 1]: the layer of each tile's first parameter; then the last layer."""
    group_offsets: Tensor
    """int64 [G+1]."""
    first_group: Tensor
    """int32 [tiles + 1], likewise."""


@cache
def tables(cut: Cut, device: torch.device) -> Tables:
    """Made once for each cut and kept: a step that is recorded in a CUDA graph finds them again at their addresses."""
    starts = range(0, cut.ends[-1], BLOCK)

    def first(ends: tuple[int, ...]) -> Tensor:
        # Of several at one offset all but the last are empty.
        found = [bisect_right(ends, start) - 1 for start in starts]
        return torch.tensor([*found, max(len(ends) - 2, 0)], dtype=torch.int32, device=device)

    offsets, group_offsets = (table.to(device) for table in (cut.offsets, cut.group_offsets))
    return Tables(offsets, first(cut.ends), group_offsets, first(cut.group_ends))


def num_tiles(parameters: int) -> int:
    return -(-parameters // BLOCK)


def launch(kernel: Any, parameters: int, **arguments: Any) -> None:
    """Run a kernel over all tiles: the whole ones without masks, which would keep it from reading 16 bytes at once
    wherever P is no multiple of 16, and then the rest."""
    whole, rest = divmod(parameters, BLOCK)
    common = {**arguments, "num_params": parameters, "BLOCK": BLOCK, **OPTIONS}
    if whole:
        kernel[(whole,)](i_begin=0, FULL=True, **common)
    if rest:
        kernel[(1,)](i_begin=whole, FULL=False, **common)


@triton.jit
def tile_offsets(i_tile, BLOCK: tl.constexpr):
    # In 64 bits before the product: parameters pass 2³¹.
    return i_tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def within(o, num_params, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """Which of a tile's offsets are parameters."""
    if FULL:
        m = tl.full([BLOCK], True, tl.int1)
    else:
        m = o < num_params
    return m


@triton.jit
def of_part(
    p_value,  # [L]
    p_offsets,  # [L+1]
    o,  # [BLOCK] offsets of parameters
    i_first,
    i_last,
    BLOCK: tl.constexpr,
):
    """Each parameter's value of its layer, or group: those of a tile are i_first to i_last, most often one."""
    b_value = tl.zeros([BLOCK], tl.float32)
    for i in range(i_first, i_last + 1):
        inside = (o >= tl.load(p_offsets + i)) & (o < tl.load(p_offsets + i + 1))
        b_value = tl.where(inside, tl.load(p_value + i), b_value)
    return b_value
