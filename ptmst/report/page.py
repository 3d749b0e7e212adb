"""One HTML page about distilled sets: what they reach, what pairs became, how it was measured, settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ptmst.data.credits import Credits
from ptmst.evaluation.nearest import RealPictures
from ptmst.report.comparison import compared
from ptmst.report.examples import shown_examples
from ptmst.report.figures import COLORS, figure, svg
from ptmst.report.sets import Limits, nearest_pictures, shown_set
from ptmst.report.tables import HEADINGS, Row, fraction_of_full, full_of, lines, shown_name, what_numbers_are
from ptmst.report.templates import text, write_page
from ptmst.retrieval.examples import Example
from ptmst.synthetic.distilled_set import DistilledSet

_TEMPLATE = "page.html.jinja"


def write_report(
    out: Path,
    title: str,
    rows: Sequence[Row],
    command: str | None = None,
    *,
    root: Path | None = None,
    nearest: bool = True,
    examples: Iterable[Example] = (),
) -> None:
    """Write one self-contained HTML page. Raises InputError where `out` cannot be written.

    With `nearest` pairs have beside them what they began as and the nearest real picture, for which all training
    pictures are read; `root` is their folder, where it has moved. Where they are not there, the page says so.
    `examples` are what students find.
    """
    rows = by_recall(rows)
    head, body = _table(rows)
    real = RealPictures(root) if nearest else None
    sets = [(row, row.distilled) for row in rows if row.distilled is not None]
    limits = Limits.of(distilled for _, distilled in sets)
    found = [nearest_pictures(distilled, real) for _, distilled in sets]
    shown = [
        {"score": _score(row, rows), **shown_set(shown_name(row), distilled, *looked, limits)}
        for (row, distilled), looked in zip(sets, found, strict=True)
    ]
    write_page(
        out,
        _TEMPLATE,
        title,
        command,
        made_by=made_by(),
        headline=headline(rows),
        note=what_numbers_are(rows),
        head=head,
        body=body,
        best=shown_name(rows[0]) if _is_method(rows[0]) else None,
        recall_figure=_recall_figure(rows),
        facts=facts(rows),
        examples=shown_examples(examples),
        compared=compared(rows, shown, [nearest for nearest, _ in found]),
        sets=shown,
        credits=_credits([distilled for _, distilled in sets]),
        settings=[{"name": shown_name(row), "json": _pretty(row)} for row in rows],
    )


def made_by() -> str:
    """What a page says of its origin: by which template it was made."""
    return f"ptmst, template {hashlib.sha256((text(_TEMPLATE) + text('style.css')).encode()).hexdigest()[:12]}"


def by_recall(rows: Sequence[Row]) -> list[Row]:
    """Distilled sets and real pairs with the best mean recall first, then all real pairs, which they are held to."""
    return sorted(rows, key=lambda row: (row.is_full, -row.scores.mean()))


def _is_method(row: Row) -> bool:
    return not row.is_full and not row.is_selected


def headline(rows: Sequence[Row]) -> str | None:
    """What the best distilled set reaches, in a sentence, of rows by recall; none where there is no such set."""
    best = next((row for row in rows if row.distilled is not None and _is_method(row)), None)
    if best is None:
        return None
    said = f"{shown_name(best)}: {best.pairs:,} synthetic pairs teach a mean recall of {best.scores.mean():.1f} %"
    full = full_of(best, rows)
    if full is not None and (share := fraction_of_full(best, rows)) is not None:
        said += f", {share:.0f} % of the {full.scores.mean():.1f} % that all {full.pairs:,} real pairs teach"
    selected = [row for row in rows if row.is_selected and row.pairs == best.pairs]
    real = next((row for row in selected if row.run == best.run), None)
    return said + (f"; {shown_name(real)} teach {real.scores.mean():.1f} %." if real is not None else ".")


def _score(row: Row, rows: Sequence[Row]) -> str:
    share = fraction_of_full(row, rows)
    of_all = "" if share is None or row.is_full else f", {share:.0f} % of all real pairs"
    return f"{row.scores.mean():.1f} ± {row.scores.std():.1f} mean recall{of_all}"


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The recall table with the mean in its second column, and its share of all behind it."""
    head, body = lines(rows, "±")
    first = [head.index(name) for name in (head[0], HEADINGS["mean"], "of all", "pairs") if name in head]
    order = [*first, *(column for column in range(len(head)) if column not in first)]
    return [head[column] for column in order], [[line[column] for column in order] for line in body]


def facts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """How students were made and scored: what all rows have in common once, else for each row."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for name, value in row.evaluation.items():
            found.setdefault(name, {}).setdefault(str(value), []).append(shown_name(row))
    shown = []
    for name, by_value in found.items():
        named = sum(map(len, by_value.values()))
        alike = len(by_value) == 1 and named == len(rows)
        values = [value if alike else f"{value} ({', '.join(of)})" for value, of in by_value.items()]
        shown.append((name, "; ".join(values)))
    return shown


def _credits(sets: Sequence[DistilledSet]) -> list[Credits]:
    """Those of the data that the shown sets were made of, each once."""
    recipes = [made.recipe for made in sets]
    return list(dict.fromkeys(recipe.credits for recipe in recipes if recipe.credits is not None))


def _pretty(row: Row) -> str:
    shown: dict[str, Any] = {"evaluation": row.scores.provenance}
    if row.distilled is not None:
        shown |= {"set": row.distilled.provenance, "data and encoder": row.distilled.recipe.decisive()}
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _recall_figure(rows: Sequence[Row]) -> str:
    """A bar for each row, with its number; a line where all real pairs are."""
    drawn = figure(7, 0.6 + 0.42 * len(rows))
    axes = drawn.subplots()
    places, means = range(len(rows)), [row.scores.mean() for row in rows]
    colors = ["#999999" if row.is_full or not _is_method(row) else COLORS[0] for row in rows]
    axes.barh(places, means, xerr=[row.scores.std() for row in rows], color=colors, height=0.6, ecolor="#222222")
    for place, (row, value) in enumerate(zip(rows, means, strict=True)):
        axes.annotate(
            f"{value:.1f}",
            (value + row.scores.std(), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    full = [row.scores.mean() for row in rows if row.is_full]
    if len(full) == 1:
        axes.axvline(full[0], color="#222222", linewidth=0.8, linestyle=":")
    axes.set_yticks(places, labels=[shown_name(row) for row in rows])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a name with $ in it is no formula
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean recall, percent")
    return svg(drawn)
