"""Which implementation of a kernel runs: Triton on CUDA, native C++ on the CPU, plain torch elsewhere or in float64.

`Implementation` is the contract of `reference`, `native` and `triton_kernels`; at the end of this file the type
checker compares all three with it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeGuard

import torch
from torch import Tensor

from ptmst.kernels import native, reference

FORCE = "PTMST_KERNELS"
KERNELS = ("shortcut_point", "matching_residual", "vector_residual", "flat_sgd_", "sgd_ema_", "soft_contrastive")
_CHOICES = ("reference", "native", "triton")


class Implementation(Protocol):
    """The kernels over flat vectors. `reference` defines each; arguments have been checked and are contiguous.

    The result [P] is `out` where that is given.
    """

    def shortcut_point(
        self,
        base: Tensor,
        displacement: Tensor,
        scale: Tensor,
        offsets: Tensor,
        beta: Tensor,
        out: Tensor | None = None,
    ) -> Tensor: ...

    def matching_residual(
        self,
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
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def vector_residual(
        self,
        theta: Tensor,
        start: Tensor,
        target: Tensor,
        offsets: Tensor,
        groups: Tensor,
        num_groups: int | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    def flat_sgd_(self, theta: Tensor, grad: Tensor, lr: Tensor, offsets: Tensor, groups: Tensor) -> Tensor | None: ...

    def sgd_ema_(
        self,
        param: Tensor,
        grad: Tensor,
        momentum_buffer: Tensor,
        ema: Tensor,
        lr: float,
        momentum: float,
        decay: float,
    ) -> Tensor | None: ...


class TiledImplementation(Implementation, Protocol):
    """With the contrastive loss in tiles as well, for which `reference` has its definition instead (contrast.py).

    A tile is a block of rows of logits z [B, N], contiguous, without their bias. Row 0 is the pair of column `first`.
    labels [B, N] has unit stride along rows; None: S is the identity. z is overwritten with ∂ℓ/∂z, and d_labels
    [B, N], where it is given, with ∂ℓ/∂S. `form` of a softmax loss is "kl", or "linear" for those linear in S.
    """

    def unit_pairs(
        self, images: Tensor, texts: Tensor, temperature: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See steps.py, which defines it in plain torch."""

    def through_norms(
        self,
        gradients: tuple[Tensor, Tensor],
        units: Tensor,
        scales: Tensor,
        temperature: Tensor,
        dtype: torch.dtype,
    ) -> list[Tensor]:
        """See steps.py."""

    def pairwise(
        self,
        kind: str,
        z: Tensor,
        labels: Tensor | None,
        d_labels: Tensor | None,
        first: int,
        bias: Tensor,
        positives: Tensor | None,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a tile that is a sum over pairs, and its gradient.

        bias is added to z. positives: the number of pairs with S > ½ among all pairs, where wbce is given labels.
        Returns three vectors of any length, whose sums are ℓ, Σ z ∂ℓ/∂z and Σ ∂ℓ/∂z. Without `differentiate` z is left
        as it is, and only the first means anything.
        """

    def softmax_stats(
        self, form: str, z: Tensor, labels: Tensor | None, first: int, rows: Tensor, columns: Tensor
    ) -> None:
        """The five statistics (steps.py) of each row, and of each column over this tile and those before it.

        rows float64 [B, 5] is written; columns float64 [5, N] is written by the tile with `first` = 0 and updated by
        those that follow.
        """

    def softmax_coefficients(self, kind: str, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See steps.py."""

    def softmax_gradient(
        self,
        form: str,
        z: Tensor,
        labels: Tensor | None,
        d_labels: Tensor | None,
        first: int,
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        """The gradient of a tile, from the coefficients (steps.py) of its rows, float32 [B, 5], and of all columns,
        float32 [5, N]. Returns a vector of any length, whose sum is Σ z ∂ℓ/∂z."""

    def totals(
        self,
        losses: Tensor,
        along: Tensor | None,
        slopes: Tensor | None,
        temperature: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
    ) -> list[Tensor]:
        """See steps.py."""


def implementation(tensor: Tensor) -> Implementation:
    """The module whose kernels run on such tensors: `reference`, `native`, or `triton_kernels`.

    Raises OSError where $PTMST_KERNELS asks for one that cannot run there.
    """
    chosen = on_device(tensor.device.type, os.environ.get(FORCE))
    return reference if tensor.dtype == torch.float64 else chosen


def in_tiles(kernels: Implementation) -> TypeGuard[TiledImplementation]:
    """Whether an implementation computes the contrastive loss in tiles."""
    return kernels is not reference


@cache
def on_device(device: str, wanted: str | None) -> Implementation:
    """The implementation for a type of device, or the one that `wanted`, the value of $PTMST_KERNELS, asks for."""
    if wanted is not None and wanted not in _CHOICES:
        raise OSError(f"{FORCE}: expected {', '.join(_CHOICES)}, found {wanted}; correct it or unset it")
    if wanted == "reference":
        return reference
    if wanted == "native" or (wanted is None and device == "cpu"):
        if device == "cpu" and native.library() is not None:
            return native
        if wanted is not None:
            elsewhere = f"tensors on the CPU, found them on {device}; move them, or unset it"
            lacks = f"the native library, which {native.lacks()}"
            raise OSError(f"{FORCE}=native: expected {lacks if device == 'cpu' else elsewhere}")
        return reference
    if wanted == "triton" or device == "cuda":
        runs, lacks = device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1", lacks_triton()
        if runs and not lacks:
            from ptmst.kernels import triton_kernels

            return triton_kernels
        if wanted is not None:
            elsewhere = f"tensors on CUDA, found them on {device}; move them, or set TRITON_INTERPRET=1 to interpret"
            raise OSError(f"{FORCE}=triton: expected {lacks if runs else elsewhere}")
    return reference


@cache
def lacks_triton() -> str:
    """What Triton needs and lacks here; empty where it can run. It compiles its launcher at the first launch."""
    if importlib.util.find_spec("triton") is None:
        return "triton, found none; pip install triton"
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang")):
        return "a C compiler for triton, found none; install gcc or set CC"
    return ""


def active() -> dict[str, str]:
    """Kernel → what runs it on this machine, and why."""
    return dict.fromkeys(KERNELS, f"{_on_cpu()}; {_on_cuda()}")


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


if TYPE_CHECKING:
    from ptmst.kernels import triton_kernels

    _REFERENCE: Implementation = reference
    _NATIVE: TiledImplementation = native
    _TRITON: TiledImplementation = triton_kernels
