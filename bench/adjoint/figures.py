"""The figures of docs/adjoint.md, made from the results: `python -m bench.adjoint.figures`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from bench import style
from bench.adjoint.cells import DATA, TRUNCATED, Side
from bench.adjoint.plans import CLIPS, SETTINGS, SHARES, best_side, part, scored
from bench.adjoint.tables import both, by_start, quantile, runs, side_of
from bench.result import RESULTS, ROOT, Rows
from bench.spread import paired
from ptmst.evaluation.intervals import Interval

FOLDER = ROOT / "docs" / "adjoint"
_OF_CLIP = dict(zip(CLIPS, (style.MAGENTA, style.BLUE, style.GREEN), strict=True))
_OF_DATA = dict(zip(DATA, (style.BLUE, style.ORANGE), strict=True))
_OF_START = dict(zip((0, 1, 2, 5), (style.MAGENTA, style.ORANGE, style.BLUE, style.GREEN), strict=True))
_OF_SHARE = dict(zip((0.0, *SHARES), (style.QUIET, *style.BLUES), strict=True))


def draw(results: Path, folder: Path) -> list[Path]:
    """Write every figure that has results; returns the files."""
    figures: dict[str, Callable[[Path, Any], Any]] = {
        "screening": _screening,
        "confirmation": _confirmation,
        "growth": _growth,
        "worth": _worth,
    }
    with style.applied() as pyplot:
        made = {name: make(results, pyplot) for name, make in figures.items()}
        return [style.save(pyplot, made[name], folder / f"{name}.png") for name in made if made[name] is not None]


def _screening(results: Path, pyplot: Any) -> Any:
    """Recall over the share of the adjoint, one panel per case."""
    result = part(results, "screening")
    if result is None:
        return None
    cases = list(dict.fromkeys((row["cell"]["data"], row["cell"]["setting"]) for row in result["rows"]))
    margins = {"left": 0.065, "right": 0.935, "top": 0.88, "bottom": 0.17, "wspace": 0.12}
    figure, grid = style.panels(pyplot, 2.7, 1, len(cases), sharey=True, **margins)
    shares = [0.0, *SHARES]
    for panel, case in zip(grid, cases, strict=True):
        mine = [row for row in result["rows"] if (row["cell"]["data"], row["cell"]["setting"]) == case]
        ends = []
        for clip, color in _OF_CLIP.items():
            sides = [TRUNCATED, *(Side(adjoint=share, clip=clip) for share in SHARES)]
            seeds = [[mean(scored(r, "per-phase", "test")) for r in mine if side_of(r) == side] for side in sides]
            points = [(share, mean(values)) for share, values in zip(shares, seeds, strict=True) if values]
            panel.plot(*zip(*points, strict=True), marker="o", color=color)
            for share, values in zip(shares, seeds, strict=True):
                panel.plot([share] * len(values), values, ".", ms=4, mew=0, alpha=0.45, color=color)
            ends.append((f"κ = {clip:g}" if clip else "no clip", *points[-1], color))
        panel.set(title=f"{case[0]}, {case[1]}", xlabel="share c of the adjoint")
        panel.set_xticks(shares, [f"{share:g}" for share in shares])
        panel.grid(axis="x", visible=False)
    grid[0].set_ylim(bottom=0)  # the panels share it
    grid[0].yaxis.get_major_locator().set_params(integer=True)
    style.label_ends(grid[-1], ends)
    grid[0].set_ylabel("mean recall on test, percent")
    return figure


def _confirmation(results: Path, pyplot: Any) -> Any:
    """Differences from the truncated gradient with their intervals, setting by setting."""
    result, screened = both(results, "confirmation"), part(results, "screening")
    if result is None or screened is None:
        return None
    best = best_side(screened["rows"])
    measured = {row["cell"]["setting"] for row in result["rows"]}
    names = [name for settings in SETTINGS.values() for name in settings if name in measured][::-1]
    figure, (panel,) = style.panels(pyplot, 3.9, left=0.15, right=0.97, top=0.97, bottom=0.15)
    for data, shift in zip(DATA, (0.15, -0.15), strict=True):
        color = _OF_DATA[data]
        for y, setting in enumerate(names):
            mine = runs(result["rows"], data, setting)
            differences = paired(mine.get((best, False), {}), mine.get((TRUNCATED, False), {}))
            if len(differences) < 2:
                continue
            interval = Interval.of(differences)
            panel.plot([interval.low, interval.high], [y + shift] * 2, color=color, lw=1.5)
            panel.plot(differences, [y + shift] * len(differences), ".", color=color, ms=4.5, mew=0, alpha=0.45)
            panel.plot(interval.mean, y + shift, "o", ms=5, color=color)
            if y == len(names) - 1:
                end = max(interval.high, *differences), y + shift
                panel.annotate(data, end, (6, 0), textcoords="offset points", color=color, va="center")
    panel.axvline(0, color=style.INK, lw=0.9)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(-0.6, len(names) - 0.4)
    panel.set_xlabel(
        f"mean recall with {best.label} minus that with the truncated gradient, points\n"
        "(mean, 95 % interval; small dots are seeds)"
    )
    panel.grid(axis="y", visible=False)
    panel.spines["left"].set_visible(False)
    return figure


def _growth(results: Path, pyplot: Any) -> Any:
    """‖λ_i‖ on its way back, and the largest curvature that it passes, by start point."""
    result = part(results, "why")
    if result is None:
        return None
    figure, (untrained, trained, initial, distilled) = style.panels(
        pyplot, 5.6, 2, 2, left=0.075, right=0.885, top=0.93, bottom=0.085, wspace=0.42, hspace=0.48
    )
    at = [row["states"]["initial"] for row in result["rows"]]
    names = [name for name, of in at[0].items() if isinstance(of, dict) and "growth" in of]
    for panel, first in ((untrained, True), (trained, False)):
        panel.set_yscale("log" if first else "linear")
        ends: dict[str, tuple[str, float, float, str]] = {}
        for name in names:
            draws = by_start(at, name, "growth", first)
            values = [quantile([draw[i][0] for draw in draws], 0.9) for i in range(len(draws[0]))]
            clipped = "κ" in name
            color = style.ORANGE if clipped else _OF_SHARE[float(name.removeprefix("c = "))]
            panel.plot(range(len(values), 0, -1), values, marker="o", color=color, ls="--" if clipped else "-")
            # Both clipped ones lie on the line at 1.
            ends["clip" if clipped else name] = ("κ = 1" if clipped else name, 1, values[-1], color)
        panel.set_xlim(len(values) + 0.3, 0.7)
        panel.set_xticks(range(len(values), 0, -1))
        panel.set_xlabel("inner step i, from last to first")
        panel.grid(axis="x", visible=False)
        lowest = 0.8 if first else 0.9
        highest = max(line.get_ydata().max() for line in panel.lines)
        panel.set_ylim(lowest, 1.5 * highest if first else max(1.3, 1.05 * highest))
        if first:
            ticks = [tick for tick in (1, 3, 10, 30, 100, 300) if tick < 1.5 * highest]
            panel.set_yticks(ticks, map(str, ticks))
            panel.minorticks_off()
        style.label_ends(panel, list(ends.values()))
    untrained.set_title(r"$\Vert\lambda_i\Vert\,/\,\Vert\lambda_n\Vert$ from start 0: student untrained")
    trained.set_title(r"$\Vert\lambda_i\Vert\,/\,\Vert\lambda_n\Vert$ from starts 1 and 2: student trained")
    for panel, state, title in (
        (initial, "initial", "Largest eigenvalue, initial pairs"),
        (distilled, "distilled, c = 0.5", "Largest eigenvalue, distilled pairs"),
    ):
        ends = {}
        for start in (0, 1, 2):
            values = _largest_eigenvalues(result["rows"], state, start)
            panel.plot(range(len(values)), values, marker="o", color=_OF_START[start])
            ends[str(start)] = (f"start {start}", len(values) - 1, values[-1], _OF_START[start])
        panel.set_xlim(-0.35, len(values) - 0.8)
        panel.axhline(2, color=style.INK, lw=0.9, ls=(0, (4, 2)))
        panel.annotate(
            "stable below 2", (0.02, 2), (0, -10), xycoords=("axes fraction", "data"), textcoords="offset points"
        )
        panel.set(title=title, xlabel="inner step i", ylim=(0, 15.5))
        panel.grid(axis="x", visible=False)
        style.label_ends(panel, list(ends.values()))
    return figure


def _largest_eigenvalues(rows: Rows, state: str, start: int) -> list[float]:
    """Of √η H √η at every inner step: means over the draws of a start point."""
    states = [row["states"][state] for row in rows]
    draws = [
        curve
        for one in states
        for at, curve in zip(one["curved starts"], one["curvature"]["largest"], strict=True)
        if at == start
    ]
    return [mean(column) for column in zip(*draws, strict=True)]


def _worth(results: Path, pyplot: Any) -> Any:
    """Bias, variance and agreement of the gradients by share, without a clip, at the initial pairs."""
    result = part(results, "why")
    if result is None:
        return None
    margins = {"left": 0.05, "right": 0.925, "top": 0.84, "bottom": 0.15, "wspace": 0.42}
    figure, (bias, noise, neighbors) = style.panels(pyplot, 3.0, 1, 3, **margins)
    shares = [0.0, *SHARES]
    labels = [Side(adjoint=share).label for share in shares]
    at = [row["states"]["initial"] for row in result["rows"]]
    for panel, name in ((bias, "cosine of averages"), (noise, "cosine between batches")):
        ends = []
        for start in at[0][labels[0]]["fixed"]:
            values = [mean(one[label]["fixed"][start][name] for one in at) for label in labels]
            panel.plot(shares, values, marker="o", color=_OF_START[int(start)])
            ends.append((f"start {start}", shares[-1], values[-1], _OF_START[int(start)]))
        panel.set_xticks(shares, [f"{share:g}" for share in shares])
        panel.set(xlabel="share c", ylim=(-0.05, 1.05))
        style.label_ends(panel, ends)
    ends = []
    for share, label in zip(shares, labels, strict=True):
        columns = zip(*(one[label]["neighbors"]["cosine"] for one in at), strict=True)
        values = [mean(column) for column in columns]
        neighbors.plot(values, marker="o", color=_OF_SHARE[share])
        ends.append((label, len(values) - 1, values[-1], _OF_SHARE[share]))
    neighbors.set(xlabel="start point s, epochs")
    style.label_ends(neighbors, ends)
    bias.set_title("Cosine of the average over\nbatches with the exact one")
    noise.set_title("Cosine between gradients\nof different batches")
    neighbors.set_title("Cosine of gradients from\nstarts s and s + 1")
    for panel in (bias, noise, neighbors):
        panel.grid(axis="x", visible=False)
    return figure


if __name__ == "__main__":
    for picture in draw(RESULTS / "adjoint", FOLDER):
        print(picture.relative_to(ROOT))
