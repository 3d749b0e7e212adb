"""Storage types of displacements: half precision, or bytes with a scale for each block (docs/method.md §2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ptmst.config import Coding
from ptmst.students.layers import LayerTable
from ptmst.trajectories.shortcut import Displacement

BLOCK = 256
"""Parameters that share a scale in int8; blocks start again with each layer."""


def packed(displacement: Displacement, layers: LayerTable, coding: Coding) -> dict[str, Tensor]:
    """What is written of a displacement.

    fp16: `values` float16 [P], `scale` float32 [L], `norms` float32 [L]. int8: `codes` int8 [P], `scale` float32
    [blocks]; relative error about 7e-3.
    """
    if coding == "fp16":
        return {"values": displacement.values, "scale": displacement.scale, "norms": displacement.norms}
    delta, sizes = displacement.decode(layers), _block_sizes(layers)
    largest = torch.segment_reduce(delta.abs(), "max", lengths=sizes)
    scale = largest / 127
    steps = scale.where(scale > 0, 1.0).repeat_interleave(sizes, output_size=layers.num_params)
    return {"codes": torch.round(delta / steps).to(torch.int8), "scale": scale}


def unpacked(tensors: Mapping[str, Tensor], layers: LayerTable, coding: Coding) -> Displacement:
    """The displacement in half precision, as kernels read it. Raises KeyError for a tensor that is not there, and
    ValueError for one of another shape or type."""
    expected = {
        "fp16": {
            "values": (torch.float16, layers.num_params),
            "scale": (torch.float32, layers.num_layers),
            "norms": (torch.float32, layers.num_layers),
        },
        "int8": {"codes": (torch.int8, layers.num_params), "scale": (torch.float32, _num_blocks(layers))},
    }[coding]
    for name, (dtype, size) in expected.items():
        if tensors[name].dtype != dtype or tensors[name].shape != (size,):
            found = f"{tensors[name].dtype} of shape {tuple(tensors[name].shape)}"
            raise ValueError(f"{name}: expected {dtype} of shape ({size},), found {found}")
    if coding == "fp16":
        return Displacement(tensors["values"], tensors["scale"], tensors["norms"])
    # Layer by layer: as a whole it would take four times the memory of what comes out.
    values, scale, norms = torch.empty(layers.num_params, dtype=torch.float16), list[Tensor](), list[Tensor]()
    blocks = tensors["scale"].split([-(-size // BLOCK) for size in layers.sizes])
    parts = zip(tensors["codes"].split(layers.sizes), blocks, values.split(layers.sizes), layers.shapes, strict=True)
    for codes, block_scale, out, shape in parts:
        delta = block_scale.repeat_interleave(BLOCK)[: len(codes)].mul_(codes)
        part = Displacement.encode(delta, LayerTable(("",), (shape,), (0,), ("",)))
        out.copy_(part.values)
        scale.append(part.scale)
        norms.append(part.norms)
    return Displacement(values, torch.cat(scale), torch.cat(norms))


def names(coding: Coding) -> tuple[str, ...]:
    """Of the tensors that a displacement is written as."""
    return ("values", "scale", "norms") if coding == "fp16" else ("codes", "scale")


def _num_blocks(layers: LayerTable) -> int:
    return sum(-(-size // BLOCK) for size in layers.sizes)


def _block_sizes(layers: LayerTable) -> Tensor:
    """int64 [blocks]: BLOCK but for the last of each layer."""
    sizes = torch.full((_num_blocks(layers),), BLOCK)
    ends = torch.tensor([-(-size // BLOCK) for size in layers.sizes]).cumsum(0)
    left = torch.tensor([(size - 1) % BLOCK + 1 for size in layers.sizes])
    there = torch.tensor(layers.sizes) > 0
    sizes[ends[there] - 1] = left[there]
    return sizes
