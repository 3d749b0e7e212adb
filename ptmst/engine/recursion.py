"""The inner loop and its gradient, truncated to exact, without double backward (docs/method.md §4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OuterGradient:
    """One outer step: the matching loss L and its gradient in every leaf."""

    loss: Tensor
    """Scalar L."""
    per_group: Tensor
    """[G], the terms of L."""
    theta_final: Tensor
    """[P], θ_n."""
    grads: dict[str, Tensor]
    """∂L/∂leaf by leaf name, each in its leaf's shape."""


def blended(matrix: Tensor, images: Tensor) -> Tensor:
    """[B, B] times [B, …]."""
    return (matrix @ images.flatten(1)).view_as(images)
