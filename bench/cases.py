"""What is measured on a CPU, as data: cases of the outer step and of the kernels; gpu/parts.py has those of a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ptmst.config import Keep, LossKind

Gradient = Literal["truncated", "exact"]


@dataclass(frozen=True)
class Case:
    """One outer step: `steps` inner steps of `batch` pairs at `size` pixels, out of `pairs` synthetic ones."""

    tower: str
    """timm's name, or convnet-WIDTH."""
    size: int
    batch: int
    steps: int = 8
    pairs: int = 100
    gradient: Gradient = "truncated"
    frozen: bool = False
    """The tower is frozen, and heads are trained."""

    @property
    def adjoint(self) -> float:
        return 0.0 if self.gradient == "truncated" else 1.0

    def described(self) -> dict[str, Any]:
        """The entries of a row that describe it."""
        return {
            "case": str(self),
            "tower": self.tower,
            "size": self.size,
            "batch": self.batch,
            "inner steps": self.steps,
            "pairs": self.pairs,
            "gradient": self.gradient,
            "frozen": self.frozen,
        }

    def __str__(self) -> str:
        frozen = "-frozen" if self.frozen else ""
        return f"{self.tower}{frozen}-{self.size}px-B{self.batch}-n{self.steps}-N{self.pairs}-{self.gradient}"


@dataclass(frozen=True)
class Implementation:
    """How an outer step is computed."""

    name: str
    compiled: bool = False
    keep: Keep = "path"
    general: bool = False
    """A frozen tower takes the general path, like a trained one."""

    def __str__(self) -> str:
        return self.name


OURS = (
    Implementation("ptmst eager"),
    Implementation("ptmst eager, primals kept", keep="primals"),
    Implementation("ptmst compiled", compiled=True),
    Implementation("ptmst compiled, primals kept", compiled=True, keep="primals"),
)
GENERAL = (
    Implementation("ptmst eager, general path", general=True),
    Implementation("ptmst compiled, general path", True, general=True),
)
"""Also measured for a frozen tower."""
CLEAN, PUBLISHED = "double backward", "published loop"
"""Opponents (baselines.py): written cleanly, and with the waste of the published loop."""

FORWARDS: dict[tuple[Gradient, Keep], int] = {
    ("truncated", "path"): 9,
    ("truncated", "primals"): 7,
    ("exact", "path"): 11,
    ("exact", "primals"): 9,
}
"""Operations of an inner step and its gradient, in forward passes of the tower (docs/method.md §4): an inner step is
3, the gradient along a direction 6 or, on stored primals, 4, and the adjoint's weight gradients 2 more."""

_TOWERS = ("nfnet_l0", "resnet50_gn", "vit_tiny_patch16_224")
_GRADIENTS: tuple[Gradient, ...] = ("truncated", "exact")
OUTER = (
    Case("nfnet_l0", 96, 8),
    Case("nfnet_l0", 96, 8, frozen=True),
    *(Case(t, 96, 8, steps=4, gradient=g) for t in _TOWERS for g in _GRADIENTS if (t, g) != ("nfnet_l0", "truncated")),
)
_SMALL = Case("convnet-64", 32, 25)
GROWTH: dict[str, tuple[Case, ...]] = {
    "inner steps": tuple(replace(_SMALL, steps=n) for n in (2, 4, 8, 16, 32)),
    "batch": tuple(replace(_SMALL, batch=b) for b in (5, 10, 25, 50, 100)),
    "parameters": tuple(replace(_SMALL, tower=f"convnet-{w}") for w in (16, 32, 64, 128, 256)),
    "synthetic pairs": tuple(replace(_SMALL, pairs=n) for n in (100, 200, 500, 1000, 2000, 5000)),
    "resolution": tuple(replace(_SMALL, size=s) for s in (16, 32, 64, 96, 128)),
}
"""How cost grows along one axis, the rest as in the demo."""


# Kernels

PLAIN, COMPILED, OPEN_CLIP, OURS_KERNEL = "plain torch", "torch.compile", "open_clip", "ptmst"
"""Who runs a kernel. ptmst: native C++ on the CPU, Triton on CUDA."""

PLAIN_PROCESS, INTO, KEPT = "plain process", "plain process, out=", "ptmst.keep_freed_memory()"
"""Whose memory the results of flat kernels are."""

_BYTES = {"shortcut_point": 10, "matching_residual": 14, "vector_residual": 16, "flat_sgd_": 12, "sgd_ema_": 28}
"""Read and written, a parameter."""


@dataclass(frozen=True)
class Flat:
    """A kernel over a flat vector."""

    kernel: str
    parameters: int

    @property
    def bytes(self) -> int:
        return _BYTES[self.kernel] * self.parameters

    def layer_sizes(self) -> tuple[int, ...]:
        """100 layers like a tower's: matrices that grow with depth, each with a vector of its width."""
        shares = [1 + i for i in range(50)]
        left = self.parameters - 50 * 250
        matrices = [left * share // sum(shares) for share in shares]
        matrices[-1] += left - sum(matrices)
        return tuple(size for matrix in matrices for size in (matrix, 250))

    def __str__(self) -> str:
        return f"{self.kernel}-{self.parameters // 1_000_000}M"


FLAT = tuple(Flat(kernel, millions * 1_000_000) for millions in (1, 40, 160) for kernel in _BYTES)


@dataclass(frozen=True)
class Contrastive:
    """Value and gradients of a contrastive loss between `pairs` embeddings of `width`."""

    kind: LossKind
    pairs: int
    labels: Literal["identity", "dense"] = "identity"
    width: int = 1024

    def needs(self) -> int:
        """Approximate bytes of a loss that holds all logits: seven matrices."""
        return 7 * 4 * self.pairs**2

    def __str__(self) -> str:
        return f"{self.kind}-{self.labels}-N{self.pairs}"


CONTRASTIVE = (
    *(Contrastive("infonce", n) for n in (128, 512, 2048, 8192, 32768)),
    *(Contrastive("wbce", n) for n in (128, 512, 2048)),
    *(Contrastive("wbce", n, labels="dense") for n in (128, 2048)),
    *(Contrastive(kind, 512) for kind in ("siglip", "kl", "cwcl", "bce", "mse")),
)
