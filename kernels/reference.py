"""Every kernel in plain torch: the definition that faster implementations are tested against.

Shapes, as everywhere: P parameters in L layers in G groups. base, theta, grad float32 [P]; displacement float16 [P];
scale, beta float32 [L]; offsets int64 [L+1]; groups int64 [L]; lr float32 [G]. Layer ℓ is [offsets[ℓ], offsets[ℓ+1]).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def shortcut_point(base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor) -> Tensor:
    """θ = base + β · scale · displacement, layer by layer (METHOD §2) → float32 [P]."""
    return base + _per_parameter(beta * scale, offsets) * displacement.float()


def matching_residual(
    theta: Tensor,
    base: Tensor,
    displacement: Tensor,
    scale: Tensor,
    offsets: Tensor,
    groups: Tensor,
    beta_start: Tensor,
    beta_target: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """θ against the shortcut's point at `beta_target` (METHOD §4) → residual [P], squared [G], progress [G].

    residual = θ − target; squared_g = Σ residual²; progress_g = Σ residual · (θ − start), from which ∂L/∂η follows.
    """
    residual = theta - shortcut_point(base, displacement, scale, offsets, beta_target)
    moved = theta - shortcut_point(base, displacement, scale, offsets, beta_start)
    sizes = _group_sizes(offsets, groups)
    squared = torch.stack([torch.dot(r, r) for r in residual.split(sizes)])
    progress = torch.stack([torch.dot(r, m) for r, m in zip(residual.split(sizes), moved.split(sizes), strict=True)])
    return residual, squared, progress


def flat_sgd_(theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> Tensor:
    """θ ← θ − η_group · grad, in place; returns θ."""
    parts = zip(
        theta.split(_group_sizes(offsets, groups)), grad.split(_group_sizes(offsets, groups)), lr.tolist(), strict=True
    )
    for part, gradient, rate in parts:
        part.sub_(gradient, alpha=rate)
    return theta


def sgd_ema_(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor, ema: Tensor, lr: float, momentum: float, decay: float
) -> Tensor:
    """One step of SGD with momentum on a leaf, then of its average (METHOD §3, §5); in place, returns `param`.

    m ← momentum · m + grad;  param ← param − lr · m;  ema ← decay · ema + (1 − decay) · param. Any one shape.
    """
    momentum_buffer.mul_(momentum).add_(grad)
    param.sub_(momentum_buffer, alpha=lr)
    ema.lerp_(param, 1 - decay)
    return param


def soft_contrastive(
    image_embeds: Tensor,
    text_embeds: Tensor,
    similarity: Tensor | None = None,
    *,
    kind: str = "wbce",
    temperature: float = 0.07,
) -> Tensor:
    """The loss of `kind` between image_embeds and text_embeds [N, H] under soft labels [N, N] → scalar.

    Embeddings need not be normalised; without soft labels the pairs are matched one to one (S = identity).
    """
    if kind not in LOSSES:
        raise ValueError(f"kind: expected {', '.join(LOSSES)}, found {kind}")
    logits = F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T / temperature
    if similarity is None:
        similarity = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    return LOSSES[kind](logits, similarity)


# The losses on (logits [N, N], soft labels S [N, N]); image i against text j (METHOD §1).


def _wbce(logits: Tensor, similarity: Tensor) -> Tensor:
    # The published log(σ + 1e-6): at σ(−1/0.07) ≈ 6e-7 the constant sets the gradient.
    yes = torch.log(torch.sigmoid(logits) + 1e-6)
    no = torch.log(1 - torch.sigmoid(logits) + 1e-6)
    terms = -similarity * yes - (1 - similarity) * no
    positive = (similarity > 0.5).to(terms.dtype)
    negative = 1 - positive
    return ((terms * positive).sum() / (positive.sum() + 1e-6) + (terms * negative).sum() / (negative.sum() + 1e-6)) / 2


def _bce(logits: Tensor, similarity: Tensor) -> Tensor:
    yes, no = F.logsigmoid(logits).clamp(min=-100), F.logsigmoid(-logits).clamp(min=-100)
    return -(similarity * yes + (1 - similarity) * no).mean()


def _mse(logits: Tensor, similarity: Tensor) -> Tensor:
    return (torch.sigmoid(logits) - similarity).square().mean()


def _infonce(logits: Tensor, similarity: Tensor) -> Tensor:
    return -(similarity * F.log_softmax(logits, dim=1)).sum(1).mean()


def _cwcl(logits: Tensor, similarity: Tensor) -> Tensor:
    weighted = (similarity * F.log_softmax(logits, dim=1)).sum(1)
    return -(weighted / (similarity.sum(1) + 1e-6)).mean()


def _kl(logits: Tensor, similarity: Tensor) -> Tensor:
    log_q = F.log_softmax(10 * similarity, dim=1)
    return (log_q.exp() * (log_q - F.log_softmax(logits, dim=1))).mean()


def _both_ways(one_way: Loss) -> Loss:
    return lambda logits, similarity: (one_way(logits, similarity) + one_way(logits.T, similarity.T)) / 2


LOSSES: dict[str, Loss] = {
    "wbce": _wbce,
    "bce": _bce,
    "infonce": _both_ways(_infonce),
    "kl": _both_ways(_kl),
    "mse": _mse,
    "cwcl": _both_ways(_cwcl),
}


def _per_parameter(per_layer: Tensor, offsets: Tensor) -> Tensor:
    # By views: sizes that were copied to a device could not be recorded in a CUDA graph.
    values = zip(per_layer.unbind(), offsets.diff().tolist(), strict=True)
    return torch.cat([value.expand(n) for value, n in values])


def _group_sizes(offsets: Tensor, groups: Tensor) -> list[int]:
    if bool((groups.diff() < 0).any()):
        raise ValueError(f"groups: expected the layers of a group side by side, found {groups.tolist()}")
    counts = torch.zeros(int(groups.max()) + 1, dtype=torch.int64, device=groups.device)
    sizes: list[int] = counts.index_add_(0, groups, offsets.diff()).tolist()
    return sizes
