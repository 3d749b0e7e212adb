"""README's tables, made from the results under bench/results: `python -m bench.readme` writes them into README."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


TABLES: dict[str, Callable[[], str]] = {
    "demo-scenes": lambda: demo_table("demo-scenes"),
    "demo-digits": lambda: demo_table("demo-digits"),
    "retrieval": lambda: recall_line("retrieval"),
}


def written(readme: str) -> str:
    """README with every table between its `<!-- table: NAME -->` marks made anew."""
    for name, make in TABLES.items():
        marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = make()
        readme, count = marks.subn(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", readme)  # type: ignore[misc]
        assert count == 1, f"README.md: expected one table {name}, found {count}"
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))
