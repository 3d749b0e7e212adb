"""The small steps of a contrastive loss in tiles, in plain torch: those before, between and after the tiles.

The native kernels use them as they are; `triton_kernels` has one kernel for each.

A softmax loss needs five numbers of each row and each column of logits z. First the statistics, with x = SHARPNESS · S:

    slot                        linear in S       kl
    LOGIT_MAX                   m = max z         m = max z
    LABEL_MAX                   unused            m′ = max x
    EXP_SUM                     Σ exp(z − m)      Σ exp(z − m)
    LABEL_SUM                   Σ S               Σ exp(x − m′)
    CROSS_SUM                   Σ S (z − m)       Σ exp(x − m′) ((x − m′) − (z − m))

Maxima are subtracted before anything is summed, since the loss is a small difference. Then the coefficients of the
gradient, with p the softmax of z, q that of x, and a the weight of p:

    slot                        linear in S       kl
    LOGIT_MAX                   m                 m
    LOGIT_SCALE                 a / Σ exp(z − m)  a / Σ exp(z − m)        a p = LOGIT_SCALE · exp(z − m)
    LABEL_WEIGHT, SHARP_MAX     u                 m′
    OFFSET, SHARP_SCALE         v                 a / Σ exp(x − m′)       a q = SHARP_SCALE · exp(x − m′)
    unused, SHARP_OFFSET        u                 v

    ∂ℓ/∂z                       (a p − u S) / 2   a (p − q) / 2
    ∂ℓ/∂S                       −u (z − v) / 2    SHARPNESS a q (x − z − v) / 2

A pair's gradient is the sum of its row's and its column's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptmst.kernels.reference import EPS

SMALLEST_NORM = 1e-12
"""The eps of torch's normalize."""
LOWEST = -3.4e38
"""The maximum of no logits."""

NUM_STATS = 5
LOGIT_MAX, LABEL_MAX, EXP_SUM, LABEL_SUM, CROSS_SUM = range(NUM_STATS)
LOGIT_SCALE, LABEL_WEIGHT, OFFSET = 1, 2, 3
SHARP_MAX, SHARP_SCALE, SHARP_OFFSET = 2, 3, 4


def unit_pairs(images: Tensor, texts: Tensor, temperature: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [N, H] over their norms, those of images also over the temperature → units [2, N, H] of `dtype`, and the
    divisors, float32 [2, N, 1]."""
    norms = [v.float().norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM) for v in (images, texts)]
    scales = torch.stack([norms[0] * temperature.float(), norms[1]])
    units = images.new_empty(2, *images.shape, dtype=dtype)
    for vectors, scale, unit in zip((images, texts), scales, units, strict=True):
        torch.div(vectors, scale, out=unit)
    return units, scales


def through_norms(
    gradients: tuple[Tensor, Tensor], units: Tensor, scales: Tensor, temperature: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """∂ℓ/∂images and ∂ℓ/∂texts [N, H] of `dtype` from the gradients of their units g, float32 [N, H], which are
    overwritten: (g − u ⟨g, u⟩ / |u|²) / scale, the part of g orthogonal to u."""
    lengths = temperature.float().reciprocal(), torch.ones_like(temperature, dtype=torch.float32)
    results = []
    for gradient, unit, scale, length in zip(gradients, units, scales, lengths, strict=True):
        along = (gradient * unit).sum(1, keepdim=True) / length.square()
        results.append(gradient.addcmul_(unit, along, value=-1).div_(scale).to(dtype))
    return results


def softmax_coefficients(kind: str, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of rows [N, 5] and columns [5, N] → their coefficients, float32 [N, 5] and [5, N], and their terms of
    the loss, [2, N]."""
    (of_rows, row_losses), (of_columns, column_losses) = (_coefficients(kind, stats) for stats in (rows.T, columns))
    return of_rows.T.contiguous(), of_columns, torch.stack([row_losses, column_losses])


def _coefficients(kind: str, stats: Tensor) -> tuple[Tensor, Tensor]:
    n = stats.shape[1]
    logit_max, label_max, exp_sum, label_sum, cross_sum = stats
    log_exp_sum = exp_sum.log()
    if kind == "kl":
        a, mean = 1 / n**2, cross_sum / label_sum
        slots = [logit_max, a / exp_sum, label_max, a / label_sum, mean + label_max - logit_max]
        return torch.stack(slots).float(), a / 2 * (mean - label_sum.log() + log_exp_sum)
    # A row's term of the loss is −u/2 Σ S log p, where Σ S log p = Σ S (z − m) − Σ S · log Σ exp(z − m).
    weight = label_sum + EPS if kind == "cwcl" else torch.ones_like(label_sum)
    u, sum_log = 1 / (n * weight), cross_sum - label_sum * log_exp_sum
    v = logit_max + log_exp_sum + (sum_log / weight if kind == "cwcl" else 0)
    return torch.stack([logit_max, label_sum * u / exp_sum, u, v, u]).float(), -u / 2 * sum_log


def pair_weights(kind: str, n: int, positives: Tensor | None) -> tuple[float, float]:
    """The weights of pairs with S > ½ and of the others. positives: how many of the N² have S > ½; None: N."""
    if kind == "wbce":
        count = n if positives is None else int(positives)
        return 0.5 / (count + EPS), 0.5 / (n * n - count + EPS)
    weight = 1 / n if kind == "siglip" else 1 / n**2
    return weight, weight


def totals(
    losses: Tensor,
    along: Tensor | None,
    slopes: Tensor | None,
    temperature: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The loss, Σ losses, of `dtype`. With `along`, whose sum is Σ x̂ŷᵀ/τ ∂ℓ/∂z, also ∂ℓ/∂τ = −Σ along / τ, and
    ∂ℓ/∂b = Σ slopes, or 0."""
    results = [losses.double().sum().to(dtype)]
    if along is not None:
        of_bias = torch.zeros_like(bias) if slopes is None else slopes.double().sum()
        results += [(-along.double().sum() / temperature).to(temperature.dtype), of_bias.to(bias.dtype)]
    return results
