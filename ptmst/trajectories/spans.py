"""The stretch of an expert's trajectory that one outer step matches (docs/method.md §2, §4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from torch import Tensor

from ptmst import kernels
from ptmst.students.layers import LayerTable
from ptmst.trajectories.matching import Match, MatchingSpan, Residual, match, squared_length


class Span(MatchingSpan, Protocol):
    """What one outer step matches: a start point, and how far θ_n is from the target. Pure tensors on one device."""

    @property
    def start(self) -> Tensor:
        """θ_start [P]."""

    def match(self, theta: Tensor) -> Match:
        """The matching loss of θ_n [P]; waits for no device."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that tells it from other spans of its kind."""

    def replace(self, tensors: Mapping[str, Tensor]) -> Self:
        """The span of the same kind that these are the tensors of."""


@dataclass(frozen=True)
class ShortcutSpan:
    """From s to t on a shortcut; the target is never formed."""

    layers: LayerTable
    start: Tensor
    """θ(s) [P]."""
    base: Tensor
    """θ⁰ [P]."""
    displacement: Tensor
    """float16 [P]."""
    scale: Tensor
    """float32 [L]."""
    beta_start: Tensor
    """β(s) [L]."""
    beta_target: Tensor
    """β(t) [L]."""
    distance: Tensor
    """[G], the span's squared length."""

    def residual(self, theta: Tensor) -> Residual:
        return kernels.matching_residual(
            theta,
            self.base,
            self.displacement,
            self.scale,
            self.layers.offsets,
            self.layers.groups,
            self.beta_start,
            self.beta_target,
            self.layers.num_groups,
        )

    def match(self, theta: Tensor) -> Match:
        return match(self.residual(theta), self.distance, self.layers)

    def tensors(self) -> dict[str, Tensor]:
        return _tensors(self)

    def replace(self, tensors: Mapping[str, Tensor]) -> ShortcutSpan:
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]  # names of tensor fields


@dataclass(frozen=True)
class RawSpan:
    """Between two points as they are, such as two epochs of an expert."""

    layers: LayerTable
    start: Tensor
    """[P]."""
    target: Tensor
    """[P]."""
    distance: Tensor
    """[G], the span's squared length."""

    @classmethod
    def between(cls, start: Tensor, target: Tensor, layers: LayerTable, name: str = "") -> RawSpan:
        """Raises InputError, which names the span, where a group does not move."""
        return cls(layers, start, target, squared_length(start, target, layers, name))

    def residual(self, theta: Tensor) -> Residual:
        layers = self.layers
        return kernels.vector_residual(
            theta, self.start, self.target, layers.offsets, layers.groups, layers.num_groups
        )[:3]

    def match(self, theta: Tensor) -> Match:
        return match(self.residual(theta), self.distance, self.layers)

    def tensors(self) -> dict[str, Tensor]:
        return _tensors(self)

    def replace(self, tensors: Mapping[str, Tensor]) -> RawSpan:
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]  # names of tensor fields


def _tensors(span: ShortcutSpan | RawSpan) -> dict[str, Tensor]:
    return {f.name: getattr(span, f.name) for f in dataclasses.fields(span) if f.name != "layers"}
