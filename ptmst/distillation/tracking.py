"""Recall on the way: a quick student every few outer steps, on val, by which the best leaves are kept.

The matching loss does not tell: it may fall while students get worse (docs/results.md).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from statistics import mean

import torch

from ptmst.config import DistillConfig, EvaluateConfig, Protocol
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.distillation.optimizer import OuterState
from ptmst.errors import Diverged
from ptmst.evaluation.scorer import CHOOSING, scorer_to_choose_by
from ptmst.evaluation.students import train_students
from ptmst.students.student import Student
from ptmst.support.devices import arithmetic
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.trajectories.store import TrajectoryStore

_LOG = logging.getLogger(__name__)
Draw = tuple[int | str, ...]
"""The seed key of a student."""
_TURNED = 3
"""Looks in a row below the best one, after which a run says that recall falls."""


class Tracker:
    """Mean recall on val, percent, of a few students that are trained as `ptmst evaluate` trains them."""

    PROTOCOL: Protocol = "as-matched"

    def __init__(
        self, config: DistillConfig, store: TrajectoryStore, device: torch.device, draws: Sequence[Draw] = ()
    ) -> None:
        """Of the students of `draws`, or of one of the run's own. Raises InputError for data without a split val."""
        self._config, self._store, self._device = config, store, device
        expected = "track_recall: expected a split {} to score students on"
        self._scorer = scorer_to_choose_by(store.recipe, device, expected)
        self._draws = tuple(draws) or ((config.seed, "tracked"),)
        self._students = [store.student(draw).to(device) for draw in self._draws]

    def recall(self, before: Sequence[SyntheticPairs], pairs: SyntheticPairs) -> float:
        """Of students that learn from a phase's pairs after those of the phases before; 0 of one that diverges."""
        made = DistilledSet(
            tuple(map(self._seen, [*before, pairs])), {"config": self._trained_as}, self._store.settings
        )
        both = zip(self._students, self._draws, strict=True)
        return mean(self._of_student(student, draw, made) for student, draw in both)

    def _of_student(self, student: Student, draw: Draw, made: DistilledSet) -> float:
        config = EvaluateConfig(students=1, protocol=self.PROTOCOL, device=self._config.device)
        thetas = student.flatten().to(self._device)[None]
        try:
            with torch.enable_grad(), arithmetic("fp32"):
                for _, trained in train_students(student, thetas, made, config, [draw]):
                    thetas = trained
            return self._scorer.score(student, thetas[0])["mean"]
        except Diverged:
            return 0.0

    @property
    def _trained_as(self) -> dict[str, object]:
        """What students take of a set's settings."""
        config = self._config
        names = ("loss", "temperature", "batch_size", "progressive")
        return {name: getattr(config, name) for name in names}

    @torch.no_grad()
    def _seen(self, pairs: SyntheticPairs) -> DistilledPhase:
        """A phase as heads see it: what is but a moment of a run is not kept in the cache."""
        if not pairs.in_pixels:
            return DistilledPhase(pairs, pairs.lr, ())
        images = torch.cat([self._students[0].features(some) for some in pairs.images.split(IMAGES_AT_ONCE)])
        return DistilledPhase(pairs.replace({**pairs.leaves(), "images": images}), pairs.lr, ())


def kept_step(state: OuterState, config: DistillConfig) -> int:
    """The outer step after which recall was best."""
    return min((int(state.recalls.argmax()) + 1) * config.track_recall, config.steps)


def recall_so_far(state: OuterState) -> str:
    """For a progress bar; empty before the first look."""
    return f", recall {state.recalls[-1]:.1f} (best {state.recalls.max():.1f})" if len(state.recalls) else ""


def tell_if_turned(number: int, state: OuterState, config: DistillConfig) -> None:
    """When recall has been lower than its best for some looks; and at the end, where the last leaves are not kept."""
    recalls, step = state.recalls, kept_step(state, config)
    if state.step == config.steps and step < state.step:
        _LOG.info(
            "distill: phase %d keeps the leaves after %d of %d outer steps, recall %.1f on %s; the last ones have %.1f",
            *(number + 1, step, config.steps, recalls.max(), CHOOSING, recalls[-1]),
        )
    elif len(recalls) - 1 - int(recalls.argmax()) == _TURNED:
        _LOG.info(
            "distill: phase %d, outer step %d: recall on %s was best after step %d, %.1f, and is %.1f now",
            *(number + 1, state.step, CHOOSING, step, recalls.max(), recalls[-1]),
        )
