"""Soft labels S [N, N] of the synthetic pairs, and the leaves they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FullSimilarity:
    """S as a full matrix [N, N]."""

    matrix: Tensor

    @classmethod
    def identity(cls, n: int) -> FullSimilarity:
        """S = I: each of n pairs fits itself only."""
        return cls(torch.eye(n))

    def leaves(self) -> dict[str, Tensor]:
        """What distillation optimizes, by name: `similarity` [N, N]."""
        return {"similarity": self.matrix}

    def replace(self, leaves: Mapping[str, Tensor]) -> FullSimilarity:
        """Soft labels of this form with the values of `leaves`."""
        return FullSimilarity(leaves["similarity"])

    def batch(self, index: Tensor) -> Tensor:
        """S over the pairs of a batch: int64 [B] → [B, B]."""
        return self.matrix[index][:, index]

    def add_gradient(self, sums: Mapping[str, Tensor], index: Tensor, gradient: Tensor) -> None:
        """Add ∂ℓ/∂leaf, from ∂ℓ/∂batch(index) [B, B], to `sums` of the leaves' shapes: no work in N."""
        sums["similarity"].index_put_((index[:, None], index[None, :]), gradient, accumulate=True)

    def dense(self) -> Tensor:
        """S [N, N]."""
        return self.matrix


@dataclass(frozen=True)
class LowRankSimilarity:
    """S = diag(a) + (alpha/rank) L Rᵀ with a = `diag` [N], L = `left` and R = `right` [N, rank] (LoRS)."""

    diag: Tensor
    left: Tensor
    right: Tensor
    alpha: float

    @classmethod
    def identity(cls, n: int, rank: int, alpha: float, generator: torch.Generator) -> LowRankSimilarity:
        """S starts at the identity: a = 1, R = 0; L is drawn, or no gradient would ever reach R."""
        return cls(torch.ones(n), torch.randn(n, rank, generator=generator), torch.zeros(n, rank), alpha)

    def leaves(self) -> dict[str, Tensor]:
        """What distillation optimizes, by name: `diag` [N], `left` and `right` [N, rank]."""
        return {"diag": self.diag, "left": self.left, "right": self.right}

    def replace(self, leaves: Mapping[str, Tensor]) -> LowRankSimilarity:
        """Soft labels of this form and alpha with the values of `leaves`."""
        return LowRankSimilarity(leaves["diag"], leaves["left"], leaves["right"], self.alpha)

    def batch(self, index: Tensor) -> Tensor:
        """S over the pairs of a batch, without forming S: int64 [B] → [B, B]."""
        same = index[:, None] == index[None, :]
        low_rank = self.left[index] @ self.right[index].T
        return torch.where(same, self.diag[index], 0.0) + (self.alpha / self.left.shape[1]) * low_rank

    def add_gradient(self, sums: Mapping[str, Tensor], index: Tensor, gradient: Tensor) -> None:
        """Add ∂ℓ/∂leaf, from ∂ℓ/∂batch(index) [B, B], to `sums` of the leaves' shapes: no work in N."""
        same, scaled = index[:, None] == index[None, :], (self.alpha / self.left.shape[1]) * gradient
        sums["diag"].index_add_(0, index, torch.where(same, gradient, 0.0).sum(0))
        sums["left"].index_add_(0, index, scaled @ self.right[index])
        sums["right"].index_add_(0, index, scaled.T @ self.left[index])

    def dense(self) -> Tensor:
        """S [N, N], multiplied out."""
        return self.batch(torch.arange(len(self.diag), device=self.diag.device))


Similarity = FullSimilarity | LowRankSimilarity


def similarity_from_leaves(leaves: Mapping[str, Tensor], alpha: float) -> Similarity:
    """The form that `leaves` are of, by their names; `alpha` counts for the low-rank form only."""
    if "similarity" in leaves:
        return FullSimilarity(leaves["similarity"])
    return LowRankSimilarity(leaves["diag"], leaves["left"], leaves["right"], alpha)
