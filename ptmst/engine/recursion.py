"""The inner loop and its gradient, truncated to exact, without double backward (docs/method.md §4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ptmst.engine.derivatives import Batch, Derivatives, MixedDerivatives, Step
from ptmst.errors import InputError
from ptmst.students.layers import LayerTable
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.trajectories.spans import Span

Carry = Callable[[int, Tensor, Tensor], Tensor]
"""(i, λ_{i+1} [P], ∂/∂θ⟨−η⊙λ_{i+1}, g_i⟩ [P]) ↦ λ_i [P]."""


class Adjoint(Protocol):
    """How the adjoint λ_i, the derivative of the loss in θ_i, is carried back through the inner steps.

    The engine's own are `Truncated` and `Damped`; any other object with these two members serves as well.
    """

    @property
    def moves(self) -> bool:
        """Whether λ changes on its way: only then is the derivative in θ computed."""

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        """The recursion through `steps` inner steps, from λ_n [P] = `last`. It must not wait for the device."""


@dataclass(frozen=True)
class Truncated:
    """λ stays what it is at the end of the inner loop: the gradient of the paper."""

    @property
    def moves(self) -> bool:
        """λ never changes."""
        return False

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        """The recursion that keeps λ_n."""
        return lambda i, adjoint, change: adjoint


@dataclass(frozen=True)
class Damped:
    """λ_i = λ_{i+1} + share · ∂/∂θ⟨−η⊙λ_{i+1}, g_i⟩, then ‖λ_i‖ ≤ clip · ‖λ_n‖ in each group (docs/adjoint.md).

    share = 1 without a clip is the exact gradient. Raises InputError for a share outside (0, 1] or a clip that is not
    positive.
    """

    share: float = 1.0
    """Share of the recursion that is kept."""
    clip: float | None = None
    """Largest ‖λ_i‖/‖λ_n‖ per group; None: no bound."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share: expected above 0, up to 1 (exact), found {self.share}; Truncated() is share 0")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip: expected a positive number, found {self.clip}; raise it or leave it out")

    @property
    def moves(self) -> bool:
        """λ changes at every inner step."""
        return True

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        """The damped and clipped recursion; the clip is relative to ‖λ_n‖ of each group."""
        if self.clip is None:
            return lambda i, adjoint, change: torch.add(adjoint, change, alpha=self.share)
        largest = self.clip * layers.dot(last, last).sqrt()

        def carry(i: int, adjoint: Tensor, change: Tensor) -> Tensor:
            moved = torch.add(adjoint, change, alpha=self.share)
            norm = layers.dot(moved, moved).sqrt()
            return layers.scaled(moved, torch.where(norm > largest, largest / norm, 1.0))

        return carry


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

    def kept(self) -> OuterGradient:
        """The same in memory of its own: a compiled outer step writes its next one over this one."""
        grads = {name: grad.clone() for name, grad in self.grads.items()}
        return OuterGradient(self.loss.clone(), self.per_group.clone(), self.theta_final.clone(), grads)

    def add_share(self, other: OuterGradient, share: float) -> None:
        """Move losses and gradients a share of the way to another's, in place; θ_n stays."""
        self.loss.lerp_(other.loss, share)
        self.per_group.lerp_(other.per_group, share)
        for name, grad in self.grads.items():
            grad.lerp_(other.grads[name], share)


@dataclass(frozen=True)
class InnerLoop:
    """What the n inner steps are taken on."""

    pairs: SyntheticPairs
    batches: Tensor
    """int64 [n, B], the pairs of each step."""
    mixing: Tensor | None
    """[n, B, B], the matrix that blends each batch's images and texts."""
    images: Tensor
    """What the student sees of the images [R, …]: the images themselves, or a frozen tower's features."""
    rows: Tensor
    """int64 [n, B], the rows of `images` for each batch."""

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, i: int) -> Batch:
        """The batch of step i, blended."""
        images, texts = self.images[self.rows[i]], self.pairs.texts[self.batches[i]]
        if self.mixing is not None:
            images, texts = _times(self.mixing[i], images), self.mixing[i] @ texts
        return Batch(images, texts, self.pairs.similarity.batch(self.batches[i]))

    def zeros(self) -> dict[str, Tensor]:
        """A gradient of zero in every leaf; that of `images` is in what the student sees."""
        return {name: torch.zeros_like(leaf) for name, leaf in {**self.pairs.leaves(), "images": self.images}.items()}

    def add(self, grads: dict[str, Tensor], i: int, derivatives: MixedDerivatives) -> None:
        """Add the derivatives in the batch of step i to those in the leaves."""
        of_images, of_texts = derivatives.images, derivatives.texts
        if self.mixing is not None:
            of_images, of_texts = _times(self.mixing[i].T, of_images), self.mixing[i].T @ of_texts
        grads["images"].index_add_(0, self.rows[i], of_images)
        grads["texts"].index_add_(0, self.batches[i], of_texts)
        self.pairs.similarity.add_gradient(grads, self.batches[i], derivatives.similarity)


def differentiate(
    derivatives: Derivatives, layers: LayerTable, span: Span, inner: InnerLoop, adjoint: Adjoint, store_path: bool
) -> OuterGradient:
    """Walk from the span's start, match its target, carry the adjoint back: L and its gradient in every leaf.

    Without `store_path` nothing of the walk is stored, and it is repeated for a gradient whose adjoint does not move.
    """
    lr = inner.pairs.lr

    def walk() -> Iterator[Step]:
        theta = span.start
        for i in range(len(inner)):
            step = derivatives.step(theta, lr, partial(inner.batch, i))
            yield step
            theta = step.theta

    stored: list[Step] = []
    final = span.start
    for step in walk():
        final = step.theta
        if store_path:
            stored.append(step)
    matched = span.match(final)

    grads = inner.zeros()
    lam = matched.adjoint
    direction = layers.scaled(lam, -lr)
    if not adjoint.moves:
        # θ_n − θ_start = −η ⊙ Σ_i g_i, so this is Σ_i −⟨λ_n, g_i⟩.
        grads["lr"] += matched.progress / lr
        for i, step in enumerate(stored or walk()):
            inner.add(grads, i, step.along(direction))
        return OuterGradient(matched.loss, matched.per_group, final, grads)

    carry = adjoint.begin(layers, len(inner), lam)
    path = [span.start, *(step.theta for step in stored)]
    for i in reversed(range(len(inner))):
        mixed = stored[i].along(direction)
        inner.add(grads, i, mixed)
        # −⟨λ_{i+1}, g_i⟩
        grads["lr"] += layers.dot(lam, path[i + 1] - path[i]) / lr
        if i > 0 and mixed.theta is not None:
            lam = carry(i, lam, mixed.theta)
            direction = layers.scaled(lam, -lr)
    return OuterGradient(matched.loss, matched.per_group, final, grads)


def _times(matrix: Tensor, images: Tensor) -> Tensor:
    """[B, B] times [B, …]."""
    return (matrix @ images.flatten(1)).view_as(images)
