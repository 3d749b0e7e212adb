"""One look for the figures of the docs: font, palette, light axes, labels at the lines, PNG at twice the size shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INK, QUIET, PALE = "#222222", "#70757A", "#DADDE1"
BLUE, ORANGE, GREEN, MAGENTA = "#2F6DB5", "#D1590A", "#16825D", "#A3286B"
BLUES = ("#8FB4DE", "#5A8FCB", "#2A62A6", "#14345C")
"""For an ordered quantity, from little to much."""
WIDTH = 8.0
"""Of every figure, inches: a page shows it at half its pixels."""
_DPI = 200
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.6,
}


@contextmanager
def applied() -> Iterator[Any]:
    """matplotlib's pyplot, without a display and in this style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(_SETTINGS):
        yield pyplot


def panels(pyplot: Any, height: float, rows: int = 1, columns: int = 1, **margins: Any) -> tuple[Any, list[Any]]:
    """A figure and its panels in reading order; `margins` are those of matplotlib's `subplots_adjust`, or sharey."""
    sharey = margins.pop("sharey", False)
    figure, grid = pyplot.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, sharey=sharey)
    figure.subplots_adjust(**margins)
    return figure, list(grid.flat)


def label_ends(panel: Any, labels: Sequence[tuple[str, float, float, str]]) -> None:
    """Text, x, y and color of each label, right of its point; those that would overlap are moved apart.

    The axes keep the limits that they have now.
    """
    panel.set(xlim=panel.get_xlim(), ylim=panel.get_ylim())
    pixels, size = panel.figure.dpi / 72, 8.0
    by_height = sorted((panel.transData.transform((x, y))[1], text, (x, y), color) for text, x, y, color in labels)
    heights = apart([height for height, *_ in by_height], 1.25 * size * pixels)
    for height, (own, text, point, color) in zip(heights, by_height, strict=True):
        offset = (5, (height - own) / pixels)
        panel.annotate(
            text, point, offset, textcoords="offset points", color=color, size=size, va="center", annotation_clip=False
        )


def apart(heights: Sequence[float], least: float) -> list[float]:
    """The heights nearest to these ascending ones that are `least` apart: least squares, by pooling neighbors."""
    groups: list[tuple[float, int]] = []
    for number, height in enumerate(heights):
        mean, count = height - number * least, 1
        while groups and groups[-1][0] > mean:
            before, more = groups.pop()
            mean, count = (mean * count + before * more) / (count + more), count + more
        groups.append((mean, count))
    levels = [mean for mean, count in groups for _ in range(count)]
    return [level + number * least for number, level in enumerate(levels)]


def save(pyplot: Any, figure: Any, path: Path) -> Path:
    """Write the picture, with the same bytes for the same figure, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    pyplot.close(figure)
    return path
