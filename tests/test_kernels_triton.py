"""Where a tile of parameters begins, past 2³¹ of them."""

from __future__ import annotations

import pytest
import torch
from lanes import running

from ptmst.kernels import dispatch
from ptmst.kernels.layout import cut

if dispatch.lacks_triton():
    pytest.skip("Triton cannot run here", allow_module_level=True)

import triton
import triton.language as tl

from ptmst.kernels.triton_kernels import tiles


@triton.jit  # type: ignore[untyped-decorator]
def offsets_kernel(p_out, i_tile, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(p_out + tl.arange(0, BLOCK), tiles.tile_offsets(tl.program_id(0) + i_tile, BLOCK))


@pytest.mark.parametrize("i_tile", [3, 2**31 // tiles.BLOCK - 1, 2**31 // tiles.BLOCK + 7, 2**30])
def test_offsets_of_a_tile_are_of_64_bits(i_tile: int) -> None:
    with running("triton") as device:
        out = torch.zeros(tiles.BLOCK, dtype=torch.int64, device=device)
        offsets_kernel[(1,)](out, i_tile, BLOCK=tiles.BLOCK)
        assert torch.equal(out.cpu(), i_tile * tiles.BLOCK + torch.arange(tiles.BLOCK))


def test_tables_name_the_layers_of_each_tile() -> None:
    block = tiles.BLOCK
    sizes = [block - 1, 0, 1, 0, block, 3 * block + 5, 7]
    ends = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    layout = cut(int(ends[-1]), ends, groups)
    found = tiles.tables(layout, torch.device("cpu"))
    layer_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    starts = torch.arange(0, int(ends[-1]), block)
    assert found.first_layer.tolist() == [*layer_of[starts].tolist(), len(sizes) - 1]
    assert found.first_group.tolist() == [*groups[layer_of[starts]].tolist(), 2]
    assert found.group_offsets.tolist() == [0, block, 5 * block + 5, 5 * block + 12]
