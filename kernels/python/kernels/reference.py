"""Every kernel in plain torch: the definition that faster implementations are tested against.

Shapes throughout: P parameters in L layers in G groups. base, theta, grad float32 [P]; displacement float16 [P];
scale, beta float32 [L]; offsets int64 [L+1]; groups int64 [L]; lr float32 [G]. Layer ℓ is [offsets[ℓ], offsets[ℓ+1]).
These functions support any transform of torch.func, any derivative, and other floating types.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmst.kernels.layout import cut

Loss = Callable[[Tensor, Tensor], Tensor]
EPS = 1e-6
"""Added to σ in wbce and to the divisors of weights, as published. At σ(−1/0.07) ≈ 6e-7 it determines the gradient."""
SHARPNESS = 10.0
"""kl compares with softmax(SHARPNESS · S)."""
LOG_FLOOR = -100.0
"""torch's binary cross-entropy, and so the published one, clamps logarithms there."""


def shortcut_point(
    base: Tensor, displacement: Tensor, scale: Tensor, offsets: Tensor, beta: Tensor, out: Tensor | None = None
) -> Tensor:
    """θ = base + β · scale · displacement, layer by layer (docs/method.md §2) → float32 [P], or into `out`."""
    theta = base + _per_parameter(beta * scale, offsets) * displacement.to(base.dtype)
    return theta if out is None else out.copy_(theta)


