"""Other ways to carry the adjoint back, at the cost of the exact recursion or less, for comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.adjoint.cells import Side
from ptmst.engine.outer_step import OuterStep
from ptmst.engine.recursion import Adjoint, Carry, Damped, OuterGradient, Truncated
from ptmst.students.layers import LayerTable
from ptmst.support.seeds import generator
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.trajectories.spans import Span


class Moving:
    """An adjoint that needs the derivative in θ."""

    @property
    def moves(self) -> bool:
        return True


@dataclass(frozen=True)
class Window(Moving):
    """The exact recursion through the last `length` inner steps; before them λ stands still, or is zero."""

    length: int
    zero_before: bool = False

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        def carry(i: int, adjoint: Tensor, change: Tensor) -> Tensor:
            if steps - i < self.length:
                return adjoint + change
            return torch.zeros_like(adjoint) if self.zero_before else adjoint

        return carry


@dataclass(frozen=True)
class PerLayer(Moving):
    """Damped, with the clip on the norm of every layer instead of every group."""

    share: float
    clip: float

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        largest = self.clip * layers.layer_norms(last)

        def carry(i: int, adjoint: Tensor, change: Tensor) -> Tensor:
            moved = adjoint + self.share * change
            norm = layers.layer_norms(moved)
            return moved * layers.expand_layers(torch.where(norm > largest, largest / norm, 1.0))

        return carry


@dataclass(frozen=True)
class Bounded(Moving):
    """The largest share of each step that keeps ‖λ‖ of a group within its bound."""

    clip: float

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        largest = self.clip * layers.dot(last, last).sqrt()

        def carry(i: int, adjoint: Tensor, change: Tensor) -> Tensor:
            return adjoint + layers.scaled(change, bounded_share(layers.dot, adjoint, change, largest))

        return carry


@dataclass(frozen=True)
class Shares(Moving):
    """A share of its own for each group."""

    of_groups: tuple[float, ...]

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        shares = torch.tensor(self.of_groups).to(last)
        return lambda i, adjoint, change: adjoint + layers.scaled(change, shares)


@dataclass
class Watched:
    """Another adjoint, and ‖λ_i‖ [G] of its last recursion, from i = n on."""

    adjoint: Adjoint
    norms: list[Tensor] = field(default_factory=list)

    @property
    def moves(self) -> bool:
        return self.adjoint.moves

    def begin(self, layers: LayerTable, steps: int, last: Tensor) -> Carry:
        inner = self.adjoint.begin(layers, steps, last)
        self.norms = [layers.dot(last, last).sqrt()]

        def carry(i: int, adjoint: Tensor, change: Tensor) -> Tensor:
            moved = inner(i, adjoint, change)
            self.norms.append(layers.dot(moved, moved).sqrt())
            return moved

        return carry


def adjoint_of(side: Side) -> Adjoint:
    """The adjoint of a side of the study."""
    if side.recursion in ("window", "random-window"):
        assert side.steps is not None
        return Window(side.steps, zero_before=side.recursion == "random-window")
    if side.recursion == "per-layer":
        assert side.clip is not None
        return PerLayer(side.adjoint, side.clip)
    if side.recursion == "bounded":
        assert side.clip is not None
        return Bounded(side.clip)
    if side.texts is not None:
        return Shares((side.adjoint, side.texts))
    return Damped(side.adjoint, side.clip) if side.adjoint else Truncated()


class TimedStep:
    """An outer step of one side of the study; `step` shares what is compiled with other sides of its kind."""

    def __init__(self, step: OuterStep, side: Side, seed: int) -> None:
        self._watched = Watched(adjoint_of(side))
        self._step, self._side, self._seed = step.with_adjoint(self._watched), side, seed
        self.seconds: list[float] = []
        """CPU seconds of each call."""
        self.length = 0
        """Inner steps of the last call."""

    @property
    def compiles(self) -> bool:
        return self._step.compiles

    @property
    def norms(self) -> list[Tensor]:
        """‖λ_i‖ [G] of the last call's recursion, from i = n on; none where λ does not move."""
        return self._watched.norms

    def __call__(
        self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None
    ) -> OuterGradient:
        began = time.process_time()
        if self._side.recursion == "random-window":
            # RaT-BPTT: the loss is taken after a random number of steps, the last `steps` of which are differentiated.
            draw = generator(self._seed, "window", len(self.seconds))
            assert self._side.steps is not None
            last = torch.randint(self._side.steps, len(batches) + 1, (1,), generator=draw)
            batches = batches[: int(last)]
        self.length = len(batches)
        gradient = self._step(span, pairs, batches, mixing)
        self.seconds.append(time.process_time() - began)
        return gradient


def bounded_share(dot: Callable[[Tensor, Tensor], Tensor], adjoint: Tensor, change: Tensor, largest: Tensor) -> Tensor:
    """The largest share c in [0, 1] of each group for which ‖λ + c·change‖ ≤ largest [G]."""
    a, b, rest = dot(change, change), dot(adjoint, change), dot(adjoint, adjoint) - largest.square()
    # a c² + 2 b c + rest = 0; where λ is within its bound rest ≤ 0, and the greater root is the one.
    root = (-b + (b.square() - a * rest.clamp(max=0)).clamp(min=0).sqrt()) / a.clamp(min=1e-30)
    return root.clamp(0, 1)
