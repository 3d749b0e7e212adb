"""How cost grows, one picture an axis: `python -m bench.plots` draws them from bench/results into docs/growth."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.readme import RESULTS, ROOT

PLOTS = ROOT / "docs" / "growth"
_KEYS = {
    "inner steps": "inner steps",
    "batch": "batch",
    "parameters": "parameters",
    "synthetic pairs": "pairs",
    "resolution": "size",
}
_LABELS = {
    "inner steps": "inner steps n",
    "batch": "pairs in a batch B",
    "parameters": "parameters P",
    "synthetic pairs": "synthetic pairs N",
    "resolution": "image height and width, pixels",
}


def draw(results: Path, folder: Path) -> list[Path]:
    """One PNG an axis: seconds and peak memory of an outer step, ours and the clean double backward's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found: dict[str, Any] = json.loads(results.read_text())
    lines: dict[str, dict[str, list[tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    for benchmark in found["benchmarks"]:
        extra = benchmark["extra_info"]
        point = extra[_KEYS[extra["axis"]]], benchmark["stats"]["median"], extra["peak MB"]
        lines[extra["axis"]][extra["way"]].append(point)

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for axis, ways in lines.items():
        figure, (seconds, memory) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for way, points in ways.items():
            x, s, mb = zip(*sorted(points), strict=True)
            seconds.plot(x, s, marker="o", label=way)
            memory.plot(x, mb, marker="o", label=way)
        for panel, title in ((seconds, "seconds per outer step"), (memory, "peak memory, MB")):
            panel.set(xscale="log", xlabel=_LABELS[axis], title=title)
            panel.set_xticks(x, [f"{value:,}" for value in x])
            panel.minorticks_off()
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
        seconds.legend(frameon=False)
        path = folder / f"{axis.replace(' ', '-')}.png"
        figure.savefig(path, dpi=110, metadata={"Software": None})
        pyplot.close(figure)
        written.append(path)
    return written


if __name__ == "__main__":
    for picture in draw(RESULTS / "growth-cpu.json", PLOTS):
        print(picture.relative_to(ROOT))
