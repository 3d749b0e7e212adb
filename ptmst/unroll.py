"""The inner loop and its gradient, truncated to exact, without double backward (METHOD §4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

with warnings.catch_warnings():
    # Forward mode scripts these on first use, and torch warns its users of that.
    warnings.simplefilter("ignore", FutureWarning)
    import torch._decomp.decompositions_for_jvp

from ptmst.config import LossKind
from ptmst.contrast import student_loss
from ptmst.flat import Student
from ptmst.matching import Match, match
from ptmst.synthetic import SyntheticPairs


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


def outer_gradient(
    student: Student,
    theta_start: Tensor,
    theta_target: Tensor,
    pairs: SyntheticPairs,
    batches: Tensor,
    *,
    loss: LossKind = "wbce",
    temperature: float = 0.07,
    adjoint: float = 0.0,
    adjoint_clip: float | None = None,
) -> OuterGradient:
    """Train from θ_start [P] on `batches` (int64 [n, B]) of the pairs, match θ_target [P], differentiate.

    `adjoint` is the share c of the adjoint recursion λ ← λ + c ∂/∂θ⟨−η⊙λ, g_i⟩ that is kept: 0 is the truncated
    gradient of the paper, 1 the exact one. `adjoint_clip` bounds ‖λ‖ by that multiple of ‖λ_n‖ in each group.
    Memory holds the n parameter vectors of the inner loop, and the activations of one step.

    Raises InputError for an unknown loss, and where a group's span from θ_start to θ_target has length 0.
    """

    def match_target(theta: Tensor) -> Match:
        return match(theta, theta_start, theta_target, student.layers)

    return unrolled_gradient(
        student,
        theta_start,
        match_target,
        pairs,
        batches,
        loss=loss,
        temperature=temperature,
        adjoint=adjoint,
        adjoint_clip=adjoint_clip,
    )


@torch.no_grad()
def unrolled_gradient(
    student: Student,
    theta_start: Tensor,
    match_final: Callable[[Tensor], Match],
    pairs: SyntheticPairs,
    batches: Tensor,
    *,
    loss: LossKind,
    temperature: float,
    adjoint: float,
    adjoint_clip: float | None,
) -> OuterGradient:
    """`outer_gradient` with the target behind a function of θ_n, which may never form it."""
    layers = student.layers
    loss_of = student_loss(student, loss, temperature)
    rate = layers.expand(pairs.lr)

    # The truncated form asks for no weight gradient: λ stays, and Σ g_i is known from the inner loop.
    gradients = grad(loss_of, argnums=(1, 2, 3) if adjoint == 0 else (1, 2, 3, 0))

    path = [theta_start]
    gradient_sum = torch.zeros_like(theta_start)
    for index in batches:
        g = grad(loss_of)(path[-1], pairs.images[index], pairs.texts[index], pairs.similarity.batch(index))
        path.append(path[-1] - rate * g)
        gradient_sum += g
    matched = match_final(path[-1])

    grads = {name: torch.zeros_like(leaf) for name, leaf in pairs.leaves().items()}
    if adjoint == 0:
        grads["lr"] -= layers.dot(matched.adjoint, gradient_sum)
    lam = matched.adjoint
    largest = None if adjoint_clip is None else adjoint_clip * layers.dot(lam, lam).sqrt()

    for theta, index in zip(reversed(path[:-1]), batches.flip(0), strict=True):
        batch_similarity, pull_similarity = vjp(  # type: ignore[misc]  # no has_aux: a pair
            lambda leaves, index=index: pairs.similarity.replace(leaves).batch(index), pairs.similarity.leaves()
        )
        batch = (pairs.images[index], pairs.texts[index], batch_similarity)
        primal, tangent = jvp(  # type: ignore[misc]
            lambda theta, batch=batch: gradients(theta, *batch), (theta,), (-rate * lam,)
        )
        grads["images"].index_add_(0, index, tangent[0])
        grads["texts"].index_add_(0, index, tangent[1])
        for name, g in pull_similarity(tangent[2])[0].items():
            grads[name] += g
        if adjoint > 0:
            grads["lr"] -= layers.dot(lam, primal[3])
            lam = lam + adjoint * tangent[3]
            if largest is not None:
                norm = layers.dot(lam, lam).sqrt()
                lam = lam * layers.expand(torch.where(norm > largest, largest / norm, 1.0))

    return OuterGradient(matched.loss, matched.per_group, path[-1], grads)
