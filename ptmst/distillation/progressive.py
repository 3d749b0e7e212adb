"""Progressive phases: each begins where students of the phases before it stand, not where the expert was.

A student is rolled out from an expert's own θ⁰ on the sets so far, as inner steps take them. The next phase matches the
expert's later points from there (after PDD, arXiv 2310.06982, and SeqMatch, arXiv 2311.01570, for images alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ptmst.config import DistillConfig
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.distillation.draws import draw_batches
from ptmst.engine.recursion import OuterGradient
from ptmst.students.losses import student_loss
from ptmst.students.student import Student
from ptmst.support.devices import arithmetic, sent
from ptmst.support.seeds import generator
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.union import of_the_last, union
from ptmst.trajectories.spans import Span


class TakesOuterStep(Protocol):
    """What distillation asks of an outer step: `OuterStep`, or one that is studied."""

    @property
    def compiles(self) -> bool:
        """Whether the next call takes the time to compile."""

    def __call__(
        self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None
    ) -> OuterGradient:
        """The gradient of `OuterStep.__call__`."""


class OnUnion:
    """An outer step of a phase's pairs beside those of the phases before, which stay as they are."""

    def __init__(self, outer_step: TakesOuterStep, before: Sequence[SyntheticPairs]) -> None:
        self._outer_step, self._before = outer_step, list(before)

    @property
    def compiles(self) -> bool:
        """As of the step itself."""
        return self._outer_step.compiles

    def __call__(
        self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None
    ) -> OuterGradient:
        """The gradient in `pairs`; `batches` are of all of them, the phases before first."""
        found = self._outer_step(span, union([*self._before, pairs]), batches, mixing)
        return OuterGradient(found.loss, found.per_group, found.theta_final, of_the_last(found.grads, pairs))


def rollout_steps(config: DistillConfig) -> list[int]:
    """Student steps on each phase's pairs and those before it: inner steps for every epoch up to its end point."""
    ends = [0, *(phase.endpoint for phase in config.phases)]
    epochs = [max(0, end - before) for before, end in pairwise(ends)]
    return [config.inner_steps * count // config.expert_epochs for count in epochs]


class Standing:
    """Where students stand before a phase, by expert: rolled out again, on other batches, every so many outer steps."""

    def __init__(self, student: Student, before: Sequence[SyntheticPairs], config: DistillConfig) -> None:
        self._student, self._config, self._before = student, config, len(before)
        self._seen = [_seen(student, union(before[: number + 1])) for number in range(len(before))]
        self._found: dict[int, tuple[int, Tensor]] = {}

    def point(self, expert: int, base: Tensor, step: int) -> Tensor:
        """θ [P] of the student that began at an expert's θ⁰ = `base`, for an outer step."""
        draw = step // self._config.rollout_every
        if self._found.get(expert, (-1, None))[0] != draw:
            rng = generator(self._config.seed, "rollout", self._before, expert, draw)
            self._found[expert] = draw, self._rolled_out(base, rng)
        return self._found[expert][1]

    def _rolled_out(self, theta: Tensor, rng: torch.Generator) -> Tensor:
        config, layers, heads = self._config, self._student.layers, self._student.heads
        loss_of = student_loss(heads, config.loss, config.temperature)
        with torch.enable_grad(), arithmetic(config.precision):
            for pairs, steps in zip(self._seen, rollout_steps(config), strict=False):
                rate = layers.expand(pairs.lr)
                batches = draw_batches(len(pairs), config.batch_size, steps, rng) if steps else torch.empty(0, 0)
                for index in sent(batches, theta.device):
                    leaf = theta.detach().requires_grad_()
                    loss = loss_of(leaf, pairs.images[index], pairs.texts[index], pairs.similarity.batch(index))
                    (gradient,) = torch.autograd.grad(loss, leaf)
                    theta = theta - rate * gradient
        return theta


@torch.no_grad()
def _seen(student: Student, pairs: SyntheticPairs) -> SyntheticPairs:
    """As heads see them, where a tower is frozen."""
    images = torch.cat([student.features(some) for some in pairs.images.split(IMAGES_AT_ONCE)])
    return pairs.replace({**pairs.leaves(), "images": images})
