"""Three sentences on what a diagnosis means, each by a rule that is written down here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from ptmst.diagnosis.rollouts import Reached
from ptmst.diagnosis.signals import LEAVES, Signal
from ptmst.distillation.choosing import NEAR

CALMER = 0.1
"""Cosine that neighboring start points have to agree better by, for a shortcut to be called calmer."""
ALIKE = 0.5
"""Cosine of start points from which on late ones tell a set the same as early ones."""
FAR = 0.5
"""Distance to where a phase begins, over that from θ⁰: above it students of the phase before are not there."""


@dataclass(frozen=True)
class Findings:
    """What was found, in numbers, and what follows. None is what cannot be told."""

    enough: int | None
    """The first kept epoch whose recall is near the best, of more than one."""
    best: int
    """The kept epoch with the best recall."""
    neighbors: dict[str, float]
    """By trajectory, the mean cosine between the gradients of neighboring start points, where there are any."""
    fading: float | None
    """The signal-to-noise ratio of the last start point over that of the first, along the shortcut."""
    sentences: tuple[str, str, str]


def findings(
    recalls: Mapping[int, float],
    signals: Mapping[str, Mapping[int, Mapping[str, Signal]]],
    endpoint: int,
    rolled_out: Sequence[Reached] = (),
    lost: int = 0,
    progressive: bool = False,
) -> Findings:
    """From the mean recall of the experts by kept epoch, signals by trajectory (raw, where it is kept, and shortcut),
    start point and leaf, the shortcut's end point, and the students of a set, if there is one, of which some may be
    `lost`."""
    kept = sorted(t for t in recalls if t)
    best = max(kept, key=lambda t: recalls[t])
    enough = next(t for t in kept if recalls[t] >= NEAR * recalls[best]) if len(kept) > 1 else None
    known = {kind: _neighbors(by_start) for kind, by_start in signals.items()}
    neighbors = {kind: value for kind, value in known.items() if value is not None}
    line = signals["shortcut"]
    first, last = min(line), max(line)
    fading = _snr(line[last]) / _snr(line[first]) if first < last and _snr(line[first]) > 0 else None
    of_students = bool(rolled_out or lost)
    sentences = (
        _on_ceilings(recalls, kept, enough, best),
        _on_shortcuts(neighbors, endpoint),
        _on_students(rolled_out, lost, progressive) if of_students else _on_fading(fading, first, last),
    )
    return Findings(enough, best, neighbors, fading, sentences)


def _neighbors(by_start: Mapping[int, Mapping[str, Signal]]) -> float | None:
    values = [signal.neighbors for by_leaf in by_start.values() for signal in by_leaf.values()]
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _snr(by_leaf: Mapping[str, Signal]) -> float:
    return mean(by_leaf[leaf].snr for leaf in LEAVES)


def _on_ceilings(recalls: Mapping[int, float], kept: Sequence[int], enough: int | None, best: int) -> str:
    if enough is None:
        return (
            f"Whether end points are a ceiling cannot be told from one kept epoch: at {best} recall on val is "
            f"{recalls[best]:.1f}; teach with --endpoints all."
        )
    if enough == kept[0]:
        return (
            f"End points are no ceiling: the experts' recall on val is near its best, {recalls[best]:.1f}, at epoch "
            f"{enough} already, the first that is kept."
        )
    lower = max(t for t in kept if t < enough)
    return (
        f"End points below {enough} are a ceiling: a student that followed the line to {lower} to its end would reach "
        f"{recalls[lower]:.1f} on val, to {enough} {recalls[enough]:.1f}, to {best}, the best, {recalls[best]:.1f}."
    )


def _on_shortcuts(neighbors: Mapping[str, float], endpoint: int) -> str:
    if "shortcut" not in neighbors:
        return f"Whether the shortcut calms what a set is told cannot be told: up to epoch {endpoint} spans start once."
    line = neighbors["shortcut"]
    if "raw" not in neighbors:
        return (
            f"Gradients of neighboring start points agree by a cosine of {line:.2f} along the shortcut to {endpoint}; "
            "raw epochs are not kept to compare."
        )
    raw = neighbors["raw"]
    numbers = f"neighboring start points agree by a cosine of {line:.2f} along it, and of {raw:.2f} along raw epochs"
    if line - raw >= CALMER:
        return f"The shortcut to {endpoint} calms what a set is told: gradients of {numbers}."
    return f"The shortcut to {endpoint} calms nothing: gradients of {numbers}."


def _on_fading(fading: float | None, first: int, last: int) -> str:
    if fading is None:
        return (
            f"Whether late start points tell a set less cannot be told: there is no signal at epoch {first} to compare."
        )
    ratio = f"from epoch {last} the gradient's signal-to-noise ratio is {fading:.2f} of that from epoch {first}"
    if fading < ALIKE:
        return f"Late start points tell a set less: {ratio}, so keep start ranges early."
    return f"Late start points tell a set as much as early ones: {ratio}."


def _on_students(rolled_out: Sequence[Reached], lost: int, progressive: bool) -> str:
    without = f" {lost} diverged." if lost else ""
    if not rolled_out:
        return f"Students of the set diverge, all {lost} of them: its η is too large."
    gaps = [(one.phase, one.gap) for one in rolled_out if one.gap is not None]
    end = rolled_out[-1]
    stand = f"{mean(end.along):.2f} of the way along the line and {mean(end.off):.2f} of its length off it"
    if not gaps:
        built = "Phases begin where students stand. " if progressive else ""
        return f"{built}Students of the set end {stand}, at a recall of {end.point.recall:.1f} on val.{without}"
    phase, gap = max(gaps, key=lambda one: mean(one[1].distance))
    distance = mean(gap.distance)
    told = f"{distance:.2f} of the way from θ⁰ away from epoch {gap.start}, where phase {phase + 1} begins"
    if distance > FAR:
        return f"Phases do not meet: students of phase {phase} end {told}; at the end they are {stand}.{without}"
    return f"Phases meet: students of phase {phase} end {told}; at the end they are {stand}.{without}"
