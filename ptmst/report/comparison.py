"""Sets side by side: how far their recalls differ, what differs in their settings, what became of the same pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptmst import schema
from ptmst.config import DistillConfig
from ptmst.errors import InputError
from ptmst.evaluation.intervals import Interval
from ptmst.evaluation.nearest import Nearest
from ptmst.report.tables import Row, shown_name
from ptmst.support.progress import printable
from ptmst.synthetic.distilled_set import DistilledSet

_SHOWN = 6
"""Pairs that all sets began with, that are shown."""
_ABSENT = "–"


def compared(
    rows: Sequence[Row], shown: Sequence[Mapping[str, Any]], nearest: Sequence[Nearest | None]
) -> dict[str, Any] | None:
    """What the page's template takes of the distilled sets among `rows`; None for fewer than two.

    `shown` and `nearest` are of the rows with a set, in their order.
    """
    every = zip((row for row in rows if row.distilled is not None), shown, nearest, strict=True)
    sets = [(row, page, found) for row, page, found in every if not row.is_selected]
    if len(sets) < 2:
        return None
    names = [shown_name(row) for row, _, _ in sets]
    return {
        "names": names,
        "recalls": _recalls([row for row, _, _ in sets]),
        "settings": differing([row for row, _, _ in sets]),
        "pairs": _same_pairs([(page, found) for _, page, found in sets], [row.distilled for row, _, _ in sets]),
    }


def _recalls(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Each set's mean recall, and that less the first one's, paired by student where these began alike."""
    first, found = rows[0], []
    for row in rows:
        means, difference = [student["mean"] for student in row.scores.students], ""
        if row is not first and _are_paired(first, row):
            others = zip(means, first.scores.students, strict=True)
            difference = str(Interval.of([ours - theirs["mean"] for ours, theirs in others]))
        found.append({"name": shown_name(row), "mean": f"{Interval.of(means):.1f}", "difference": difference})
    return found


def _are_paired(one: Row, other: Row) -> bool:
    """Whether students began with the same weights, and were scored on the same pairs."""

    def begun(row: Row) -> tuple[Any, ...]:
        e, recorded = row.evaluation, row.scores.provenance
        encoder = recorded.get("encoder")
        return e["students"], e["seeds"], e["scored on"], e["split"], encoder, recorded.get("image_weights_sha256")

    return begun(one) == begun(other) and len(one.scores.students) == len(other.scores.students)


def differing(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Settings that are not the same for all sets and their students, each with its value for each."""
    flat = [dict(_settings(row)) for row in rows]
    names = dict.fromkeys(name for one in flat for name in one)
    found = [{"name": name, "values": [one.get(name, _ABSENT) for one in flat]} for name in names]
    return [one for one in found if len({*one["values"]}) > 1]


def _settings(row: Row) -> Iterator[tuple[str, str]]:
    made = row.distilled
    assert made is not None
    config = dict(made.provenance.get("config", {}))
    if "phases" in config:
        yield "phases", _phases(made)
        del config["phases"]
    yield from _flat("", config)
    yield "experts", str(made.provenance.get("store_sha256", _ABSENT))[:12]
    if made.settings:
        yield from _flat("", made.recipe.decisive())
    yield from _flat("evaluate", row.evaluation)


def _phases(made: DistilledSet) -> str:
    try:
        return " ".join(map(schema.phase_text, schema.from_json(DistillConfig, made.provenance["config"]).phases))
    except InputError:  # of another release
        return str(made.provenance["config"]["phases"])


def _flat(before: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{before}.{name}" if before else name, inner)
    else:
        yield before, printable("none" if value is None else str(value))


def _same_pairs(
    sets: Sequence[tuple[Mapping[str, Any], Nearest | None]], made: Sequence[DistilledSet | None]
) -> list[dict[str, Any]]:
    """Pairs that all sets began with: what they were, and what each set made of them; none of different data."""
    fingerprints = {one.recipe.fingerprints.data for one in made if one is not None and one.settings}
    starts = [None if found is None else found.starts for _, found in sets]
    if len(fingerprints) != 1 or any(one is None for one in starts):
        return []
    places = [{text: place for place, text in enumerate(one.texts)} for one in starts if one is not None]
    shared = [text for text in places[0] if all(text in of_set for of_set in places)]
    chosen = [shared[round(i * (len(shared) - 1) / max(1, _SHOWN - 1))] for i in range(min(_SHOWN, len(shared)))]
    rows = []
    for text in dict.fromkeys(chosen):
        became = [page["pairs"][of_set[text]] for (page, _), of_set in zip(sets, places, strict=True)]
        rows.append({"before": became[0]["before"], "became": became})
    return rows
