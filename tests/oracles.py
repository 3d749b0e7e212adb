"""The method in float64, as plain as can be: what the engine is measured against (docs/method.md §1, §2, §4).

Nothing here is taken from ptmst. Derivatives of derivatives are made by autograd through autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

LossOf = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""ℓ(θ, x, y, S)."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖; not a number, which passes no test, where the expected value is zero."""
    assert found.shape == expected.shape
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())


# Losses


def contrastive(kind: str, logits: Tensor, similarity: Tensor) -> Tensor:
    if kind == "wbce":
        p = 1 / (1 + torch.exp(-logits))
        terms = -similarity * torch.log(p + 1e-6) - (1 - similarity) * torch.log(1 - p + 1e-6)
        positive = similarity > 0.5
        means = [terms[which].sum() / (which.double().sum() + 1e-6) for which in (positive, ~positive)]
        return (means[0] + means[1]) / 2
    if kind == "bce":
        p = 1 / (1 + torch.exp(-logits))
        yes, no = torch.log(p).clamp(min=-100), torch.log(1 - p).clamp(min=-100)
        return -(similarity * yes + (1 - similarity) * no).mean()
    if kind == "siglip":
        agree = similarity * torch.log1p(torch.exp(-logits)) + (1 - similarity) * torch.log1p(torch.exp(logits))
        return agree.sum() / len(logits)
    if kind == "mse":
        return ((1 / (1 + torch.exp(-logits)) - similarity) ** 2).mean()
    one_way = {"infonce": _infonce, "cwcl": _cwcl, "kl": _kl}[kind]
    return (one_way(logits, similarity) + one_way(logits.T, similarity.T)) / 2


def _log_softmax(rows: Tensor) -> Tensor:
    return rows - torch.logsumexp(rows, dim=1, keepdim=True)


def _infonce(logits: Tensor, similarity: Tensor) -> Tensor:
    return -(similarity * _log_softmax(logits)).sum(1).mean()


def _cwcl(logits: Tensor, similarity: Tensor) -> Tensor:
    return -((similarity * _log_softmax(logits)).sum(1) / (similarity.sum(1) + 1e-6)).mean()


def _kl(logits: Tensor, similarity: Tensor) -> Tensor:
    log_q = _log_softmax(10 * similarity)
    return (torch.exp(log_q) * (log_q - _log_softmax(logits))).mean()


# Shortcuts


def beta(step_norms: NDArray[np.float64], endpoint: int) -> NDArray[np.float64]:
    """[K+1, L] from step norms [E, L]."""
    out = np.zeros((endpoint + 1, step_norms.shape[1]))
    for layer in range(step_norms.shape[1]):
        total = sum(step_norms[k, layer] for k in range(endpoint))
        for t in range(endpoint + 1):
            walked = sum(step_norms[k, layer] for k in range(t))
            out[t, layer] = walked / total if total > 0 else 0.0
    return out


# Retrieval


