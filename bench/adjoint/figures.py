"""The figures of docs/adjoint.md, made from the results."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from bench.adjoint.cells import DATA, TRUNCATED, Side
from bench.adjoint.plans import CLIPS, SETTINGS, SHARES, best_side, scored
from bench.adjoint.tables import both, by_start, quantile, runs, side_of
from bench.reading import Interval, paired, read


def draw(results: Path, folder: Path) -> list[Path]:
    """Write every figure whose results are there; returns their files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in {
        "screening": _screening,
        "confirmation": _confirmation,
        "growth": _growth,
        "worth": _worth,
    }.items():
        figure = make(results)
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=110, metadata={"Software": None})
            pyplot.close(figure)
    return written


def _screening(results: Path) -> Any:
    """Recall over the share of the adjoint, a panel a case."""
    found = read(results, "screening")
    if found is None:
        return None
    from matplotlib import pyplot

    cases = list(dict.fromkeys((row["cell"]["data"], row["cell"]["setting"]) for row in found["rows"]))
    figure, grid = pyplot.subplots(1, len(cases), figsize=(3.1 * len(cases), 3.2), layout="constrained", squeeze=False)
    panels = grid[0]
    for panel, case in zip(panels, cases, strict=True):
        mine = [row for row in found["rows"] if (row["cell"]["data"], row["cell"]["setting"]) == case]
        for clip in CLIPS:
            shares = [0.0, *SHARES]
            sides = [TRUNCATED, *(Side(adjoint=share, clip=clip) for share in SHARES)]
            seeds = [[mean(scored(r, "per-phase", "test")) for r in mine if side_of(r) == side] for side in sides]
            points = [(share, mean(values)) for share, values in zip(shares, seeds, strict=True) if values]
            (line,) = panel.plot(*zip(*points, strict=True), marker="o", label=f"κ = {clip:g}" if clip else "no clip")
            for share, values in zip(shares, seeds, strict=True):
                panel.plot([share] * len(values), values, ".", ms=4, alpha=0.5, color=line.get_color())
        panel.set(title=f"{case[0]}, {case[1]}", xlabel="share c of the adjoint", xticks=shares)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("mean recall on test, percent")
    panels[0].legend(frameon=False)
    return figure


def _confirmation(results: Path) -> Any:
    """Differences to the truncated form with their intervals, setting by setting."""
    found, screened = both(results, "confirmation"), read(results, "screening")
    if found is None or screened is None:
        return None
    from matplotlib import pyplot

    best = best_side(screened["rows"])
    measured = {row["cell"]["setting"] for row in found["rows"]}
    names = [name for settings in SETTINGS.values() for name in settings if name in measured][::-1]
    figure, panel = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for data, shift, colour in zip(DATA, (0.12, -0.12), ("tab:blue", "tab:orange"), strict=True):
        for y, setting in enumerate(names):
            mine = runs(found["rows"], data, setting)
            differences = paired(mine.get((best, False), {}), mine.get((TRUNCATED, False), {}))
            if len(differences) < 2:
                continue
            interval = Interval.of(differences)
            panel.plot([interval.low, interval.high], [y + shift] * 2, color=colour, lw=1.5)
            panel.plot(differences, [y + shift] * len(differences), ".", color=colour, ms=4, alpha=0.5)
            panel.plot(interval.mean, y + shift, "o", color=colour, label=data if y == 0 else "")
    panel.axvline(0, color="black", lw=0.8)
    panel.set_yticks(range(len(names)), names)
    panel.set_xlabel(
        f"mean recall of {best.label} above the truncated form's, points\n(95 % interval; small dots are seeds)"
    )
    panel.legend(frameon=False)
    panel.grid(axis="x", alpha=0.3)
    return figure


def _growth(results: Path) -> Any:
    """‖λ_i‖ on its way back, and the largest curvature that it passes, by start point."""
    found = read(results, "why")
    if found is None:
        return None
    from matplotlib import pyplot

    figure, (begin, later, spectrum) = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    at = [row["states"]["initial"] for row in found["rows"]]
    for side in (name for name, of in at[0].items() if isinstance(of, dict) and "growth" in of):
        for panel, first in ((begin, True), (later, False)):
            draws = by_start(at, side, "growth", first)
            values = [quantile([draw[i][0] for draw in draws], 0.9) for i in range(len(draws[0]))]
            panel.plot(range(len(values), 0, -1), values, marker="o", ms=3, label=side)
    highest = begin.get_ylim()[1]
    for panel, title in ((begin, "student untrained (start 0)"), (later, "student trained (starts 1, 2)")):
        panel.set(title=f"‖λ_i‖ / ‖λ_n‖, image group, 90th percentile,\n{title}", xlabel="inner step i", yscale="log")
        panel.set_ylim(0.8, 1.3 * highest)
        panel.grid(alpha=0.3)
    begin.legend(frameon=False, fontsize=8)
    for state, style in (("initial", "-"), ("distilled, c = 0.5", "--")):
        for start, colour in ((0, "tab:red"), (1, "tab:orange"), (2, "tab:blue")):
            draws = [
                curve
                for row in found["rows"]
                for one, curve in zip(
                    row["states"][state]["curved starts"], row["states"][state]["curvature"]["largest"], strict=True
                )
                if one == start
            ]
            values = [mean(column) for column in zip(*draws, strict=True)]
            spectrum.plot(values, style, color=colour, label=f"start {start}, {state}")
    spectrum.axhline(2, color="black", lw=0.8)
    spectrum.set(title="largest eigenvalue of √η H √η\n(a step is stable below 2)", xlabel="inner step i")
    spectrum.legend(frameon=False, fontsize=8)
    spectrum.grid(alpha=0.3)
    return figure


def _worth(results: Path) -> Any:
    """Bias, variance and agreement of the gradients by share, unclipped, at the initial pairs."""
    found = read(results, "why")
    if found is None:
        return None
    from matplotlib import pyplot

    figure, (bias, noise, neighbours) = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    shares = [0.0, *SHARES]
    labels = [Side(adjoint=share).label for share in shares]
    at = [row["states"]["initial"] for row in found["rows"]]
    for start in at[0][labels[0]]["fixed"]:
        for panel, name in ((bias, "cosine of averages"), (noise, "cosine between batches")):
            values = [mean(one[label]["fixed"][start][name] for one in at) for label in labels]
            panel.plot(shares, values, marker="o", label=f"start {start}")
    for label in labels:
        columns = zip(*(one[label]["neighbours"]["cosine"] for one in at), strict=True)
        neighbours.plot([mean(column) for column in columns], marker="o", ms=3, label=label)
    bias.set(title="cosine of the average over batches\nwith the exact average over others", xlabel="share c")
    noise.set(title="cosine between gradients that\ndiffer in batches alone", xlabel="share c")
    neighbours.set(
        title="cosine of gradients from start points\ns and s + 1, batches alike", xlabel="start point s, epochs"
    )
    for panel in (bias, noise, neighbours):
        panel.grid(alpha=0.3)
    bias.legend(frameon=False, fontsize=8)
    neighbours.legend(frameon=False, fontsize=8)
    return figure
