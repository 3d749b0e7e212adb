"""How a flat vector is cut into tiles, and where layers and groups lie in them."""

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
"""Parameters of a tile."""
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}
"""Of every launch but the small ones. Fused, a·b + c would round once: a shortcut's point would have other bits than
plain torch's, and a loss others with its gradient than without. A thread has 8 parameters, which are two loads of 16
bytes of each float32 vector, and registers suffice for half of all threads at once."""


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


_recorded: dict[int, Tables] = {}
"""Those of a CUDA graph, which reads them at their addresses for as long as it lives: nobody can tell how long."""


def tables(cut: Cut, device: torch.device) -> Tables:
    """Those of the last cuts are kept; for good where a CUDA graph is being recorded."""
    found = _tables(cut, device)
    if _recording(device):
        _recorded[id(found)] = found
    return found


def _recording(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=CUTS_KEPT)
def _tables(cut: Cut, device: torch.device) -> Tables:
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
    """Run a kernel over all tiles."""
    if parameters:
        kernel[(num_tiles(parameters),)](**arguments, num_params=parameters, BLOCK=BLOCK, **OPTIONS)


@triton.jit
def tile_begin(i_tile, BLOCK: tl.constexpr):
    # In 64 bits before the product: parameters pass 2³¹.
    return i_tile.to(tl.int64) * BLOCK


@triton.jit
def within(o, left, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """Which of a tile's offsets are parameters, of which `left` are left.

    A whole tile goes without a mask, which would keep it from reading 16 bytes at once wherever P is no multiple of
    16. So kernels have a tile's work twice, of which the last tile alone takes the one with masks.
    """
    if WHOLE:
        m = tl.full([BLOCK], True, tl.int1)
    else:
        m = o < left.to(tl.int32)
    return m


@triton.jit
def inside(
    p_offsets,  # [L+1]
    i,
    o,  # [BLOCK] offsets in the tile
    begin,
    BLOCK: tl.constexpr,
):
    """Which of a tile's offsets lie in layer, or group, i."""
    # In 32 bits from here: half the registers.
    low = tl.maximum(tl.load(p_offsets + i) - begin, 0).to(tl.int32)
    high = tl.minimum(tl.load(p_offsets + i + 1) - begin, BLOCK).to(tl.int32)
    return (o >= low) & (o < high)
