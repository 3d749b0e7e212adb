"""How cost grows, one picture per axis: `python -m bench.plots` draws them from bench/results into docs/growth."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from bench import style
from bench.cases import CLEAN
from bench.result import RESULTS, ROOT, read

PLOTS = ROOT / "docs" / "growth"
_AXES = {
    "inner steps": ("inner steps", "inner steps n"),
    "batch": ("batch", "pairs in a batch B"),
    "parameters": ("parameters", "parameters P"),
    "synthetic pairs": ("pairs", "synthetic pairs N"),
    "resolution": ("size", "image height and width, pixels"),
}
"""Axis → the entry of a row, and the label."""


def draw(results: Path, folder: Path) -> list[Path]:
    """One PNG per axis: seconds and peak memory of an outer step, with ptmst and with a clean double backward."""
    result = read(results)
    assert result is not None, f"{results}: measure it first"
    lines: dict[str, dict[str, list[tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in result["rows"]:
        key, _ = _AXES[row["axis"]]
        lines[row["axis"]][row["way"]].append((row[key], row["seconds"], row["peak MB"]))
    with style.applied() as pyplot:
        return [
            style.save(pyplot, _picture(pyplot, axis, ways), folder / f"{axis.replace(' ', '-')}.png")
            for axis, ways in lines.items()
        ]


def _picture(pyplot: Any, axis: str, ways: dict[str, list[tuple[float, float, float]]]) -> Any:
    figure, panels = style.panels(pyplot, 2.6, 1, 2, left=0.06, right=0.87, top=0.88, bottom=0.18, wspace=0.5)
    titles = ("Seconds per outer step", "Peak memory, MB")
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True), 1):
        ends = []
        for way, points in ways.items():
            x, *values = zip(*sorted(points), strict=True)
            color = style.MAGENTA if way == CLEAN else style.BLUE
            panel.plot(x, values[number - 1], marker="o", color=color)
            ends.append((way, x[-1], values[number - 1][-1], color))
        panel.set(xscale="log", xlabel=_AXES[axis][1], title=title)
        panel.set_xticks(x, [amount(value) for value in x])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.grid(axis="x", visible=False)
        style.label_ends(panel, ends)
    return figure


def amount(value: float) -> str:
    """A number on an axis: 100, 2,000, 55 k, 1.3 M."""
    if value < 10_000:
        return f"{value:,.0f}"
    return f"{value / 1e3:.0f} k" if value < 999_500 else f"{value / 1e6:.1f} M"


if __name__ == "__main__":
    for picture in draw(RESULTS / "growth-cpu.json", PLOTS):
        print(picture.relative_to(ROOT))
