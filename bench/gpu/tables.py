"""Tables of what CUDA devices showed, one a device, from bench/results/gpu-NAME.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import reading
from bench.cases import COMPILED, OPEN_CLIP, OURS_KERNEL, PLAIN
from bench.gpu.parts import parts
from bench.gpu.rows import WHOLE, Found

_CLEAN = ("double backward", "unrolled")
_KERNELS_SHOWN = 8


@dataclass(frozen=True)
class Card:
    """What one device showed."""

    file: str
    rows: list[Found]
    """Answers that did not fail."""
    failed: list[Found]
    calls: list[Found]

    def source(self, folder: str) -> str:
        e = self.calls[-1]["environment"]
        commands = dict.fromkeys(f"`{call['environment']['command']}`" for call in self.calls)
        return (
            f"{', '.join(commands)} on {e['gpu']}, driver {e['driver']}, CUDA {e['cuda']}, torch {e['torch']}; "
            f"{e['cpu']}, {e['cores']} cores ([raw]({folder}/{self.file}))."
        )


def cards(results: Path) -> Iterator[Card]:
    """One a file; a dry run's are not shown."""
    for path in sorted(results.glob("gpu-*.json")):
        found = json.loads(path.read_text())
        if any(call["dry"] for call in found["calls"]):
            continue
        answers = [row for row in found["rows"] if row["row"] != WHOLE]
        failed = [row for row in answers if "failed" in row]
        rows = [row for row in answers if "failed" not in row]
        yield Card(path.name, rows, failed, found["calls"])


def table(lines: Callable[[Card], Iterable[str]], results: Path, folder: str) -> str:
    """What `lines` makes of each device, or that none was measured."""
    parts = []
    for card in cards(results):
        if made := list(lines(card)):
            parts.append("\n".join(made).strip() + "\n\n" + card.source(folder))
    return "\n\n".join(parts) or reading.NOT_YET


def outer(card: Card) -> Iterator[str]:
    """Milliseconds and memory of an outer step, way by way."""
    ways = [row for row in card.rows if "way" in row]
    compiled = {row["case"]: row["compile s"] for row in card.rows if "compile s" in row}
    for case in dict.fromkeys(row["case"] for row in ways):
        rows = [row for row in ways if row["case"] == case]
        clean = next((row["ms"] for row in rows if row["way"] in _CLEAN and "ms" in row), None)
        about = rows[0]
        seconds = f", compiled in {compiled[case]:.0f} s" if case in compiled else ""
        yield (
            f"{about['tower']}, {about['size']} px, B {about['batch']}, {about['inner steps']} inner steps, "
            f"{about['gradient']} gradient{seconds}:"
        )
        yield ""
        yield "| way | ms / outer step | against double backward | peak memory | of the floor |"
        yield "|---|--:|--:|--:|--:|"
        for row in sorted(rows, key=lambda row: -row.get("ms", float("inf"))):
            yield _way(row, clean)
        yield ""


def _way(row: Found, clean: float | None) -> str:
    if "ms" not in row:
        return f"| {row['way']} | out of memory | | | |"
    times = f"{clean / row['ms']:.2f} ×" if clean else ""
    floor = f"{100 * row['fraction of floor']:.0f} %" if "fraction of floor" in row else ""
    return f"| {row['way']} | {row['ms']:.1f} | {times} | {row['peak MB'] / 1024:.1f} GB | {floor} |"


def flat(card: Card) -> Iterator[str]:
    """Milliseconds of the flat kernels in a CUDA graph, and the share of them that a copy of as many bytes takes."""
    rows = [row for row in card.rows if row["part"] == "flat"]
    if not rows:
        return
    yield "| kernel | parameters | plain torch | torch.compile | ptmst | of a copy | of a copy, launched one by one |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for kernel, parameters in dict.fromkeys((row["kernel"], row["parameters"]) for row in rows):
        by = {row["provider"]: row for row in rows if (row["kernel"], row["parameters"]) == (kernel, parameters)}
        times = [f"{by[p]['graph ms']:.3f} ms" if p in by else "–" for p in (PLAIN, COMPILED, OURS_KERNEL)]
        ours = by.get(OURS_KERNEL)
        shares = [f"{100 * ours[name]:.0f} %" if ours else "–" for name in ("of a copy, in a graph", "of a copy")]
        yield f"| `{kernel}` | {parameters // 1_000_000} M | {' | '.join([*times, *shares])} |"
    copied = max(row["copied bytes/s"] for row in rows) / 1e9
    yield ""
    yield f"A copy moves {copied:,.0f} GB/s, what it reads and what it writes counted."


