"""The tables of docs/results.md, made from what `ptmst ablate` has measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import get_args

from bench.result import Result, Row, Rows, read
from bench.spread import Interval, paired, spread
from bench.tables import NOT_YET, Table, bold, source
from ptmst.config import TUNING_SEEDS, Selection

QUESTIONS = {
    "Do phases help, on shortcuts?": ("ptm-st", "st"),
    "Does the shortcut help, in phases?": ("ptm-st", "ptm"),
    "Do phases help, on raw trajectories?": ("ptm", "base"),
    "Does a shortcut help, in one phase?": ("st", "base"),
    "Do both together?": ("ptm-st", "base"),
    "Both against LoRS": ("ptm-st", "lors"),
    "Both against RepBlend": ("ptm-st", "repblend"),
    "The damped adjoint, on a shortcut": ("st-adjoint", "st"),
    "Ours against PTM-ST": ("st-adjoint", "ptm-st"),
}
"""Questions that are answered on each data set: one method against another."""


def recalls(rows: Rows) -> list[float]:
    """Mean recall of every student; 0 for one that diverged."""
    from ptmst.studies.runs import recalls

    return [value for row in rows for value in recalls(row)]


def by_seed(rows: Rows) -> dict[int, float]:
    """Mean recall over the students of each seed, which is the unit of an interval."""
    return {row["run"]["seed"]: mean(recalls([row])) for row in rows}


def measured(result: Result) -> dict[tuple[str, int], Rows]:
    """Runs to compare, by method and pairs; 0 pairs are all real ones."""
    cells: dict[tuple[str, int], Rows] = defaultdict(list)
    for row in result["rows"]:
        if row["run"]["seed"] not in TUNING_SEEDS and row["run"]["split"] == result.get("split", "test"):
            cells[row["run"]["method"], row["run"]["pairs"]].append(row)
    return cells


def methods(results: Path, data: str) -> str:
    """One row per method: recall by number of pairs, share of all real pairs, what was tuned and what it cost."""
    from ptmst.studies.ablation import columns

    result = read(results / f"ablation-{data}.json")
    if result is None:
        return NOT_YET
    cells = measured(result)
    sizes = sorted({pairs for _, pairs in cells if pairs})
    # Runs are stored in the order in which they ended.
    order = [*get_args(Selection), *result["methods"]]
    names = sorted({name for name, pairs in cells if pairs}, key=order.index)
    full = {name: mean(recalls(rows)) for (name, pairs), rows in cells.items() if not pairs}
    head = ["method", *(f"{size} pairs" for size in sizes), "of all", "tuned", "diverged", "s", "GB"]
    table = Table(head, left=(0, head.index("tuned")))
    best = {size: max(mean(recalls(cells[name, size])) for name in names) for size in sizes}
    for name in names:
        values = [recalls(cells[name, size]) for size in sizes]
        shown = [bold(spread(v), mean(v) == best[size]) for v, size in zip(values, sizes, strict=True)]
        largest = cells[name, sizes[-1]]
        frozen = largest[0]["provenance"]["encoder"]["freeze_tower"]
        whole = full["all real pairs, heads alone" if frozen else "all real pairs"]
        diverged = sum(row["lost"] for size in sizes for row in cells[name, size])
        shown += [f"{100 * mean(values[-1]) / whole:.0f} %", _tuned(result, largest[0]), str(diverged)]
        table.add(name, *shown, _mean(largest, "seconds", 1, ".0f"), _mean(largest, "peak bytes", 1e9, ".2f"))
    for name in full:
        table.add(name, *[None] * (len(sizes) - 1), spread(recalls(cells[name, 0])), "100 %", *[None] * 4)
    seeds = len({row["run"]["seed"] for row in result["rows"] if row["run"]["seed"] not in TUNING_SEEDS})
    config, real = largest[0]["provenance"]["config"], cells[next(iter(full)), 0][0]["provenance"]["pairs"]
    students = f"{seeds} seeds × {config['students']} students"
    evaluated = f"protocol {config['protocol']}, selection {config['select']}"
    steps = result["settings"]["distill"]["steps"]
    return table.markdown(
        f"Mean recall on test in percent, mean ± standard deviation over {students}, {evaluated}. "
        f"{columns(result.get('tuned', {'axes': ['rates']})['axes'])} "
        "Share of all real pairs' recall, with the same layers trained, seconds and memory are at the most pairs. "
        f"{sizes[-1]} pairs are {100 * sizes[-1] / real:.1f} % of {real:,}. {steps} outer steps "
        f"a phase of two, or all in one. {_never_learned(result)}{len(result['rows'])} runs, whose distillations took "
        f"{sum(row.get('seconds', 0.0) for row in result['rows']) / 3600:.1f} CPU hours in all. "
        + source(result, ran="one thread a run")
    )


def questions(results: Path, sets: Sequence[str]) -> str:
    """Differences in mean recall, paired by seed."""
    by_data = {data: one for data in sets if (one := read(results / f"ablation-{data}.json")) is not None}
    if not by_data:
        return NOT_YET
    sizes = sorted({pairs for one in by_data.values() for _, pairs in measured(one) if pairs})
    table = Table(["question", "difference", "data", *(f"{size} pairs" for size in sizes)], left=(0, 1, 2))
    for question, names in QUESTIONS.items():
        for data, ablation in by_data.items():
            cells = measured(ablation)
            shown = []
            for size in sizes:
                differences = paired(*(by_seed(cells[name, size]) for name in names))
                shown.append(str(Interval.of(differences)) if differences else "–")
            table.add(question, " − ".join(names), data, *shown)
    first = next(iter(by_data.values()))
    commands = "`, `".join(one["command"] for one in by_data.values())
    return table.markdown(
        "Points of mean recall on test; 95 % intervals of Student's t over seeds, each line by itself. "
        + source(first | {"command": commands}, ran="")
    )


def _never_learned(result: Result) -> str:
    shares = [100 * row["never learned"] for row in result["rows"] if "never learned" in row]
    if not shares:
        return ""
    return f"Pairs that an expert never learns, of all that forgetting chose from: {mean(shares):.0f} %. "


def _tuned(result: Result, row: Row) -> str:
    """By the method's own runs on val: a grid may have tried fewer values of one method than of another."""
    from ptmst.schema import from_json
    from ptmst.studies.runs import Run
    from ptmst.studies.tuning import tuned

    one, runs = from_json(Run, row["run"]), [from_json(Run, other["run"]) for other in result["rows"]]
    return tuned(one, [run for run in runs if run.tunes and run.method == one.method])


def _mean(rows: Rows, key: str, unit: float, style: str) -> str:
    values = [row[key] for row in rows if row.get(key)]
    return f"{mean(values) / unit:{style}}" if values else ""