def matching_residual(
    theta: Tensor,
    base: Tensor,
    displacement: Tensor,
    scale: Tensor,
    offsets: Tensor,
    groups: Tensor,
    beta_start: Tensor,
    beta_target: Tensor,
    num_groups: int | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """θ against the shortcut's point at `beta_target` (docs/method.md §4) → residual [P], squared [G], progress [G].

    residual = θ − target, into `out` where it is given; squared_g = Σ residual²; progress_g = Σ residual · (θ − start),
    from which ∂L/∂η follows.
    """
    start = shortcut_point(base, displacement, scale, offsets, beta_start)
    target = shortcut_point(base, displacement, scale, offsets, beta_target)
    return vector_residual(theta, start, target, offsets, groups, num_groups, out)[:3]


def vector_residual(
    theta: Tensor,
    start: Tensor,
    target: Tensor,
    offsets: Tensor,
    groups: Tensor,
    num_groups: int | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Like matching_residual, between plain vectors [P] → residual [P], squared, progress, distance [G].

    distance_g = Σ (target − start)², the squared length of the span.
    """
    residual = theta - target if out is None else out.copy_(theta - target)
    sizes = _group_sizes(offsets, groups, num_groups)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(a.split(sizes), b.split(sizes), strict=True)
        return torch.stack([torch.dot(p, q) for p, q in pairs]) if sizes else a.new_empty(0)

    moved = target - start
    return residual, dot(residual, residual), dot(residual, theta - start), dot(moved, moved)


def flat_sgd_(theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> Tensor:
    """θ ← θ − η_group · grad, in place; returns θ."""
    sizes = _group_sizes(offsets, groups, lr.numel())
    for part, gradient, rate in zip(theta.split(sizes), grad.split(sizes), lr.unbind(), strict=True):
        part.sub_(rate * gradient)
    return theta


def sgd_ema_(
    param: Tensor, grad: Tensor, momentum_buffer: Tensor, ema: Tensor, lr: float, momentum: float, decay: float
) -> Tensor:
    """One step of SGD with momentum on a leaf and of its moving average (docs/method.md §3, §5), in place → `param`.

    m ← momentum · m + grad;  param ← param − lr · m;  ema ← decay · ema + (1 − decay) · param.
    """
    momentum_buffer.mul_(momentum).add_(grad)
    param.sub_(momentum_buffer, alpha=lr)
    ema.lerp_(param, 1 - decay)
    return param


class LowRank(Protocol):
    """Soft labels S = diag(diag) + (alpha/rank) left rightᵀ, never formed: diag [N], left and right [N, rank].

    `ptmst.LowRankSimilarity` conforms.
    """

    @property
    def diag(self) -> Tensor: ...
    @property
    def left(self) -> Tensor: ...
    @property
    def right(self) -> Tensor: ...
    @property
    def alpha(self) -> float: ...


def soft_contrastive(
    image_embeds: Tensor,
    text_embeds: Tensor,
    similarity: Tensor | LowRank | None = None,
    *,
    kind: str = "wbce",
    temperature: float | Tensor = 0.07,
    bias: float | Tensor = 0.0,
) -> Tensor:
    """The loss of `kind` between image_embeds and text_embeds [N, H] under soft labels [N, N] → scalar.

    logits = cosine / temperature + bias; embeddings need not be normalized. Without soft labels each image matches its
    own text alone (S = identity). Raises ValueError for an unknown kind.
    """
    if kind not in LOSSES:
        raise ValueError(f"kind: expected {', '.join(LOSSES)}, found {kind}")
    logits = F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T / temperature + bias
    if similarity is None:
        similarity = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    elif not isinstance(similarity, Tensor):
        rank = similarity.left.shape[1]
        low_rank = (similarity.alpha / rank) * (similarity.left @ similarity.right.T)
        similarity = torch.diag(similarity.diag) + low_rank
    return LOSSES[kind](logits, similarity)


# The losses of (logits [N, N], soft labels S [N, N]), image i against text j (docs/method.md §1).


def _wbce(logits: Tensor, similarity: Tensor) -> Tensor:
    log_positive = torch.log(torch.sigmoid(logits) + EPS)
    log_negative = torch.log(1 - torch.sigmoid(logits) + EPS)
    terms = -similarity * log_positive - (1 - similarity) * log_negative
    positive = (similarity > 0.5).to(terms.dtype)
    negative = 1 - positive
    return ((terms * positive).sum() / (positive.sum() + EPS) + (terms * negative).sum() / (negative.sum() + EPS)) / 2


def _bce(logits: Tensor, similarity: Tensor) -> Tensor:
    log_positive, log_negative = (F.logsigmoid(v).clamp(min=LOG_FLOOR) for v in (logits, -logits))
    return -(similarity * log_positive + (1 - similarity) * log_negative).mean()


def _siglip(logits: Tensor, similarity: Tensor) -> Tensor:
    terms = similarity * F.logsigmoid(logits) + (1 - similarity) * F.logsigmoid(-logits)
    return -terms.sum() / len(logits)


def _mse(logits: Tensor, similarity: Tensor) -> Tensor:
    return (torch.sigmoid(logits) - similarity).square().mean()


def _infonce(logits: Tensor, similarity: Tensor) -> Tensor:
    return -(similarity * F.log_softmax(logits, dim=1)).sum(1).mean()


def _cwcl(logits: Tensor, similarity: Tensor) -> Tensor:
    weighted = (similarity * F.log_softmax(logits, dim=1)).sum(1)
    return -(weighted / (similarity.sum(1) + EPS)).mean()


def _kl(logits: Tensor, similarity: Tensor) -> Tensor:
    log_q = F.log_softmax(SHARPNESS * similarity, dim=1)
    return (log_q.exp() * (log_q - F.log_softmax(logits, dim=1))).mean()


def _symmetric(of_rows: Loss) -> Loss:
    return lambda logits, similarity: (of_rows(logits, similarity) + of_rows(logits.T, similarity.T)) / 2


LOSSES: dict[str, Loss] = {
    "wbce": _wbce,
    "bce": _bce,
    "infonce": _symmetric(_infonce),
    "kl": _symmetric(_kl),
    "mse": _mse,
    "cwcl": _symmetric(_cwcl),
    "siglip": _siglip,
}


def _per_parameter(per_layer: Tensor, offsets: Tensor) -> Tensor:
    # By views: a CUDA graph cannot record a copy of the sizes to the device.
    values = zip(per_layer.unbind(), offsets.diff().tolist(), strict=True)
    return torch.cat([value.expand(n) for value, n in values])


def _group_sizes(offsets: Tensor, groups: Tensor, num_groups: int | None) -> list[int]:
    ends = cut(int(offsets[-1]), offsets, groups, num_groups).group_ends
    return [end - begin for begin, end in pairwise(ends)]
