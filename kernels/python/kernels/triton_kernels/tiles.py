"""How a flat vector is cut into tiles, and which layers and groups are in each."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import CUTS_KEPT, Cut

BLOCK = 2048
"""Parameters per tile."""
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}
"""For all launches but the small ones. Fused, a·b + c would round only once: a shortcut's point would differ in bits
from plain torch, and a loss with its gradient from the loss alone. A thread has 8 parameters, that is two loads of 16
bytes per float32 vector, and registers suffice for an occupancy of one half."""

_ALIGNED = 16
"""Bytes."""


class Tables(NamedTuple):
    """The tables of one cut, on a device."""

    offsets: Tensor
    """int64 [L+1]."""
    first_layer: Tensor
    """int32 [tiles + 1]: the layer of the first parameter of each tile, and the last layer."""
    group_offsets: Tensor
    """int64 [G+1]."""
    first_group: Tensor
    """int32 [tiles + 1], likewise of groups."""


_recorded: dict[int, Tables] = {}
"""Tables that a CUDA graph reads at their addresses for as long as it lives, which is unknown here."""


def tables(cut: Cut, device: torch.device) -> Tables:
    """The tables of a cut. The last ones are cached; those used while a CUDA graph is recorded are never freed."""
    table = _tables(cut, device)
    if _recording(device):
        _recorded[id(table)] = table
    return table


def _recording(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=CUTS_KEPT)
def _tables(cut: Cut, device: torch.device) -> Tables:
    starts = range(0, cut.ends[-1], BLOCK)

    def first(ends: tuple[int, ...]) -> Tensor:
        # Of several that begin at one offset, all but the last are empty.
        numbers = [bisect_right(ends, start) - 1 for start in starts]
        return torch.tensor([*numbers, max(len(ends) - 2, 0)], dtype=torch.int32, device=device)

    offsets, group_offsets = (table.to(device) for table in (cut.offsets, cut.group_offsets))
    return Tables(offsets, first(cut.ends), group_offsets, first(cut.group_ends))


def num_tiles(parameters: int) -> int:
    return -(-parameters // BLOCK)


def launch(kernel: Any, **arguments: Any) -> None:
    """Run a kernel over all tiles of its `num_params` parameters."""
    if tiles := num_tiles(arguments["num_params"]):
        kernel[(tiles,)](**arguments, BLOCK=BLOCK, **OPTIONS)


def aligned(vector: Tensor) -> Tensor:
    """The vector, or its copy, at an address for loads of 16 bytes.

    From elsewhere Triton lays a tile out differently over the threads, and adds it in another order.
    """
    return vector if vector.data_ptr() % _ALIGNED == 0 else vector.clone()


@triton.jit
def tile_begin(i_tile, BLOCK: tl.constexpr):
    # 64 bits before the product: there can be more than 2³¹ parameters.
    return i_tile.to(tl.int64) * BLOCK


@triton.jit
def tile(num_params, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """The tile of a program → its number, its first parameter, offsets [BLOCK] and mask [BLOCK] of its parameters, and
    whether the case applies: WHOLE = 1 for a whole tile, 0 for the remainder at the end.

    Kernels compile the work of a tile twice, `for WHOLE in tl.static_range(2)`, and run the case that applies: a whole
    tile needs no mask, which would prevent loads of 16 bytes wherever P is not a multiple of 16.
    """
    i_tile, o = tl.program_id(0), tl.arange(0, BLOCK)
    begin = tile_begin(i_tile, BLOCK)
    applies = (begin + BLOCK <= num_params) == WHOLE
    if WHOLE:
        m = tl.full([BLOCK], True, tl.int1)
    else:
        m = o < (num_params - begin).to(tl.int32)
    return i_tile, begin, o, m, applies


@triton.jit
def in_segment(
    p_offsets,  # [segments + 1]
    i_segment,
    begin,
    o,  # [BLOCK] offsets in the tile
    BLOCK: tl.constexpr,
):
    """Which parameters of the tile that starts at `begin` belong to layer, or group, `i_segment`."""
    # 32 bits from here on: half the registers.
    low = tl.maximum(tl.load(p_offsets + i_segment) - begin, 0).to(tl.int32)
    high = tl.minimum(tl.load(p_offsets + i_segment + 1) - begin, BLOCK).to(tl.int32)
    return (o >= low) & (o < high)
