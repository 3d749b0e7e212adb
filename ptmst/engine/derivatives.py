"""The derivatives of a student's loss that an outer step is made of, over flat vectors (docs/method.md §4).

An inner step needs g = ∇_θ ℓ; its own gradient needs ∂/∂u ⟨v, g⟩ for the batch, and for θ where the adjoint moves.
That is the derivative of ∇_u ℓ along v in θ, forward over reverse: no second reverse pass, no weight gradient that is
not asked for, nothing kept from the step, and one graph to compile. Where memory abounds, what a step computed may be
kept instead, and g differentiated in reverse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad, jvp

from ptmst.config import Keep, LossKind
from ptmst.engine import tangents
from ptmst.engine.compilation import Compiler
from ptmst.students.losses import contrastive_logits, contrastive_loss, student_loss
from ptmst.students.student import Student

with warnings.catch_warnings():
    # Forward mode scripts these on first use, and torch warns its users of that.
    warnings.simplefilter("ignore", FutureWarning)
    import torch._decomp.decompositions_for_jvp


class Batch(NamedTuple):
    """What a student's loss is taken on, besides θ."""

    images: Tensor
    """[B, 3, H, W]; with a frozen tower its features [B, Z]."""
    texts: Tensor
    """[B, D]."""
    similarity: Tensor
    """[B, B]."""


class MixedDerivatives(NamedTuple):
    """∂/∂u ⟨v, ∇_θ ℓ⟩, each in the shape of its u."""

    images: Tensor
    texts: Tensor
    similarity: Tensor
    theta: Tensor | None = None
    """[P]; none where it was not asked for."""


class Step(NamedTuple):
    """One inner step."""

    theta: Tensor
    """θ_{i+1} [P] = θ_i − η ⊙ ∇_θ ℓ."""
    along: Callable[[Tensor], MixedDerivatives]
    """v [P] ↦ ∂/∂u ⟨v, ∇_θ ℓ⟩ at θ_i; to be called once."""


class Derivatives(Protocol):
    """How inner steps, and their gradients, are computed."""

    def step(self, theta: Tensor, lr: Tensor, make_batch: Callable[[], Batch]) -> Step:
        """An inner step from θ [P] with learning rates lr [G]. A batch is drawn again when it is needed again."""


def derivatives(
    student: Student,
    loss: LossKind,
    temperature: float,
    *,
    in_theta: bool,
    keep: Keep,
    chunk: int | None,
    compiler: Compiler | None,
) -> Derivatives:
    """Choose the implementation for `keep` and `chunk`; `in_theta` also returns the derivative in θ."""
    compiled = compiler or (lambda function: function)
    if chunk is not None:
        return Chunked(student, loss, temperature, in_theta, chunk, compiled)
    implementation = Stored if keep == "primals" else Recomputed
    return implementation(student, loss, temperature, in_theta, compiled)


def why_not_differentiable(student: Student, keep: Keep, in_theta: bool, images: Tensor, texts: Tensor) -> str | None:
    """Why torch cannot take these derivatives of a student, tried on a few images [B, 3, H, W] and texts [B, D].

    None where it can. Where it cannot look into all of the student they are compared with finite differences. Behind a
    frozen tower only heads are differentiated twice.
    """

    def along(student: Student, theta: Tensor, direction: Tensor, batch: Sequence[Tensor]) -> Sequence[Tensor]:
        lr = torch.zeros(student.layers.num_groups).to(theta)
        way = derivatives(student, tangents.LOSS, 1.0, in_theta=in_theta, keep=keep, chunk=None, compiler=None)
        *found, of_theta = way.step(theta, lr, lambda: Batch(*batch)).along(direction)
        return found if of_theta is None else [*found, of_theta]

    theta = student.flatten().to(images.device)
    try:
        with torch.no_grad():
            features = student.features(images)
            along(student.heads, theta, torch.ones_like(theta), [features, texts, torch.eye(len(images)).to(texts)])
            if tangents.opaque(student.heads, theta, features, texts):
                return tangents.why_lost(student.heads, along, features, texts)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # one that says what is missing is of this kind too
        return str(error).splitlines()[0]
    return None


class Recomputed:
    """Forward over reverse at θ_i: a step keeps θ_i, and no graph."""

    def __init__(
        self, student: Student, loss: LossKind, temperature: float, in_theta: bool, compiled: Compiler
    ) -> None:
        loss_of, layers = student_loss(student, loss, temperature), student.layers
        gradient = grad(loss_of, argnums=(1, 2, 3, 0) if in_theta else (1, 2, 3))

        def step(theta: Tensor, lr: Tensor, *batch: Tensor) -> Tensor:
            return theta - layers.expand(lr) * _gradient(loss_of, theta, *batch)

        def along(theta: Tensor, direction: Tensor, *batch: Tensor) -> tuple[Tensor, ...]:
            tangents: tuple[Tensor, ...] = jvp(lambda theta: gradient(theta, *batch), (theta,), (direction,))[1]
            return tangents

        self._step, self._along = compiled(step), compiled(along)

    def step(self, theta: Tensor, lr: Tensor, make_batch: Callable[[], Batch]) -> Step:
        return Step(
            self._step(theta, lr, *make_batch()),
            lambda direction: MixedDerivatives(*self._along(theta, direction, *make_batch())),
        )


