"""How a flat vector is cut into layers and groups, read once on the host; and the checks of a kernel's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

CUTS_KEPT = 64
"""How many cuts are cached, on the host and on each device."""


@dataclass(frozen=True, eq=False)
class Cut:
    """P parameters in L layers in G groups; the layers of a group are adjacent. Equal cuts are one object."""

    ends: tuple[int, ...]
    """[L+1]: layer ℓ is [ends[ℓ], ends[ℓ+1])."""
    group_ends: tuple[int, ...]
    """[G+1]: group g is [group_ends[g], group_ends[g+1])."""
    offsets: Tensor
    """`ends` as int64 [L+1] on the host."""
    groups: Tensor
    """The group of each layer, int64 [L] on the host."""
    group_offsets: Tensor
    """`group_ends` as int64 [G+1] on the host."""

    @property
    def num_groups(self) -> int:
        return len(self.group_ends) - 1


def cut(parameters: int, offsets: Tensor, groups: Tensor | None = None, num_groups: int | None = None) -> Cut:
    """The cut that `offsets` [L+1] and `groups` [L] describe; without groups all layers form one.

    Reads both on the host, which synchronises where they are on a CUDA device. Raises ValueError for offsets that do
    not fit `parameters`, and for groups whose layers are not adjacent.
    """
    ends = tuple(offsets.tolist())
    group_of_layer = (0,) * (len(ends) - 1) if groups is None else tuple(groups.tolist())
    return _cut(parameters, ends, group_of_layer, num_groups)


@lru_cache(maxsize=CUTS_KEPT)
def _cut(parameters: int, ends: tuple[int, ...], groups: tuple[int, ...], num_groups: int | None) -> Cut:
    if not ends or ends[0] != 0 or ends[-1] != parameters or any(b < a for a, b in pairwise(ends)):
        shown = f"{ends[0]} … {ends[-1]}" if ends else "none"
        raise ValueError(f"offsets: expected them to rise from 0 to {parameters}, found {shown}")
    if any(b < a for a, b in pairwise(groups)) or (groups and groups[0] < 0):
        raise ValueError(f"groups: expected the layers of a group side by side, found {list(groups)}")
    count = groups[-1] + 1 if groups else 0
    if num_groups is not None and num_groups < count:
        raise ValueError(f"groups: expected numbers below {num_groups}, found {count - 1}")
    sizes = [0] * (count if num_groups is None else num_groups)
    for group, (begin, end) in zip(groups, pairwise(ends), strict=True):
        sizes[group] += end - begin
    group_ends = (0, *accumulate(sizes))
    tables = (torch.tensor(table, dtype=torch.int64) for table in (ends, groups, group_ends))
    return Cut(ends, group_ends, *tables)


def check(expected: Mapping[str, tuple[Tensor, torch.dtype, tuple[int, ...]]]) -> None:
    """Check types, shapes and, except for offsets and groups, that all are on one device. Raises ValueError; reads no
    element."""
    device = next(iter(expected.values()))[0].device
    for name, (tensor, dtype, shape) in expected.items():
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name}: expected {dtype} of shape {shape}, found {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if name not in ("offsets", "groups") and tensor.device != device:
            first = next(iter(expected))
            raise ValueError(f"{name}: expected it on {device}, as {first} is, found it on {tensor.device}")


def precision(tensor: Tensor) -> torch.dtype:
    """The type that the vectors of a kernel share: float32, or float64, which runs in plain torch."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
