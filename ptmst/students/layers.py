"""The layers of a flat parameter vector, and their groups (docs/method.md §1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ptmst.errors import InputError
from ptmst.support.devices import sent


@dataclass(frozen=True)
class LayerTable:
    """How θ [P] is cut: L layers (tensors) in order, each in one of G groups; a group's layers are adjacent.

    Raises InputError for a group without layers, and for layers that are not sorted by group.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    group_of_layer: tuple[int, ...]
    group_names: tuple[str, ...] = ("image", "text")
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Parameters of each layer."""
    group_sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Parameters of each group."""
    layers_of_group: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    """First layer of each group, and the one after its last."""
    offsets: Tensor = field(init=False, repr=False, compare=False)
    """int64 [L+1]: layer ℓ is θ[offsets[ℓ]:offsets[ℓ+1]]."""
    groups: Tensor = field(init=False, repr=False, compare=False)
    """int64 [L]: the group of each layer."""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.shapes) == len(self.group_of_layer):
            raise InputError("LayerTable: expected as many names as shapes and groups; fix the table")
        if list(self.group_of_layer) != sorted(self.group_of_layer):
            raise InputError("LayerTable: expected the layers of a group side by side; sort the layers by group")
        if set(self.group_of_layer) != set(range(len(self.group_names))):
            raise InputError(
                f"LayerTable: expected layers in each of the groups {', '.join(self.group_names)}, found groups "
                f"{sorted(set(self.group_of_layer))}; drop the empty group or give it trainable parameters"
            )
        # Plain attributes: torch.compile cannot look through the lock of a cached property.
        sizes = tuple(prod(shape) for shape in self.shapes)
        group_sizes = [0] * len(self.group_names)
        for size, group in zip(sizes, self.group_of_layer, strict=True):
            group_sizes[group] += size
        object.__setattr__(self, "sizes", sizes)
        ends = tuple(accumulate(self.group_of_layer.count(group) for group in range(len(group_sizes))))
        object.__setattr__(self, "group_sizes", tuple(group_sizes))
        object.__setattr__(self, "layers_of_group", tuple(zip((0, *ends), ends, strict=False)))
        object.__setattr__(self, "offsets", torch.tensor([0, *accumulate(sizes)], dtype=torch.int64))
        object.__setattr__(self, "groups", torch.tensor(self.group_of_layer, dtype=torch.int64))

    @classmethod
    def of(cls, **modules: nn.Module) -> LayerTable:
        """A group for each named module: its trainable parameters in registration order, as GROUP.PARAMETER."""
        names, shapes, groups = [], [], []
        for number, (group, module) in enumerate(modules.items()):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    names.append(f"{group}.{name}")
                    shapes.append(tuple(parameter.shape))
                    groups.append(number)
        return cls(tuple(names), tuple(shapes), tuple(groups), tuple(modules))

    @property
    def num_layers(self) -> int:
        """Number L of layers."""
        return len(self.names)

    @property
    def num_params(self) -> int:
        """Number P of parameters."""
        return sum(self.sizes)

    @property
    def num_groups(self) -> int:
        """Number G of groups."""
        return len(self.group_names)

    def split(self, theta: Tensor) -> tuple[Tensor, ...]:
        """θ [P] as L views in their own shapes. One split node, so its gradient is one concatenation."""
        return tuple(part.view(shape) for part, shape in zip(theta.split(self.sizes), self.shapes, strict=True))

    def split_group(self, part: Tensor, group: int) -> tuple[Tensor, ...]:
        """One group's part of θ, [P_g], as views of its layers in their own shapes."""
        here = slice(*self.layers_of_group[group])
        shaped_parts = zip(part.split(self.sizes[here]), self.shapes[here], strict=True)
        return tuple(layer.view(shape) for layer, shape in shaped_parts)

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """L tensors as one new vector [P].

        Raises InputError for tensors of other shapes than the table has.
        """
        shapes = tuple(tuple(t.shape) for t in tensors)
        if shapes != self.shapes:
            wrong = next((i for i, (a, b) in enumerate(zip(shapes, self.shapes, strict=False)) if a != b), None)
            what = f"{len(shapes)} tensors" if wrong is None else f"{self.names[wrong]} of shape {shapes[wrong]}"
            want = f"{self.num_layers}" if wrong is None else f"{self.shapes[wrong]}"
            raise InputError(f"layers: expected {want}, found {what}; the table is of another network")
        return torch.cat([t.reshape(-1) for t in tensors])

    def expand(self, per_group: Tensor) -> Tensor:
        """[G] → [P]: each parameter's value of its group."""
        # By views, which no compiler, CUDA graph or function transform minds; there are a few groups only.
        return torch.cat([value.expand(n) for value, n in zip(per_group.unbind(), self.group_sizes, strict=True)])

    def scaled(self, theta: Tensor, per_group: Tensor) -> Tensor:
        """Each group of θ [P] times its own number of [G], in one pass."""
        out = torch.empty_like(theta)
        parts = zip(theta.split(self.group_sizes), per_group.unbind(), out.split(self.group_sizes), strict=True)
        for part, factor, into in parts:
            torch.mul(part, factor, out=into)
        return out

    def expand_layers(self, per_layer: Tensor) -> Tensor:
        """[L] → [P]: each parameter's value of its layer."""
        counts = sent(torch.tensor(self.sizes), per_layer.device)
        return per_layer.repeat_interleave(counts, output_size=self.num_params)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """⟨a, b⟩ over each group: [P], [P] → [G]. To the same bits for any number of threads."""
        return torch.stack([_sum(part) for part in (a * b).split(self.group_sizes)])

    def group_norms(self, layer_norms: Tensor) -> Tensor:
        """‖·‖₂ of every group from those of its layers: float32 [..., L] → [..., G]."""
        squares = layer_norms.new_zeros(*layer_norms.shape[:-1], self.num_groups)
        return squares.index_add(-1, self.groups, layer_norms.square()).sqrt()

    def layer_norms(self, theta: Tensor) -> Tensor:
        """‖θ_ℓ‖₂ of every layer: [P] → float32 [L], summed in float64."""
        return torch.stack([part.double().norm() for part in theta.split(self.sizes)]).float()

    def to_json(self) -> dict[str, Any]:
        """The table as JSON values, as a store's index has it."""
        return {
            "names": list(self.names),
            "shapes": [list(shape) for shape in self.shapes],
            "group_of_layer": list(self.group_of_layer),
            "group_names": list(self.group_names),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LayerTable:
        """The table that `to_json` wrote. Raises KeyError where a part is missing."""
        return cls(
            names=tuple(value["names"]),
            shapes=tuple(tuple(shape) for shape in value["shapes"]),
            group_of_layer=tuple(value["group_of_layer"]),
            group_names=tuple(value["group_names"]),
        )


_ROW = 1 << 14
"""Numbers that are added in their own precision."""


def _sum(vector: Tensor) -> Tensor:
    """The sum of [P], rows of it first and these in float64.

    At 40 million parameters torch.dot is off by 10⁻³, and its error depends on the number of threads, among which torch
    divides the one sum of a long vector but not each of many.
    """
    whole = len(vector) // _ROW * _ROW
    rows = vector[:whole].view(-1, _ROW).sum(1)
    return (rows.double().sum() + vector[whole:].double().sum()).to(vector.dtype)
