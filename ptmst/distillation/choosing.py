"""Phases that are left open, chosen from the experts of a store: by a rule, or by short runs (docs/phases.md)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch

from ptmst import schema
from ptmst.config import DistillConfig, Phase
from ptmst.errors import InputError
from ptmst.evaluation.scorer import CHOOSING, scorer_to_choose_by
from ptmst.support import progress
from ptmst.support.devices import arithmetic
from ptmst.trajectories.store import TrajectoryStore

NEAR = 0.95
"""Of the experts' best recall: an end point that reaches it is no ceiling."""
_EXPERTS = 4
_HALVINGS = (4, 2)
"""What a trial has of the outer steps: a fourth of them, then a half; the better half of the trials goes on."""
_MOST_TRIED = 5
"""Of `nearby`."""
JUDGES = 3
"""Students that a short run of a search is scored by."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """A short run that was scored."""

    phases: tuple[Phase, ...]
    steps: int
    """Outer steps of each phase."""
    recall: float
    """Of quick students on val, percent."""


@dataclass(frozen=True)
class Choice:
    """Phases that were chosen, and why."""

    asked: str
    """What stood for them, such as auto:100."""
    phases: tuple[Phase, ...]
    recall: tuple[tuple[int, float], ...]
    """Kept epochs, and the recall of experts at each on val, percent."""
    trials: tuple[Trial, ...] = ()

    def applied(self, config: DistillConfig) -> DistillConfig:
        """`config` with these phases."""
        return replace(config, phases=self.phases)

    def to_json(self) -> dict[str, Any]:
        """For a set's provenance, and to go on from."""
        return schema.to_json(self)


def by_rule(recalls: Mapping[int, float], pairs: int, expert_epochs: int = 1) -> tuple[Phase, ...]:
    """One phase of all pairs to the first kept epoch at which the experts' recall is near its best, with spans that
    start in its first half.

    `recalls` are by kept epoch; a span of `expert_epochs` ends by the end point.
    """
    kept = {epoch: recall for epoch, recall in recalls.items() if epoch >= expert_epochs}
    best = max(kept.values())
    endpoint = min(epoch for epoch, recall in kept.items() if recall >= NEAR * best)
    return (_phase(pairs, endpoint, 1 / 2, expert_epochs),)


def nearby(recalls: Mapping[int, float], pairs: int, expert_epochs: int = 1) -> list[tuple[Phase, ...]]:
    """What a search tries: the rule's own choice first, then kept end points around it, then other start ranges."""
    (chosen,) = by_rule(recalls, pairs, expert_epochs)
    kept = sorted(epoch for epoch in recalls if epoch >= expert_epochs)
    here = kept.index(chosen.endpoint)
    around = [kept[i] for i in (here - 1, here + 1) if 0 <= i < len(kept)]
    phases = [
        chosen,
        *(_phase(pairs, endpoint, 1 / 2, expert_epochs) for endpoint in around),
        *(_phase(pairs, chosen.endpoint, share, expert_epochs) for share in (1 / 4, 3 / 4)),
    ]
    return [(phase,) for phase in dict.fromkeys(phases)]


def stand_in(config: DistillConfig, store: TrajectoryStore) -> DistillConfig:
    """`config` with phases in place of open ones that cost as much as those that will be chosen."""
    asked = config.open_phases
    return config if asked is None else replace(config, phases=(Phase(asked.pairs, store.endpoints[-1], (0, 1)),))


def most_of_search(config: DistillConfig) -> tuple[int, int]:
    """Outer steps of a search at most, beside those of the run, and students that judge them."""
    if config.open_phases is None or config.open_phases.by == "auto":
        return 0, 0
    rounds = _rounds(_MOST_TRIED, config)
    return sum(count * steps for count, steps in rounds), JUDGES * sum(count for count, _ in rounds)


