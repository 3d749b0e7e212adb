"""The tables of README and docs, made from the results under bench/results: `python -m bench.readme` writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import CLEAN
from ptmst.evaluation import METRICS
from ptmst.report import HEADINGS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def demo_table(name: str) -> str:
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
        f"{found['versions']['torch']} ([raw](bench/results/{name}.json)).",
    ]
    return "\n".join(lines)


def recall_line(name: str) -> str:
    """The median time of the recall benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    (benchmark,) = found["benchmarks"]
    extra = benchmark["extra_info"]
    return (
        f"`retrieval_recall` on {extra['images']:,} images × {extra['texts']:,} texts of width {extra['width']}: "
        f"{benchmark['stats']['median']:.1f} s, {extra['peak_extra_mb']:.0f} MB beside its inputs, on "
        f"{extra['machine']['cpu']}, {extra['machine']['cores']} cores ([raw](bench/results/{name}.json))."
    )


def outer_table(name: str, gradient: str, only: str = "", frozen: bool = False) -> str:
    """Seconds and memory of an outer step, way by way, for every case of the results that is asked for."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    rows = [(b["extra_info"], b["stats"]["median"]) for b in found["benchmarks"]]
    rows = [(e, s) for e, s in rows if (e["gradient"], e["frozen"]) == (gradient, frozen) and only in e["case"]]
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
    rates = next(extra["rates"] for extra, _ in rows if "rates" in extra) if not frozen else None
    measured = f"; products {rates['product FLOP/s'] / 1e9:.0f} GFLOP/s" if rates else ""
    lines.append(
        f"On {environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads, GPU: "
        f"{environment['gpu']}; torch {environment['torch']}{measured} ([raw](%s/{name}.json))."
    )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "demo-scenes": lambda: demo_table("demo-scenes"),
    "demo-digits": lambda: demo_table("demo-digits"),
    "retrieval": lambda: recall_line("retrieval"),
    "outer-nfnet": lambda: outer_table("outer-cpu", "truncated", "nfnet_l0") % "bench/results",
    "outer-truncated": lambda: outer_table("outer-cpu", "truncated") % "../bench/results",
    "outer-exact": lambda: outer_table("outer-cpu", "exact") % "../bench/results",
    "outer-frozen": lambda: outer_table("outer-cpu", "truncated", frozen=True) % "../bench/results",
    "outer-system": lambda: outer_table("outer-cpu-system-allocator", "truncated") % "../bench/results",
}
PAGES = ("README.md", "docs/outer-step.md")


def written(page: str) -> str:
    """A page with every table between its `<!-- table: NAME -->` marks made anew."""
    marks = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return marks.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", page)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(written((ROOT / page).read_text()))
