"""The small steps of a contrastive loss in tiles, in plain torch: what stands before, between and after the tiles.

The native kernels take them from here; `triton_kernels` has one kernel for each.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
"""As the definitions have it."""
SMALLEST_NORM = 1e-12
"""As torch's normalize has it."""


def unit_pairs(images: Tensor, texts: Tensor, temperature: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [N, H] over their norms, the images' also over the temperature → [2, N, H] of `dtype`; and what each was
    divided by, float32 [2, N, 1]."""
    norms = [v.float().norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM) for v in (images, texts)]
    scales = torch.stack([norms[0] * temperature.float(), norms[1]])
    units = images.new_empty(2, *images.shape, dtype=dtype)
    for vectors, scale, unit in zip((images, texts), scales, units, strict=True):
        torch.div(vectors, scale, out=unit)
    return units, scales


def through_norms(
    gradients: tuple[Tensor, Tensor], units: Tensor, scales: Tensor, temperature: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """∂ℓ/∂images and ∂ℓ/∂texts [N, H] of `dtype` from those of their units, float32 [N, H], which are overwritten: what
    lies across each row's direction."""
    lengths = temperature.float().reciprocal(), torch.ones_like(temperature, dtype=torch.float32)
    found = []
    for gradient, unit, scale, length in zip(gradients, units, scales, lengths, strict=True):
        along = (gradient * unit).sum(1, keepdim=True) / length.square()
        found.append(gradient.addcmul_(unit, along, value=-1).div_(scale).to(dtype))
    return found


def line_numbers(kind: str, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `Tiles.lines` gathered, rows [N, 5] and columns [5, N] → what `Tiles.softmax` takes, float32 [N, 5] and
    [5, N]; and each row's and column's part of the loss, [2, N]."""
    (of_rows, row_losses), (of_columns, column_losses) = (_line_numbers(kind, numbers) for numbers in (rows.T, columns))
    return of_rows.T.contiguous(), of_columns, torch.stack([row_losses, column_losses])


def _line_numbers(kind: str, numbers: Tensor) -> tuple[Tensor, Tensor]:
    n = numbers.shape[1]
    peak, sharp_peak, total, second, third = numbers
    log_total = total.log()
    if kind == "kl":
        a, mean = 1 / n**2, third / second
        of_line = [peak, a / total, sharp_peak, a / second, mean + sharp_peak - peak]
        return torch.stack(of_line).float(), a / 2 * (mean - second.log() + log_total)
    # The line's loss is −u Σ S log p.
    weight = second + EPS if kind == "cwcl" else torch.ones_like(second)
    u, sum_log = 1 / (n * weight), third - second * log_total
    v = peak + log_total + (sum_log / weight if kind == "cwcl" else 0)
    return torch.stack([peak, second * u / total, u, v, u]).float(), -u / 2 * sum_log


def pair_weights(kind: str, n: int, positives: Tensor | None) -> tuple[float, float]:
    """Of N² pairs those with S > ½, and the rest: N of them, where `positives` does not say how many."""
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
    """The loss of `dtype`, Σ losses; with along, whose sum is Σ x̂ŷᵀ/τ ∂ℓ/∂z, also ∂ℓ/∂τ and ∂ℓ/∂b, Σ slopes or 0."""
    found = [losses.double().sum().to(dtype)]
    if along is not None:
        of_bias = torch.zeros_like(bias) if slopes is None else slopes.double().sum()
        found += [(-along.double().sum() / temperature).to(temperature.dtype), of_bias.to(bias.dtype)]
    return found
