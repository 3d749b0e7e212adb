"""Points of a shortcut trajectory, decoded from half precision."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.layout import cut
from ptmst.kernels.triton_kernels.tiles import in_segment, launch, tables, tile


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
    for WHOLE in tl.static_range(2):
        i_tile, begin, o, m, applies = tile(num_params, WHOLE, BLOCK)
        if applies:
            b_base = tl.load(p_base + begin + o, mask=m, other=0.0)
            b_moved = tl.load(p_displacement + begin + o, mask=m, other=0.0).to(tl.float32)
            b_factor = tl.zeros([BLOCK], tl.float32)
            # Over the layers of the tile, most often one.
            for i in range(tl.load(p_first_layer + i_tile), tl.load(p_first_layer + i_tile + 1) + 1):
                m_layer = in_segment(p_offsets, i, begin, o, BLOCK)
                b_factor = tl.where(m_layer, tl.load(p_beta + i) * tl.load(p_scale + i), b_factor)
            tl.store(p_theta + begin + o, b_base + b_factor * b_moved, mask=m)


def shortcut_point(
    base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor, out: Tensor | None = None
) -> Tensor:
    theta = torch.empty_like(base) if out is None else out
    table = tables(cut(base.numel(), offsets), base.device)
    launch(
        point_kernel,
        p_theta=theta,
        p_base=base,
        p_displacement=displacement,
        p_scale=scale,
        p_beta=beta,
        p_offsets=table.offsets,
        p_first_layer=table.first_layer,
        num_params=base.numel(),
    )
    return theta