def contrastive(card: Card) -> Iterator[str]:
    """Milliseconds of the contrastive loss, in brackets those in a CUDA graph, and its memory."""
    rows = [row for row in card.rows if row["part"] == "contrastive"]
    if not rows:
        return
    providers = (PLAIN, COMPILED, OPEN_CLIP, OURS_KERNEL)
    yield f"| loss | N | {' | '.join(providers)} |"
    yield f"|---|--:|{'--:|' * len(providers)}"
    for case in dict.fromkeys((row["loss"], row["labels"], row["pairs"]) for row in rows):
        of = [row for row in rows if (row["loss"], row["labels"], row["pairs"]) == case]
        cells = [_losses([row for row in of if row["provider"] == provider]) for provider in providers]
        yield f"| {case[0]}, {case[1]} labels | {case[2]:,} | {' | '.join(cells)} |"


def _losses(rows: list[Found]) -> str:
    """Of one provider: queued, and in a graph."""
    together: Found = {name: value for row in rows for name, value in row.items()}
    if "ms" not in together:
        return "out of memory" if "out of memory" in together else "–"
    graph = f" ({together['graph ms']:.2f})" if "graph ms" in together else ""
    return f"{together['ms']:.2f}{graph} ms, {together['peak MB']:,.0f} MB"


def runs(card: Card) -> Iterator[str]:
    """Images a second of teaching, and students a second of an evaluation."""
    taught = [row for row in card.rows if row["part"] == "teach" and "precision" in row]
    decoded = [row for row in card.rows if row["row"] == "decode"]
    stacks = [row for row in card.rows if row["part"] == "students"]
    if not (taught or stacks):
        return
    yield "| | | |"
    yield "|---|---|--:|"
    for row in decoded:
        yield f"| decoding on the host | {row['size']} px | {row['images/s']:,.0f} images/s |"
    for row in taught:
        about = f"{row['tower']}, {row['size']} px, B {row['batch']}, {row['precision']}"
        yield f"| teaching | {about} | {row['images/s']:,.0f} images/s |"
    for row in stacks:
        about = f"{row['tower']}, {row['size']} px, {row['pairs']} pairs, {row['together']} at a time"
        students = f"students of {row['whole epochs']} epochs, by {row['epochs']} of them"
        yield f"| {students} | {about} | {3600 * row['students/s']:,.0f} an hour |"


def profile(card: Card) -> Iterator[str]:
    """The longest kernels of an outer step."""
    for row in card.rows:
        if "longest" in row:
            yield f"{row['case']}, {row['precision']}: {row['kernels']:,} kernels, {row['ms']:.1f} ms"
            yield ""
            yield "| kernel | launches | ms |"
            yield "|---|--:|--:|"
            yield from (
                f"| `{name[:80]}` | {count:,} | {ms:.2f} |" for name, count, ms in row["longest"][:_KERNELS_SHOWN]
            )
            yield ""


def checks(card: Card) -> Iterator[str]:
    """What was right, and what was not."""
    tests = [row for row in card.rows if "::" in row["row"]]
    passed, skipped = (sum(("skipped" in row) == whether for row in tests) for whether in (False, True))
    distances = [value for row in card.rows for value in row.get("relative distance", {}).values()]
    demo = [row for row in card.rows if "mean recall" in row]
    if tests:
        yield f"* {passed} tests that need a device passed, {skipped} were skipped."
    if distances:
        yield f"* Gradients of first outer steps are within {max(distances):.0e} of the CPU's, relative, in float32."
    for row in demo:
        means = (f"{name} {mean:.1f} ({row['on a CPU'][name]:.1f})" for name, mean in row["mean recall"].items())
        yield (
            f"* `ptmst demo --quick` takes {row['minutes']:.1f} minutes; mean recalls, in brackets the CPU's: "
            f"{', '.join(means)}."
        )
    yield from (f"* Failed: {row['part']}, {row['row']}: {row['failed'].partition(chr(10))[0]}" for row in card.failed)


def estimates(folder: str) -> str:
    """What the parts are estimated to take, in their order."""
    lines = ["| part | estimate of its first result | of all | cores |", "|---|--:|--:|--:|"]
    for part in parts(dry=False):
        lines.append(f"| `{part.name}` | {part.first:.0f} s | {part.seconds:.0f} s | {part.cores} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[Card], Iterator[str]]] = {
    "gpu-checks": checks,
    "gpu-outer": outer,
    "gpu-profile": profile,
    "gpu-flat": flat,
    "gpu-contrastive": contrastive,
    "gpu-runs": runs,
}