def _rounds(candidates: int, config: DistillConfig) -> list[tuple[int, int]]:
    """How many are tried for how many outer steps."""
    counts = [-(-candidates // 2**number) for number in range(len(_HALVINGS))]
    return [(count, -(-config.steps // part)) for count, part in zip(counts, _HALVINGS, strict=True) if count > 1]


def _phase(pairs: int, endpoint: int, share: float, expert_epochs: int) -> Phase:
    """Spans start in a share of the way to the end point, and end by it."""
    last = min(round(share * endpoint + 1e-9), endpoint - expert_epochs + 1)
    return Phase(pairs, endpoint, (0, max(1, last)))


def expert_recalls(store: TrajectoryStore, device: torch.device) -> dict[int, float]:
    """Mean recall of experts on val by kept epoch, percent. Raises InputError for data without a split val."""
    expected, advice = "phases: expected a split {} to choose them on", "; name phases, such as 99:5:0-2"
    scorer = scorer_to_choose_by(store.recipe, device, expected, advice)
    student = store.student(("choosing",)).to(device)
    numbers = sorted(store.experts)[:_EXPERTS]
    found: dict[int, list[float]] = {epoch: [] for epoch in store.endpoints}
    with arithmetic("fp32"), progress.bar("phases", len(numbers)) as bar:
        for number in numbers:
            trajectory = store.expert(number).raw()
            for epoch in store.endpoints:
                found[epoch].append(scorer.score(student, trajectory.point(epoch).to(device))["mean"])
            bar.advance(f"expert {number}")
    return {epoch: mean(values) for epoch, values in found.items()}


def choose(
    config: DistillConfig,
    store: TrajectoryStore,
    device: torch.device,
    recall_of: Callable[[DistillConfig], float],
    known: Iterable[Trial] = (),
    keep: Callable[[Sequence[Trial]], object] = lambda trials: None,
) -> Choice:
    """The phases for a config whose phases are open.

    A search scores short runs by `recall_of`; trials that are `known` are not run again, and all so far are given to
    `keep` after each. Raises InputError for data without a split val, and where no kept epoch can be an end point.
    """
    asked = config.open_phases
    assert asked is not None
    _refuse_unreachable(config, store)
    every = expert_recalls(store, device)
    recalls, tried = {k: every[k] for k in _reachable(config, store.endpoints)}, list(known)
    if asked.by == "auto":
        phases = by_rule(recalls, asked.pairs, config.expert_epochs)
    else:
        phases = _searched(config, nearby(recalls, asked.pairs, config.expert_epochs), recall_of, tried, keep)
    choice = Choice(schema.phase_text(asked), phases, tuple(sorted(recalls.items())), tuple(tried))
    best = max(recalls, key=lambda epoch: recalls[epoch])
    ends = {phase.endpoint: f"{recalls[phase.endpoint]:.1f} at epoch {phase.endpoint}" for phase in choice.phases}
    _LOG.info(
        "distill: phases %s, chosen by %s; recall of experts on %s is %s, at best %.1f at epoch %d",
        " ".join(map(schema.phase_text, choice.phases)),
        f"{len(choice.trials)} short runs" if choice.trials else "a rule",
        *(CHOOSING, " and ".join(ends.values()), recalls[best], best),
    )
    return choice


def _reachable(config: DistillConfig, endpoints: Sequence[int]) -> list[int]:
    """Kept epochs that a phase may end at: raw trajectories need all epochs up to there."""
    kept = {*endpoints}
    return [k for k in endpoints if config.trajectory == "shortcut" or kept >= {*range(1, k + 1)}]


def _refuse_unreachable(config: DistillConfig, store: TrajectoryStore) -> None:
    ends = _reachable(config, store.endpoints)
    if not ends:
        kept = ", ".join(map(str, store.endpoints))
        raise InputError(
            f"phases: expected every epoch from the first to be kept in {store.path}, as raw trajectories need them, "
            f"found {kept}; teach with --endpoints all"
        )
    if max(ends) < config.expert_epochs:
        raise InputError(
            f"expert_epochs: expected spans within the kept epochs, up to {max(ends)}, found {config.expert_epochs}; "
            "lower it"
        )


def _searched(
    config: DistillConfig,
    candidates: list[tuple[Phase, ...]],
    recall_of: Callable[[DistillConfig], float],
    tried: list[Trial],
    keep: Callable[[Sequence[Trial]], object],
) -> tuple[Phase, ...]:
    """The best by successive halving; of equals the first. Adds to `tried`."""
    if len(candidates) == 1:
        _LOG.info("distill: nothing to search: there is no other end point or start range")
        return candidates[0]
    rounds = _rounds(len(candidates), config)
    _LOG.info(
        "distill: a search of %s, %s outer steps in all before the %s of the run",
        " and ".join(f"{count} trials of {steps:,}" for count, steps in rounds),
        f"{sum(count * steps for count, steps in rounds):,}",
        f"{config.steps:,}",
    )
    for _, steps in rounds:
        known = {trial.phases: trial.recall for trial in tried if trial.steps == steps}
        for phases in candidates:
            if phases not in known:
                known[phases] = recall_of(replace(config, phases=phases, steps=steps, track_recall=0))
                tried.append(Trial(phases, steps, known[phases]))
                keep(tried)
        ranked = sorted(candidates, key=lambda phases: -known[phases])
        candidates = ranked[: -(-len(candidates) // 2)]
    return candidates[0]
