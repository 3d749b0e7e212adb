"""One HTML page about distilled sets: pictures, loss curves, recalls, settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

from einops import rearrange
from PIL import Image
from torch import Tensor

from ptmst.config import Selection
from ptmst.data.credits import Credits
from ptmst.errors import InputError
from ptmst.evaluation.nearest import Nearest, RealPictures
from ptmst.report.figures import COLORS, figure, svg
from ptmst.report.tables import Row, lines, note, shown_name
from ptmst.report.templates import picture_address, text, write_page
from ptmst.support import progress
from ptmst.synthetic.distilled_set import DistilledSet

_TEMPLATE = "page.html.jinja"
_THUMBNAIL = 48
"""Most pixels of a side of a real picture."""


def write_report(
    out: Path,
    title: str,
    rows: Sequence[Row],
    command: str | None = None,
    *,
    root: Path | None = None,
    nearest: bool = True,
) -> None:
    """Write one self-contained HTML page. Raises InputError where `out` cannot be written.

    With `nearest` each distilled picture has the nearest real one beside it, for which all training pictures are read;
    `root` is their folder, where it has moved. Where they are not there, the page says so.
    """
    head, body = lines(rows, "±")
    real = RealPictures(root) if nearest else None
    write_page(
        out,
        _TEMPLATE,
        title,
        command,
        made_by=made_by(),
        note=note(rows),
        head=head,
        body=body,
        recall_figure=_recall_figure(rows),
        sets=[_set(row, real) for row in rows if row.distilled is not None],
        credits=_credits(rows),
        settings=[{"name": shown_name(row), "json": _pretty(row)} for row in rows],
    )


def made_by() -> str:
    """What a page says of its origin: by which template it was made."""
    return f"ptmst, template {hashlib.sha256((text(_TEMPLATE) + text('style.css')).encode()).hexdigest()[:12]}"


def _credits(rows: Sequence[Row]) -> list[Credits]:
    """Those of the data that the shown sets were made of, each once."""
    recipes = (row.distilled.recipe for row in rows if row.distilled is not None)
    return list(dict.fromkeys(recipe.credits for recipe in recipes if recipe.credits is not None))


def _pretty(row: Row) -> str:
    shown: dict[str, Any] = {"evaluation": row.scores.provenance}
    if row.distilled is not None:
        shown |= {"set": row.distilled.provenance, "data and encoder": row.distilled.recipe.decisive()}
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _set(row: Row, real: RealPictures | None) -> dict[str, Any]:
    assert row.distilled is not None
    neighbors, told = _neighbors(row.distilled, real)
    phases, first = [], 0
    for number, phase in enumerate(row.distilled.phases):
        beside = neighbors[first : first + len(phase.pairs)]
        pictures: Iterable[str | None] = [None] * len(phase.pairs)
        if row.distilled.in_pixels:
            pictures = map(_picture, row.distilled.pixels(number))
        shown = list(zip(pictures, map(progress.printable, phase.captions), beside, strict=True))
        phases.append({"count": len(phase.pairs), "pictures": shown})
        first += len(phase.pairs)
    return {"name": shown_name(row), "curves": _curves(row.distilled), "phases": phases, "told": told}


def _neighbors(distilled: DistilledSet, real: RealPictures | None) -> tuple[list[dict[str, str] | None], str]:
    """Of each picture its nearest real one, and what they are together or why there are none."""
    nothing: list[dict[str, str] | None] = [None] * distilled.num_pairs
    of_set = "" if distilled.in_pixels else f"{_NO_PICTURES} "
    # Selected pictures are real themselves.
    if real is None or distilled.provenance.get("method") in get_args(Selection):
        return nothing, of_set
    try:
        found = real.nearest_to(distilled)
    except InputError as error:
        return nothing, progress.printable(f"{of_set}Without the nearest real pictures: {error}.")
    shown = zip(found.pictures, found.captions, found.distance.tolist(), strict=True)
    return [
        {
            "picture": _picture(image, _THUMBNAIL if distilled.in_pixels else None),
            "caption": progress.printable(text),
            "distance": f"{distance:.{1 if distilled.in_pixels else 3}f}",
        }
        for image, text, distance in shown
    ], of_set + _told(found, distilled.in_pixels)


_NO_PICTURES = (
    "This set has no pictures, but what its frozen tower would see in them, and trains heads on that tower alone."
)


def _told(found: Nearest, in_pixels: bool) -> str:
    """Distances of pixels in whole levels, those of features in thousandths."""
    places = 1 if in_pixels else 3
    if in_pixels:
        text = (
            "Below each picture the nearest real one and its distance, the root mean square difference of their "
            f"pixels, 0 … 255: {_median(found.distance, places)} in the median."
        )
    else:
        text = (
            "Shown is the real picture with the nearest features and its distance, 1 − their cosine: "
            f"{_median(found.distance, places)} in the median."
        )
    if (starts := found.starts) is None:
        return text
    same, count = int(starts.nearest.sum()), len(found.distance)
    return (
        f"{text} For {same} of {count} it is the one that the picture began as. From there it moved by "
        f"{_median(starts.distance, places)} in the median, while the nearest other real picture was "
        f"{_median(starts.to_another, places)} away."
    )


def _median(values: Tensor, places: int) -> str:
    return f"{median(values.tolist()):.{places}f}"


def _picture(pixels: Tensor, most: int | None = None) -> str:
    """An image uint8 [3, H, W] as a data address, made smaller where a side has more than `most` pixels."""
    return picture_address(Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy()), most)


def _recall_figure(rows: Sequence[Row]) -> str:
    drawn = figure(7, 0.6 + 0.42 * len(rows))
    axes = drawn.subplots()
    places, means = range(len(rows)), [row.scores.mean() for row in rows]
    axes.barh(places, means, xerr=[row.scores.std() for row in rows], color="#4477aa", height=0.6, ecolor="#222222")
    axes.set_yticks(places, labels=[shown_name(row) for row in rows])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a name with $ in it is no formula
    axes.invert_yaxis()
    axes.set_xlabel("mean recall, percent")
    return svg(drawn)


def _curves(distilled: DistilledSet) -> str | None:
    """Matching loss per group and η, each against the outer step; none for a set that was not distilled."""
    phases = [phase.history for phase in distilled.phases if phase.history]
    if not phases:
        return None
    groups = (
        ("image", "text") if phases[0]["loss"].shape[1] == 2 else tuple(map(str, range(phases[0]["loss"].shape[1])))
    )
    drawn = figure(9, 2.9)
    axes = drawn.subplots(1, 2)
    for number, history in enumerate(phases, start=1):
        for group, name in enumerate(groups):
            label = f"phase {number}, {name}" if len(phases) > 1 else name
            style = {"color": COLORS[(number - 1) % len(COLORS)], "linestyle": ("-", "--", ":")[group % 3]}
            axes[0].plot(list(_smoothed(history["loss"][:, group])), label=label, linewidth=1.2, **style)
            axes[1].plot(history["lr"][:, group].tolist(), label=label, linewidth=1.2, **style)
    axes[0].set(xlabel="outer step", ylabel="matching loss (running mean)")
    axes[1].set(xlabel="outer step", ylabel="student learning rate η")
    axes[0].legend(frameon=False, fontsize=8)
    return svg(drawn)


def _smoothed(values: Tensor) -> Iterator[float]:
    """The mean over the last twentieth of the run at every step: single spans differ too much to see a trend."""
    window = max(1, len(values) // 20)
    total = values.double().cumsum(0).tolist()
    for i, whole in enumerate(total):
        first = max(0, i + 1 - window)
        yield (whole - (total[first - 1] if first else 0.0)) / (i + 1 - first)
