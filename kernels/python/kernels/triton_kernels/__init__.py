"""The kernels in Triton, for CUDA; one family a file. Arguments are contiguous and have been checked.

A program owns one tile of a fixed size, and a second kernel adds the sums of tiles in order, so that equal inputs give
equal bits. Nothing is autotuned, for the same reason. The contract is dispatch.py's `TiledImplementation`.
"""

from ptmst.kernels.triton_kernels.contrast import (
    pairwise,
    softmax_coefficients,
    softmax_gradient,
    softmax_stats,
    through_norms,
    totals,
    unit_pairs,
)
from ptmst.kernels.triton_kernels.matching import matching_residual, vector_residual
from ptmst.kernels.triton_kernels.shortcut import shortcut_point
from ptmst.kernels.triton_kernels.update import flat_sgd_, sgd_ema_

__all__ = [
    "flat_sgd_",
    "matching_residual",
    "pairwise",
    "sgd_ema_",
    "shortcut_point",
    "softmax_coefficients",
    "softmax_gradient",
    "softmax_stats",
    "through_norms",
    "totals",
    "unit_pairs",
    "vector_residual",
]
