"""Storage types of displacements: half precision, or codes with a scale for each block (docs/method.md §2)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ptmst.config import Coding
from ptmst.students.layers import LayerTable
from ptmst.trajectories.shortcut import Displacement

BLOCK = 256
"""Parameters that share a scale in int8 and int4; blocks start again with each layer."""
_FINER = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the scale that reaches the largest value of a block: in int4 the one that errs least is kept."""


def packed(displacements: Mapping[int, Displacement], layers: LayerTable, coding: Coding) -> dict[str, Tensor]:
    """What is written of an expert's displacements, as NAME.K for each end point K.

    fp16: `values` float16 [P], `scale` float32 [L], `norms` float32 [L]. int8: `codes` int8 [P], `scale` float32
    [blocks]; relative error about 7e-3. int4: `codes` uint8, two codes a byte, `scale` float32 [blocks], of what each
    end point moved since the one before as that is read back, so that errors do not add up; about 0.1 of that move.
    """
    tensors: dict[str, Tensor] = {}
    before: Tensor | None = None
    for k in sorted(displacements):
        if coding == "fp16":
            d = displacements[k]
            written = {"values": d.values, "scale": d.scale, "norms": d.norms}
        else:
            delta = displacements[k].decode(layers)
            if coding == "int8":
                written = _by_layer(delta, layers, _to_int8)
            else:
                written = _by_layer(delta if before is None else delta - before, layers, _to_int4)
                moved = torch.cat([_read(part, size, coding) for part, size in _parts(written, layers, coding)])
                before = moved if before is None else before + moved
        tensors |= {f"{name}.{k}": tensor for name, tensor in written.items()}
    return tensors


def unpacked(
    tensors: Mapping[str, Tensor], layers: LayerTable, coding: Coding, kept: Sequence[int], wanted: Collection[int]
) -> dict[int, Displacement]:
    """The wanted end points' displacements in half precision, as kernels read them; `kept` are all of the store.

    Raises KeyError for a tensor that is not there, and ValueError for one of another shape or type.
    """
    read = {k: {name: tensors[f"{name}.{k}"] for name in names(coding)} for k in needed(coding, kept, wanted)}
    for written in read.values():
        _refuse_other(written, layers, coding)
    if coding == "fp16":
        return {k: Displacement(written["values"], written["scale"], written["norms"]) for k, written in read.items()}
    # Layer by layer: as a whole it would take four times the memory of what comes out.
    values = {k: torch.empty(layers.num_params, dtype=torch.float16) for k in wanted}
    scale: dict[int, list[Tensor]] = {k: [] for k in wanted}
    norms: dict[int, list[Tensor]] = {k: [] for k in wanted}
    ends = {k: values[k].split(layers.sizes) for k in wanted}
    by_layer = zip(*(_parts(written, layers, coding) for written in read.values()), strict=True)
    for number, (parts, shape) in enumerate(zip(by_layer, layers.shapes, strict=True)):
        layer, delta = LayerTable(("",), (shape,), (0,), ("",)), torch.zeros(layers.sizes[number])
        for k, (part, size) in zip(read, parts, strict=True):
            delta = _read(part, size, coding) + (delta if coding == "int4" else 0)
            if k in ends:
                encoded = Displacement.encode(delta, layer)
                ends[k][number].copy_(encoded.values)
                scale[k].append(encoded.scale)
                norms[k].append(encoded.norms)
    return {k: Displacement(values[k], torch.cat(scale[k]), torch.cat(norms[k])) for k in wanted}


def names(coding: Coding) -> tuple[str, ...]:
    """Of the tensors that a displacement is written as."""
    return ("values", "scale", "norms") if coding == "fp16" else ("codes", "scale")


def needed(coding: Coding, kept: Sequence[int], wanted: Collection[int]) -> list[int]:
    """End points to read for the wanted ones: in int4 those before them too, which they are added to."""
    if coding == "int4" and wanted:
        return [k for k in sorted(kept) if k <= max(wanted)]
    return [k for k in kept if k in wanted]


def _refuse_other(written: Mapping[str, Tensor], layers: LayerTable, coding: Coding) -> None:
    expected = {
        "fp16": {
            "values": (torch.float16, layers.num_params),
            "scale": (torch.float32, layers.num_layers),
            "norms": (torch.float32, layers.num_layers),
        },
        "int8": {"codes": (torch.int8, layers.num_params), "scale": (torch.float32, sum(_blocks(layers)))},
        "int4": {"codes": (torch.uint8, sum(_bytes(layers))), "scale": (torch.float32, sum(_blocks(layers)))},
    }[coding]
    for name, (dtype, size) in expected.items():
        if written[name].dtype != dtype or written[name].shape != (size,):
            found = f"{written[name].dtype} of shape {tuple(written[name].shape)}"
            raise ValueError(f"{name}: expected {dtype} of shape ({size},), found {found}")


def _by_layer(
    delta: Tensor, layers: LayerTable, encode: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Codes and scales of all layers. `encode` takes blocks [b, BLOCK], the last of them filled up with zeros."""
    codes, scales = [], []
    for part, size in zip(delta.split(layers.sizes), layers.sizes, strict=True):
        blocks = torch.nn.functional.pad(part, (0, -size % BLOCK)).view(-1, BLOCK)
        code, scale = encode(blocks)
        codes.append(code.flatten()[: -(-size * code.shape[1] // BLOCK)])
        scales.append(scale)
    return {"codes": torch.cat(codes), "scale": torch.cat(scales)}


def _to_int8(blocks: Tensor) -> tuple[Tensor, Tensor]:
    scale = blocks.abs().amax(1) / 127
    return torch.round(blocks / _steps(scale)).to(torch.int8), scale


def _to_int4(blocks: Tensor) -> tuple[Tensor, Tensor]:
    best = torch.full((len(blocks),), torch.inf)
    codes, scale = torch.zeros_like(blocks), torch.zeros(len(blocks))
    for share in _FINER:
        tried = blocks.abs().amax(1) * (share / 7)
        code = torch.round(blocks / _steps(tried)).clamp(-8, 7)
        error = (code * tried[:, None] - blocks).square().sum(1)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        codes = torch.where(better[:, None], code, codes)
    nibbles = (codes + 8).to(torch.uint8)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scale


def _steps(scale: Tensor) -> Tensor:
    return scale.where(scale > 0, 1.0)[:, None]


def _parts(
    written: Mapping[str, Tensor], layers: LayerTable, coding: Coding
) -> list[tuple[tuple[Tensor, Tensor], int]]:
    """Codes and scales of each layer, and its size."""
    sizes = layers.sizes if coding == "int8" else _bytes(layers)
    parts = zip(written["codes"].split(sizes), written["scale"].split(_blocks(layers)), strict=True)
    return list(zip(parts, layers.sizes, strict=True))


def _read(part: tuple[Tensor, Tensor], size: int, coding: Coding) -> Tensor:
    """A layer, float32 [size]."""
    codes, scale = part
    if coding == "int4":
        codes = torch.stack([codes & 15, codes >> 4], dim=1).flatten()[:size].to(torch.int8) - 8
    return scale.repeat_interleave(BLOCK)[:size].mul_(codes)


def _blocks(layers: LayerTable) -> list[int]:
    return [-(-size // BLOCK) for size in layers.sizes]


def _bytes(layers: LayerTable) -> list[int]:
    """Of the layers in int4, each of which begins with a byte of its own."""
    return [-(-size // 2) for size in layers.sizes]
