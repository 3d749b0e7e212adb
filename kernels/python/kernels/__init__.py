"""Kernels over flat parameter vectors, and of the contrastive loss: one contract, three implementations.

`reference.py` is the definition, in plain torch; `native.py` calls C++ on the CPU, and `triton_kernels/` runs on CUDA.
dispatch.py has the contract and chooses; `active()` says which runs and why. All are torch ops: they trace under
torch.compile, those with a gradient are differentiable once, and inside a function transform (`jvp`, `grad`), where
their derivatives would be lost, they refuse to run. Installed as `ptmst.kernels`; depends on torch and triton alone.
"""

if __name__ != "ptmst.kernels":
    raise ImportError(f"expected to be imported as ptmst.kernels, found {__name__}; write `from ptmst import kernels`")

from ptmst.kernels.contrast import soft_contrastive
from ptmst.kernels.dispatch import active
from ptmst.kernels.matching import matching_residual, vector_residual
from ptmst.kernels.shortcut import shortcut_point
from ptmst.kernels.update import flat_sgd_, sgd_ema_

__all__ = [
    "active",
    "flat_sgd_",
    "matching_residual",
    "sgd_ema_",
    "shortcut_point",
    "soft_contrastive",
    "vector_residual",
]
