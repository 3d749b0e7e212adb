"""The kernels in Triton, for CUDA; one family a file. Tensors are contiguous and have been checked.

A program owns one tile of a fixed size, and sums of tiles are added in order by a second kernel: the same input gives
the same bits. Nothing is autotuned, for the same reason.
"""

from ptmst.kernels.triton_kernels.contrast import (
    line_numbers,
    lines,
    pairwise,
    softmax,
    through_norms,
    totals,
    unit_pairs,
)
from ptmst.kernels.triton_kernels.matching import matching_residual, vector_residual
from ptmst.kernels.triton_kernels.shortcut import shortcut_point
from ptmst.kernels.triton_kernels.update import flat_sgd_, sgd_ema_

__all__ = [
    "flat_sgd_",
    "line_numbers",
    "lines",
    "matching_residual",
    "pairwise",
    "sgd_ema_",
    "shortcut_point",
    "softmax",
    "through_norms",
    "totals",
    "unit_pairs",
    "vector_residual",
]
