"""The tables of README and docs, made from the results under bench/results: `python -m bench.readme` writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.cases import CLEAN
from ptmst.evaluation import METRICS
from ptmst.report import HEADINGS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def demo_table(name: str, folder: str) -> str:
    """The recall table of a demo's results.json."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    lines = [f"| trained on | pairs | {' | '.join(HEADINGS)} |", f"|---|--:|{'--:|' * len(METRICS)}"]
    for row in found["rows"]:
        cells = [f"{row['recall'][m]['mean']:.1f} ± {row['recall'][m]['std']:.1f}" for m in METRICS]
        lines.append(f"| {row['name']} | {row['pairs']:,} | {' | '.join(cells)} |")
    machine = found["machine"]
    lines += [
        "",
        f"Recall in percent, mean ± standard deviation over {found['students']} students. `{found['command']}`, "
        f"{found['minutes']:.1f} minutes on {machine['cpu']}, {machine['cores']} cores, GPU: {machine['gpu']}; torch "
        f"{found['versions']['torch']} ([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


def recall_line(name: str, folder: str) -> str:
    """The median time of the recall benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    (benchmark,) = found["benchmarks"]
    extra = benchmark["extra_info"]
    return (
        f"`retrieval_recall` on {extra['images']:,} images × {extra['texts']:,} texts of width {extra['width']}: "
        f"{benchmark['stats']['median']:.1f} s, {extra['peak_extra_mb']:.0f} MB beside its inputs, on "
        f"{extra['machine']['cpu']}, {extra['machine']['cores']} cores ([raw]({folder}/{name}.json))."
    )


def outer_table(name: str, folder: str, gradient: str, frozen: bool = False) -> str:
    """Seconds and memory of an outer step, way by way, for every case of the results that is asked for."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    rows = [(b["extra_info"], b["stats"]["median"]) for b in found["benchmarks"]]
    rows = [(e, s) for e, s in rows if (e["gradient"], e["frozen"]) == (gradient, frozen)]
    lines = []
    for case in dict.fromkeys(extra["case"] for extra, _ in rows):
        ways = [(extra, seconds) for extra, seconds in rows if extra["case"] == case]
        clean = next(seconds for extra, seconds in ways if extra["way"] == CLEAN)
        extra = ways[0][0]
        lines += [
            f"{extra['tower']}{', frozen' if frozen else ''}, {extra['size']} px, B {extra['batch']}, "
            f"{extra['inner steps']} inner steps, {gradient} gradient, {extra['parameters'] / 1e6:.1f} M parameters:",
            "",
            "| way | s / outer step | against double backward | peak memory | of the floor |",
            "|---|--:|--:|--:|--:|",
        ]
        for extra, seconds in sorted(ways, key=lambda way: -way[1]):
            share = f"{100 * extra['fraction of floor']:.0f} %" if "fraction of floor" in extra else ""
            memory = f"{extra['peak MB'] / 1024:.2f} GB"
            lines.append(f"| {extra['way']} | {seconds:.2f} | {clean / seconds:.2f} × | {memory} | {share} |")
        lines.append("")
    environment = rows[0][0]["environment"]
    rates = [extra["rates"]["product FLOP/s"] for extra, _ in rows if "rates" in extra]
    measured = f"; products {rates[0] / 1e9:.0f} GFLOP/s" if rates else ""
    lines.append(
        f"`{environment['command']}` on {environment['cpu']}, {environment['threads']} threads, GPU: "
        f"{environment['gpu']}; torch {environment['torch']}{measured} ([raw]({folder}/{name}.json))."
    )
    return "\n".join(lines)


def students_table(name: str, folder: str) -> str:
    """Seconds of training the students of one evaluation, one at a time and as one stack."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    seconds = {
        (b["extra_info"]["frozen"], b["extra_info"]["together"]): b["stats"]["median"] for b in found["benchmarks"]
    }
    extra = found["benchmarks"][0]["extra_info"]
    count, environment = extra["students"], extra["environment"]
    lines = [f"| {count} students | one at a time | one stack |", "|---|--:|--:|"]
    for frozen, tower in ((False, "tower trained"), (True, "tower frozen")):
        lines.append(f"| {tower} | {seconds[frozen, 1]:.2f} s | {seconds[frozen, count]:.2f} s |")
    lines += [
        "",
        f"{extra['epochs']} epochs of {extra['pairs']} pairs; `{environment['command']}` on {environment['cpu']}, "
        f"{environment['threads']} threads, GPU: {environment['gpu']} ([raw]({folder}/{name}.json)).",
    ]
    return "\n".join(lines)


Table = Callable[[str], str]
TABLES: dict[str, Table] = {
    "demo-scenes": partial(demo_table, "demo-scenes"),
    "demo-digits": partial(demo_table, "demo-digits"),
    "retrieval": partial(recall_line, "retrieval"),
    "outer-nfnet": partial(outer_table, "outer-nfnet-cpu", gradient="truncated"),
    "outer-nfnet-exact": partial(outer_table, "outer-nfnet-cpu", gradient="exact"),
    "outer-nfnet-frozen": partial(outer_table, "outer-nfnet-cpu", gradient="truncated", frozen=True),
    "outer-towers": partial(outer_table, "outer-towers-cpu", gradient="truncated"),
    "outer-towers-exact": partial(outer_table, "outer-towers-cpu", gradient="exact"),
    "outer-system": partial(outer_table, "outer-system-allocator-cpu", gradient="truncated"),
    "students": partial(students_table, "students-cpu"),
}
PAGES = {"README.md": "bench/results", "docs/outer-step.md": "../bench/results"}
"""Each page with its way to the results."""


def written(page: str, folder: str) -> str:
    """A page with every table between its `<!-- table: NAME -->` marks made anew."""
    marks = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return marks.sub(lambda m: f"{m[1]}{TABLES[m[2]](folder)}\n{m[3]}", page)


if __name__ == "__main__":
    for page, folder in PAGES.items():
        (ROOT / page).write_text(written((ROOT / page).read_text(), folder))
