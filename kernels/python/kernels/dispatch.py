"""Which implementation of a kernel runs: Triton on CUDA, native C++ on the CPU, plain torch elsewhere or in float64."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache
from types import ModuleType

import torch

from ptmst.kernels import native, reference

FORCE = "PTMST_KERNELS"
KERNELS = ("shortcut_point", "matching_residual", "vector_residual", "flat_sgd_", "sgd_ema_", "soft_contrastive")
_CHOICES = ("reference", "native", "triton")


def implementation(tensor: torch.Tensor) -> ModuleType:
    """The module whose kernels run on such tensors: `reference`, `native`, or `triton_kernels`.

    Raises OSError where $PTMST_KERNELS asks for what cannot be had there.
    """
    chosen = on_device(tensor.device.type, os.environ.get(FORCE))
    return reference if tensor.dtype == torch.float64 else chosen


@cache
def on_device(device: str, wanted: str | None) -> ModuleType:
    if wanted is not None and wanted not in _CHOICES:
        raise OSError(f"{FORCE}: expected {', '.join(_CHOICES)}, found {wanted}; mend it or unset it")
    if wanted == "reference":
        return reference
    if wanted == "native" or (wanted is None and device == "cpu"):
        if device == "cpu" and native.library() is not None:
            return native
        if wanted is not None:
            where = f"tensors on the CPU, found them on {device}; move them, or unset it"
            lacks = f"the native library, which {native.lacks()}"
            raise OSError(f"{FORCE}=native: expected {lacks if device == 'cpu' else where}")
        return reference
    if wanted == "triton" or device == "cuda":
        runs, lacks = device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1", lacks_triton()
        if runs and not lacks:
            from ptmst.kernels import triton_kernels

            return triton_kernels
        if wanted is not None:
            where = f"tensors on CUDA, found them on {device}; move them, or set TRITON_INTERPRET=1 to interpret"
            raise OSError(f"{FORCE}=triton: expected {lacks if runs else where}")
    return reference


@cache
def lacks_triton() -> str:
    """What Triton would need to run here; nothing where it has it all. It compiles its launcher at the first launch."""
    if importlib.util.find_spec("triton") is None:
        return "triton, found none; pip install triton"
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang")):
        return "a C compiler for triton, found none; install gcc or set CC"
    return ""


def active() -> dict[str, str]:
    """Kernel → what runs it on this machine, and why."""
    shown = f"{_on_cpu()}; {_on_cuda()}"
    return dict.fromkeys(KERNELS, shown)


def _on_cpu() -> str:
    chosen = on_device("cpu", os.environ.get(FORCE))
    if chosen is native:
        return f"native C++ ({native.instructions()}) on the CPU"
    if chosen is not reference:
        return "Triton's interpreter on the CPU"
    if os.environ.get(FORCE) == "reference":
        return f"plain torch on the CPU ({FORCE}=reference)"
    return f"plain torch on the CPU (the native library {native.lacks()})"


def _on_cuda() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device here"
    if os.environ.get(FORCE) == "native":
        return f"nothing on CUDA ({FORCE}=native)"
    if on_device("cuda", os.environ.get(FORCE)) is not reference:
        return "Triton on CUDA"
    why = f"{FORCE}=reference" if os.environ.get(FORCE) == "reference" else f"expected {lacks_triton()}"
    return f"plain torch on CUDA ({why})"
