"""Tables of the results on CUDA devices, one per device, from bench/results/gpu-NAME.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.cases import COMPILED, OPEN_CLIP, OURS_KERNEL, PLAIN
from bench.gpu.parts import parts
from bench.gpu.rows import WHOLE
from bench.result import Row, read
from bench.tables import NOT_YET, Table, source

_CLEAN = ("double backward", "unrolled")
_KERNELS_SHOWN = 8


@dataclass(frozen=True)
class Card:
    """The results of one device."""

    file: str
    rows: list[Row]
    """Answers that did not fail."""
    failed: list[Row]
    calls: list[Row]

    def source(self, folder: str) -> str:
        """The sentence below a table."""
        last = self.calls[-1]
        machine, versions = last["machine"], last["versions"]
        commands = "`, `".join(dict.fromkeys(call["command"] for call in self.calls))
        about = {"command": commands, "machine": {"cpu": machine["gpu"]}, "versions": versions}
        driver = f"driver {machine['driver']}, CUDA {versions['cuda']}"
        host = f"{machine['cpu']}, {machine['cores']} cores"
        return source(about, ran=driver, more=host, raw=f"{folder}/{self.file}")


def cards(results: Path) -> Iterator[Card]:
    """One per file; dry runs are left out."""
    for path in sorted(results.glob("gpu-*.json")):
        result = read(path)
        if result is None or any(call["dry"] for call in result["calls"]):
            continue
        answers = [row for row in result["rows"] if row["row"] != WHOLE]
        failed = [row for row in answers if "failed" in row]
        rows = [row for row in answers if "failed" not in row]
        yield Card(path.name, rows, failed, result["calls"])


def table(blocks: Callable[[Card], Iterable[str]], results: Path, folder: str) -> str:
    """The blocks of each device with their source, or that none was measured."""
    parts = []
    for card in cards(results):
        if made := list(blocks(card)):
            parts.append("\n\n".join([*made, card.source(folder)]))
    return "\n\n".join(parts) or NOT_YET


def outer(card: Card) -> Iterator[str]:
    """Milliseconds and memory of an outer step, by implementation."""
    measured = [row for row in card.rows if "way" in row]
    compiled: dict[str, float] = {}
    for row in card.rows:
        if "compile s" in row:
            compiled[row["case"]] = max(row["compile s"], compiled.get(row["case"], 0.0))
    for case in dict.fromkeys(row["case"] for row in measured):
        rows = [row for row in measured if row["case"] == case]
        clean = next((row["ms"] for row in rows if row["way"] in _CLEAN and "ms" in row), None)
        about = rows[0]
        seconds = f", compiled in {compiled[case]:.0f} s" if case in compiled else ""
        yield (
            f"{about['tower']}, {about['size']} px, B {about['batch']}, {about['inner steps']} inner steps, "
            f"{about['gradient']} gradient{seconds}:"
        )
        made = Table(["implementation", "ms / outer step", "against double backward", "peak memory", "of the floor"])
        for row in sorted(rows, key=lambda row: -row.get("ms", float("inf"))):
            if "ms" not in row:
                made.add(row["way"], "out of memory", None, None, None)
                continue
            times = f"{clean / row['ms']:.2f} ×" if clean else ""
            floor = f"{100 * row['fraction of floor']:.0f} %" if "fraction of floor" in row else ""
            made.add(row["way"], f"{row['ms']:.1f}", times, f"{row['peak MB'] / 1024:.1f} GB", floor)
        yield made.markdown()


def flat(card: Card) -> Iterator[str]:
    """Milliseconds of the flat kernels in a CUDA graph, and the share of them that a copy of as many bytes takes."""
    rows = [row for row in card.rows if row["part"] == "flat"]
    if not rows:
        return
    providers = (PLAIN, COMPILED, OURS_KERNEL)
    made = Table(["kernel", "parameters", *providers, "of a copy", "of a copy, launched one by one"])
    for kernel, parameters in dict.fromkeys((row["kernel"], row["parameters"]) for row in rows):
        by = {row["provider"]: row for row in rows if (row["kernel"], row["parameters"]) == (kernel, parameters)}
        times = [f"{by[p]['graph ms']:.3f} ms" if p in by else "–" for p in providers]
        ours = by.get(OURS_KERNEL)
        shares = [f"{100 * ours[name]:.0f} %" if ours else "–" for name in ("of a copy, in a graph", "of a copy")]
        made.add(f"`{kernel}`", f"{parameters // 1_000_000} M", *times, *shares)
    copied = max(row["copied bytes/s"] for row in rows) / 1e9
    yield made.markdown(f"A copy moves {copied:,.0f} GB/s, counting both what it reads and what it writes.")


def contrastive(card: Card) -> Iterator[str]:
    """Milliseconds of the contrastive loss, in brackets those in a CUDA graph, and its memory."""
    rows = [row for row in card.rows if row["part"] == "contrastive"]
    if not rows:
        return
    providers = (PLAIN, COMPILED, OPEN_CLIP, OURS_KERNEL)
    made = Table(["loss", "N", *providers])
    for case in dict.fromkeys((row["loss"], row["labels"], row["pairs"]) for row in rows):
        of = [row for row in rows if (row["loss"], row["labels"], row["pairs"]) == case]
        cells = [_losses([row for row in of if row["provider"] == provider]) for provider in providers]
        made.add(f"{case[0]}, {case[1]} labels", f"{case[2]:,}", *cells)
    yield made.markdown()


def _losses(rows: list[Row]) -> str:
    """Of one provider: queued, and in a graph."""
    together: Row = {name: value for row in rows for name, value in row.items()}
    if "ms" not in together:
        return "out of memory" if "out of memory" in together else "–"
    graph = f" ({together['graph ms']:.2f})" if "graph ms" in together else ""
    return f"{together['ms']:.2f}{graph} ms, {together['peak MB']:,.0f} MB"


def runs(card: Card) -> Iterator[str]:
    """Training images per second, and students per second of an evaluation."""
    trained = [row for row in card.rows if row["part"] == "teach" and "precision" in row]
    decoded = [row for row in card.rows if row["row"] == "decode"]
    stacks = [row for row in card.rows if row["part"] == "students"]
    if not (trained or stacks):
        return
    made = Table([None, None, None], left=(0, 1))
    for row in decoded:
        made.add("decoding on the host", f"{row['size']} px", f"{row['images/s']:,.0f} images/s")
    for row in trained:
        about = f"{row['tower']}, {row['size']} px, B {row['batch']}, {row['precision']}"
        made.add("training an expert", about, f"{row['images/s']:,.0f} images/s")
    for row in stacks:
        about = f"{row['tower']}, {row['size']} px, {row['pairs']} pairs, {row['together']} at a time"
        students = f"students of {row['whole epochs']} epochs, by {row['epochs']} of them"
        made.add(students, about, f"{3600 * row['students/s']:,.0f} an hour")
    yield made.markdown()


def profile(card: Card) -> Iterator[str]:
    """The longest kernels of an outer step."""
    for row in card.rows:
        if "longest" in row:
            yield f"{row['case']}, {row['precision']}: {row['kernels']:,} kernels, {row['ms']:.1f} ms"
            made = Table(["kernel", "launches", "ms"])
            for name, count, ms in row["longest"][:_KERNELS_SHOWN]:
                made.add(f"`{name[:80]}`", f"{count:,}", f"{ms:.2f}")
            yield made.markdown()


def checks(card: Card) -> Iterator[str]:
    """What was right, and what was not."""
    lines = list(_checked(card))
    if lines:
        yield "\n".join(lines)


def _checked(card: Card) -> Iterator[str]:
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
            f"* `{row['row']}` takes {row['minutes']:.1f} minutes; mean recalls, in brackets the CPU's: "
            f"{', '.join(means)}."
        )
    yield from (f"* Failed: {row['part']}, {row['row']}: {row['failed'].partition(chr(10))[0]}" for row in card.failed)


def estimates(folder: str) -> str:
    """Estimated seconds of the parts, in their order."""
    made = Table(["part", "estimate of its first result", "of all", "cores"])
    for part in parts(dry=False):
        made.add(f"`{part.name}`", f"{part.first:.0f} s", f"{part.seconds:.0f} s", str(part.cores))
    return made.markdown()


TABLES: dict[str, Callable[[Card], Iterator[str]]] = {
    "gpu-checks": checks,
    "gpu-outer": outer,
    "gpu-profile": profile,
    "gpu-flat": flat,
    "gpu-contrastive": contrastive,
    "gpu-runs": runs,
}
