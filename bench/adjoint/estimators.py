"""Other ways to carry the adjoint back, at the cost of the exact recursion or less, for comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.adjoint.cells import TRUNCATED, Side
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.students.student import Student
from ptmst.support.seeds import generator
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.trajectories.spans import Span


class TimedStep(OuterStep):
    """An outer step that any side of the study may use, so that it compiles once; CPU seconds of each call are kept."""

    def __init__(self, student: Student, **settings: Any) -> None:
        super().__init__(student, **settings)
        self.begin(Side(adjoint=settings["adjoint"], clip=settings["adjoint_clip"]), 0)

    def begin(self, side: Side, seed: int) -> None:
        """Serve another side from here on."""
        if (side != TRUNCATED) != (self._adjoint > 0):
            raise ValueError(
                f"expected a side that {'needs' if self._adjoint else 'lacks'} θ's derivative, found {side}"
            )
        self._adjoint, self._clip = (side.adjoint if side.texts is None else 1.0), side.clip
        self.side, self._seed = side, seed
        self.seconds: list[float] = []
        self.norms: list[Tensor] = []
        """‖λ_i‖ [G] of the recursion, from i = n."""

    def __call__(
        self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None
    ) -> OuterGradient:
        began = time.process_time()
        if self.side.recursion == "random-window":
            # RaT-BPTT: the loss is taken after a random number of steps, the last `steps` of which are differentiated.
            draw = generator(self._seed, "window", len(self.seconds))
            assert self.side.steps is not None
            last = torch.randint(self.side.steps, len(batches) + 1, (1,), generator=draw)
            batches = batches[: int(last)]
        self.length = len(batches)
        self.norms = []
        found = super().__call__(span, pairs, batches, mixing)
        self.seconds.append(time.process_time() - began)
        return found

    def carry(self, i: int, lam: Tensor, turned: Tensor, first: Tensor) -> Tensor:
        found = self._carried(i, lam, turned, first)
        self.norms += [*([] if self.norms else [first]), self._student.layers.dot(found, found).sqrt()]
        return found

    def _carried(self, i: int, lam: Tensor, turned: Tensor, first: Tensor) -> Tensor:
        side, layers = self.side, self._student.layers
        if side.recursion in ("window", "random-window"):
            assert side.steps is not None
            if self.length - i < side.steps:
                return lam + turned
            # Before a window λ stands still, as in the truncated form; RaT-BPTT has no gradient there.
            return lam if side.recursion == "window" else torch.zeros_like(lam)
        if side.recursion == "per-layer":
            assert side.clip is not None
            if i == self.length - 1:
                self._first = layers.layer_norms(lam)
            lam = lam + side.adjoint * turned
            largest, norm = side.clip * self._first, layers.layer_norms(lam)
            return lam * layers.expand_layers(torch.where(norm > largest, largest / norm, 1.0))
        if side.recursion == "bounded":
            assert side.clip is not None
            return lam + layers.scaled(turned, bounded_share(layers.dot, lam, turned, side.clip * first))
        if side.texts is not None:
            return lam + layers.scaled(turned, torch.tensor([side.adjoint, side.texts]).to(lam))
        return super().carry(i, lam, turned, first)


def bounded_share(dot: Callable[[Tensor, Tensor], Tensor], lam: Tensor, turned: Tensor, largest: Tensor) -> Tensor:
    """The largest share c in [0, 1] of each group for which ‖λ + c·turned‖ ≤ largest [G]."""
    a, b, rest = dot(turned, turned), dot(lam, turned), dot(lam, lam) - largest.square()
    # a c² + 2 b c + rest = 0; where λ is within its bound rest ≤ 0, and the greater root is the one.
    root = (-b + (b.square() - a * rest.clamp(max=0)).clamp(min=0).sqrt()) / a.clamp(min=1e-30)
    return root.clamp(0, 1)