class Stored:
    """Reverse over reverse: a step keeps its activations until its gradient is asked for, and repeats none of its work.

    Seven forwards' operations where `Recomputed` needs nine, for the activations of all inner steps in memory at once.
    """

    def __init__(
        self, student: Student, loss: LossKind, temperature: float, in_theta: bool, compiled: Compiler
    ) -> None:
        gradient, layers = grad(student_loss(student, loss, temperature)), student.layers

        def step(theta: Tensor, lr: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
            g = gradient(theta, *batch)
            return theta.detach() - layers.expand(lr) * g.detach(), g

        self._step, self._in_theta = compiled(step), in_theta

    def step(self, theta: Tensor, lr: Tensor, make_batch: Callable[[], Batch]) -> Step:
        leaves = [leaf.detach().requires_grad_() for leaf in make_batch()]
        theta = theta.detach().requires_grad_(self._in_theta)
        with torch.enable_grad():
            moved, g = self._step(theta, lr, *leaves)
        wanted = [*leaves, theta] if self._in_theta else leaves
        return Step(moved.detach(), lambda direction: MixedDerivatives(*torch.autograd.grad(g, wanted, direction)))


class Chunked:
    """Images go through the tower `chunk` at a time; the loss still sees the whole batch, and its value is the same.

    The loss couples the batch through the embeddings alone. So these are computed chunk by chunk, the loss is
    differentiated in them, and its gradient goes back through the tower chunk by chunk; likewise along a direction.
    Activations of one chunk are in memory at a time, for one more pass forward through the tower.
    """

    def __init__(
        self,
        student: Student,
        loss: LossKind,
        temperature: float,
        in_theta: bool,
        chunk: int,
        compiled: Compiler,
    ) -> None:
        embed, layers = student.embed_images, student.layers

        def loss_of(embeds: Tensor, theta: Tensor, texts: Tensor, similarity: Tensor) -> Tensor:
            logits = contrastive_logits(embeds, student.embed_texts(theta, texts), temperature)
            return contrastive_loss(loss, logits, similarity)

        def weighed(theta: Tensor, images: Tensor, weights: Tensor) -> Tensor:
            return (embed(theta, images) * weights).sum()

        loss_gradient = grad(loss_of, argnums=(0, 2, 3, 1) if in_theta else (0, 2, 3))
        image_gradient = grad(weighed, argnums=(1, 0) if in_theta else (1,))

        def update(theta: Tensor, lr: Tensor, g: Tensor) -> Tensor:
            return theta - layers.expand(lr) * g

        def embed_along(theta: Tensor, direction: Tensor, images: Tensor) -> tuple[Tensor, ...]:
            both: tuple[Tensor, ...] = jvp(lambda theta: embed(theta, images), (theta,), (direction,))
            return both

        def loss_along(
            embeds: Tensor, theta: Tensor, embeds_along: Tensor, direction: Tensor, *batch: Tensor
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            primals, tangents = jvp(  # type: ignore[misc]  # no has_aux: a pair
                lambda embeds, theta: loss_gradient(embeds, theta, *batch), (embeds, theta), (embeds_along, direction)
            )
            return primals[0], tangents

        def images_along(
            theta: Tensor, direction: Tensor, images: Tensor, weights: Tensor, weights_along: Tensor
        ) -> tuple[Tensor, ...]:
            tangents: tuple[Tensor, ...] = jvp(
                lambda theta, weights: image_gradient(theta, images, weights),
                (theta, weights),
                (direction, weights_along),
            )[1]
            return tangents

        self._chunk, self._in_theta = chunk, in_theta
        self._embed = compiled(embed)
        self._loss_pull = compiled(grad(loss_of, argnums=(0, 1)))
        self._theta_pull = compiled(grad(weighed))
        self._update = compiled(update)
        self._embed_along = compiled(embed_along)
        self._loss_along = compiled(loss_along)
        self._images_along = compiled(images_along)

    def step(self, theta: Tensor, lr: Tensor, make_batch: Callable[[], Batch]) -> Step:
        batch = make_batch()
        images = batch.images.split(self._chunk)
        embeds = torch.cat([self._embed(theta, some) for some in images])
        weights, g = self._loss_pull(embeds, theta, *batch[1:])
        for some, some_weights in zip(images, weights.split(self._chunk), strict=True):
            g = g + self._theta_pull(theta, some, some_weights)
        return Step(self._update(theta, lr, g), lambda direction: self._along(theta, direction, make_batch()))

    def _along(self, theta: Tensor, direction: Tensor, batch: Batch) -> MixedDerivatives:
        images = batch.images.split(self._chunk)
        pushed = [self._embed_along(theta, direction, some) for some in images]
        embeds, embeds_along = (torch.cat(parts) for parts in zip(*pushed, strict=True))
        weights, (weights_along, texts, similarity, *rest) = self._loss_along(
            embeds, theta, embeds_along, direction, *batch[1:]
        )
        parts = []
        for some, *both in zip(images, weights.split(self._chunk), weights_along.split(self._chunk), strict=True):
            part, *in_theta = self._images_along(theta, direction, some, *both)
            parts.append(part)
            rest = [whole + share for whole, share in zip(rest, in_theta, strict=True)]
        return MixedDerivatives(torch.cat(parts), texts, similarity, *rest)


def _gradient(loss_of: Callable[..., Tensor], theta: Tensor, *batch: Tensor) -> Tensor:
    """∇_θ ℓ. `grad` keeps a graph for more derivatives, which costs half as much again unless it is compiled away."""
    if torch.compiler.is_compiling():
        g: Tensor = grad(loss_of)(theta, *batch)
        return g
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss_of(leaf, *batch), leaf)
    return g
