"""Progressive phases: each begins where students of the phases before it stand, not where the expert was.

A student is rolled out from an expert's own θ⁰ on the sets so far, by inner steps. The next phase matches the expert's
later points from there (after PDD, arXiv 2310.06982, and SeqMatch, arXiv 2311.01570, for images alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ptmst.config import DistillConfig
from ptmst.distillation.draws import draw_batches, draw_mixing
from ptmst.engine.outer_step import OuterStep, TakesOuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.support.devices import sent
from ptmst.support.seeds import generator
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.union import of_the_last, union
from ptmst.trajectories.spans import Span


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
    """Inner steps on the pairs up to each phase but the last, before the next one begins: as many as are matched with
    the expert's epochs from where the phase begins to where the next one does."""
    spans = pairwise(config.begins)
    return [config.inner_steps * (later - earlier) // config.expert_epochs for earlier, later in spans]


class Standing:
    """Where students stand before a phase, by expert: rolled out again, on other batches, every so many outer steps."""

    def __init__(self, outer_step: OuterStep, before: Sequence[SyntheticPairs], config: DistillConfig) -> None:
        self._outer_step, self._config = outer_step, config
        self._phases = [union(before[: number + 1]) for number in range(len(before))]
        self._found: dict[int, tuple[int, Tensor]] = {}

    def point(self, expert: int, base: Tensor, step: int) -> Tensor:
        """θ [P] of the student that began at an expert's θ⁰ = `base`, for an outer step; on the device of `base`."""
        draw = step // self._config.rollout_every
        if self._found.get(expert, (-1, None))[0] != draw:
            rng = generator(self._config.seed, "rollout", len(self._phases), expert, draw)
            # On the host, since there may be more experts than a device holds.
            self._found[expert] = draw, self._rolled_out(base, rng).cpu()
        return sent(self._found[expert][1], base.device)

    def _rolled_out(self, theta: Tensor, rng: torch.Generator) -> Tensor:
        config = self._config
        for pairs, steps in zip(self._phases, rollout_steps(config), strict=False):
            batches = sent(draw_batches(len(pairs), config.batch_size, steps, rng), theta.device)
            mixing = (
                sent(draw_mixing(config.batch_size, steps, config.blend, rng), theta.device) if config.blend else None
            )
            theta = self._outer_step.walk(theta, pairs, batches, mixing)
        return theta
