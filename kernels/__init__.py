"""Kernels over flat parameter vectors. Each has one definition (reference.py) and faster implementations.

Installed as `ptmst.kernels`; depends on torch alone. None of these may run inside a function transform (`jvp`,
`grad`): they stand outside, where a trajectory is decoded, a student matched and a leaf updated.
"""

if __name__ != "ptmst.kernels":
    raise ImportError(
        f"expected to be imported as ptmst.kernels, found {__name__}; the folder lies in the repository's root, so "
        "write `from ptmst import kernels`"
    )

from ptmst.kernels.dispatch import active
from ptmst.kernels.reference import flat_sgd_, matching_residual, sgd_ema_, soft_contrastive
from ptmst.kernels.shortcut import shortcut_point

__all__ = ["active", "flat_sgd_", "matching_residual", "sgd_ema_", "shortcut_point", "soft_contrastive"]
