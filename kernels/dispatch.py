"""Which implementation of a kernel runs: native C++ on the CPU where it was built, plain torch elsewhere."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache

FORCE = "PTMST_KERNELS"
NATIVE = ("shortcut_point",)
"""Kernels that the native library holds."""
_KERNELS = ("shortcut_point", "matching_residual", "flat_sgd_", "sgd_ema_", "soft_contrastive")
_CHOICES = ("reference", "native")


@cache
def native() -> ctypes.CDLL | None:
    """The native library; none where it was not built or $PTMST_KERNELS=reference forbids it.

    Raises OSError where $PTMST_KERNELS asks for what cannot be had.
    """
    wanted = os.environ.get(FORCE)
    if wanted is not None and wanted not in _CHOICES:
        raise OSError(f"{FORCE}: expected {' or '.join(_CHOICES)}, found {wanted}; mend it or unset it")
    if wanted == "reference":
        return None
    # An editable install keeps the library away from this file: the import system knows where.
    spec = importlib.util.find_spec("ptmst.kernels._native")
    if spec is None or spec.origin is None:
        if wanted == "native":
            raise OSError(f"{FORCE}=native: expected the native library, found none; install with g++ and cmake")
        return None
    library = ctypes.CDLL(spec.origin)
    pointer, float_p = ctypes.c_void_p, ctypes.c_void_p
    library.ptmst_shortcut_point.argtypes = [
        float_p, float_p, pointer, float_p, float_p, pointer, ctypes.c_int64, ctypes.c_int
    ]  # fmt: skip
    library.ptmst_shortcut_point.restype = None
    library.ptmst_instructions.restype = ctypes.c_char_p
    return library


def active() -> dict[str, str]:
    """Kernel → what runs it on this machine, and why."""
    library = native()
    if library is not None:
        why = f"native C++ ({library.ptmst_instructions().decode()}) on the CPU, plain torch on CUDA"
    elif os.environ.get(FORCE) == "reference":
        why = f"plain torch ({FORCE}=reference)"
    else:
        why = "plain torch (the native library was not built: install with g++ and cmake)"
    return {name: why if name in NATIVE else "plain torch (no other implementation yet)" for name in _KERNELS}