def recall(
    images: NDArray[np.float64],
    texts: NDArray[np.float64],
    image_of_text: NDArray[np.int64],
    caption_of_text: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    # One by one: a matrix product's last bits depend on where a row is.
    scores = np.array([[float((image * text).sum()) for text in texts] for image in images])
    captions = np.arange(len(texts)) if caption_of_text is None else caption_of_text
    has = {(int(i), int(c)) for i, c in zip(image_of_text, captions, strict=True)}
    fits = np.array([[(i, int(c)) in has for c in captions] for i in range(len(images))])
    hits = {f"{name}{k}": Fraction() for name in ("ir", "tr") for k in (1, 5, 10)}
    for k in (1, 5, 10):
        for t in range(len(texts)):
            hits[f"ir{k}"] += expected_hit(scores[:, t], fits[:, t], k) / len(texts)
        for i in range(len(images)):
            hits[f"tr{k}"] += expected_hit(scores[i], fits[i], k) / len(images)
    out = {name: float(100 * value) for name, value in hits.items()}
    return out | {"mean": sum(out.values()) / 6}


def expected_hit(scores: NDArray[np.float64], right: NDArray[np.bool_], k: int) -> Fraction:
    """The probability that a right candidate is among the k best, if equal scores are in a random order.

    Level by level from the top: all of a level that fits are taken, of the next as many as there is room for, each
    choice of them being equally likely.
    """
    room = k
    for value in sorted(set(scores), reverse=True):
        level = scores == value
        size, ours = int(level.sum()), int((level & right).sum())
        if ours:
            taken = min(room, size)
            return 1 - Fraction(comb(size - ours, taken), comb(size, taken))
        room -= size
        if room <= 0:
            break
    return Fraction()


# Pictures


UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
"""From stored to upright pixels, by EXIF orientation."""


# The outer gradient


@dataclass(frozen=True)
class Outer:
    """One outer step, its tensors in float64."""

    loss_of: LossOf
    start: Tensor
    target: Tensor
    group_sizes: tuple[int, int]
    leaves: Mapping[str, Tensor]
    """images, texts, lr, and similarity, or diag, left and right."""
    alpha: float
    batches: Tensor

    def loss(self, theta: Tensor) -> Tensor:
        """Σ_groups ‖θ − target‖² / ‖start − target‖²."""
        far = ((theta - self.target) ** 2).split(self.group_sizes)
        whole = ((self.start - self.target) ** 2).split(self.group_sizes)
        return sum((a.sum() / b.sum() for a, b in zip(far, whole, strict=True)), torch.zeros(()))

    def rate(self, lr: Tensor) -> Tensor:
        return torch.cat([lr[g].expand(size) for g, size in enumerate(self.group_sizes)])

    def step_gradient(self, theta: Tensor, leaves: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """g_i as a function that autograd can differentiate again."""
        similarity = dense(leaves, self.alpha)[index][:, index]
        value = self.loss_of(theta, leaves["images"][index], leaves["texts"][index], similarity)
        return torch.autograd.grad(value, theta, create_graph=True)[0]

    def unrolled(self) -> tuple[Tensor, dict[str, Tensor]]:
        """L and its exact gradient, by autograd through the whole inner loop."""
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in self.leaves.items()}
        theta = self.start.clone().requires_grad_()
        for index in self.batches:
            theta = theta - self.rate(leaves["lr"]) * self.step_gradient(theta, leaves, index)
        loss = self.loss(theta)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return loss.detach(), dict(zip(leaves, gradients, strict=True))

    def recursion(self, adjoint: float, clip: float | None) -> dict[str, Tensor]:
        """The adjoint recursion with both dials, every product by double backward; adjoint 0 is the truncated form."""
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in self.leaves.items()}
        rate = self.rate(self.leaves["lr"])
        path = [self.start.clone().requires_grad_()]
        for index in self.batches:
            step = path[-1] - rate * self.step_gradient(path[-1], leaves, index)
            path.append(step.detach().requires_grad_())
        (last,) = torch.autograd.grad(self.loss(path[-1]), path[-1])
        lam, total = last, {name: torch.zeros_like(leaf) for name, leaf in self.leaves.items()}
        others = [name for name in leaves if name != "lr"]
        for i in reversed(range(len(self.batches))):
            g = self.step_gradient(path[i], leaves, self.batches[i])
            product = (-rate * lam * g).sum()
            *found, hessian = torch.autograd.grad(product, [*(leaves[name] for name in others), path[i]])
            for name, value in zip(others, found, strict=True):
                total[name] += value
            per_group = (lam * g.detach()).split(self.group_sizes)
            total["lr"] -= torch.stack([part.sum() for part in per_group])
            lam = lam + adjoint * hessian
            if clip is not None:
                lam = torch.cat([_clipped(a, clip * b.norm()) for a, b in self._by_group(lam, last)])
        return total

    def _by_group(self, a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(a.split(self.group_sizes), b.split(self.group_sizes), strict=True))


def dense(leaves: Mapping[str, Tensor], alpha: float) -> Tensor:
    """S [N, N] of a full or a low-rank set of leaves."""
    if "similarity" in leaves:
        return leaves["similarity"]
    rank = leaves["left"].shape[1]
    return torch.diag(leaves["diag"]) + (alpha / rank) * (leaves["left"] @ leaves["right"].T)


def _clipped(vector: Tensor, largest: Tensor) -> Tensor:
    return vector * (largest / vector.norm()) if vector.norm() > largest else vector


# Memory


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that `work` holds at once on the CPU besides what there was before: every allocation is counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    assert watched.profiler is not None and watched.profiler.kineto_results is not None
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max(initial=0))
