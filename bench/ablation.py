"""The tables of docs/results.md, made from what `ptmst ablate` has measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, get_args

from bench.result import Result, Row, Rows, read
from bench.spread import paired, spread
from bench.tables import NOT_YET, Table, bold, source
from ptmst.config import TUNING_SEEDS, Selection
from ptmst.evaluation.intervals import Interval

if TYPE_CHECKING:
    from ptmst.studies.runs import Run

QUESTIONS = {
    "Do phases help, on shortcuts?": ("ptm-st", "st"),
    "Does the shortcut help, in phases?": ("ptm-st", "ptm"),
    "Do phases help, on raw trajectories?": ("ptm", "base"),
    "Does a shortcut help, in one phase?": ("st", "base"),
    "Do both together?": ("ptm-st", "base"),
    "Both against LoRS": ("ptm-st", "lors"),
    "Both against RepBlend": ("ptm-st", "repblend"),
    "The damped adjoint, on a shortcut": ("st-adjoint", "st"),
    "Low rank instead of a full S, on a shortcut": ("st-low-rank", "st"),
    "A shortcut, with an S of low rank": ("st-low-rank", "lors"),
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


def on_other_data(results: Path, name: str, own: str) -> str:
    """Sets of an ablation on `own` data as they score on others, from `name`.json; beside their own, best last."""
    result, home = read(results / f"{name}.json"), read(results / f"ablation-{own}.json")
    if result is None or home is None:
        return NOT_YET
    there: dict[str, list[float]] = defaultdict(list)
    seeds: dict[str, int] = defaultdict(int)
    for row in result["rows"]:
        there[row["method"]] += row["mean recall"]
        seeds[row["method"]] += 1
    here = {method: recalls(rows) for (method, _), rows in measured(home).items()}
    full = max(mean(values) for values in there.values())
    table = Table(["method", "runs that ended well", own, result["rows"][0]["scored"]["data"], "of all"])
    for method in sorted(there, key=lambda method: mean(there[method])):
        values, share = there[method], f"{100 * mean(there[method]) / full:.0f} %"
        scored = [value for value in here[method] if value]
        table.add(method, str(seeds[method]), spread(scored), spread(values), share)
    images, captions = (result["rows"][0]["scored"][key] for key in ("images", "captions"))
    return table.markdown(
        f"Mean recall on test in percent, mean ± standard deviation over seeds × 3 students, of runs that did not end "
        f"early; {images:,} images with {captions:,} captions of the other data. {source(result, ran='')}"
    )


def methods(results: Path, data: str) -> str:
    """One row per method: recall by number of pairs, share of all real pairs, what was tuned and what it cost.

    `data` names the file, ablation-DATA.json. Under a method whose set is an average a row has its last leaves.
    """
    from ptmst.studies.ablation import columns

    result = read(results / f"ablation-{data}.json")
    if result is None:
        return NOT_YET
    cells = measured(result)
    sizes, names = _sizes(cells), _names(result, cells)
    full = {name: mean(recalls(rows)) for (name, pairs), rows in cells.items() if not pairs}
    axes = result.get("tuned", {"axes": ["rates"]})["axes"]
    counted = ["trials"] * (axes != ["rates"])
    head = ["method", *(f"{size} pairs" for size in sizes), "of all", "tuned", *counted, "diverged", "s", "GB"]
    table = Table(head, left=(0, head.index("tuned")))
    best = {size: max(mean(recalls(cells[name, size])) for name in names if (name, size) in cells) for size in sizes}
    for name in names:
        by_size = {size: recalls(cells[name, size]) for size in sizes if (name, size) in cells}
        shown = [bold(spread(v), mean(v) == best[size]) if (v := by_size.get(size)) else None for size in sizes]
        largest = cells[name, max(by_size)]
        frozen = largest[0]["provenance"]["encoder"]["freeze_tower"]
        whole = full["all real pairs, heads alone" if frozen else "all real pairs"]
        diverged = sum(row["lost"] for size in by_size for row in cells[name, size])
        shown += [f"{100 * mean(by_size[max(by_size)]) / whole:.0f} %", _tuned(result, largest[0])]
        shown += [str(_trials(result, name))] * len(counted)
        shown += [str(diverged), _mean(largest, "seconds", 1, ".0f"), _mean(largest, "peak bytes", 1e9, ".2f")]
        table.add(name, *shown)
        last = {size: _last(cells[name, size]) for size in by_size}
        if any(last.values()):
            values = [spread(recalls(rows)) if (rows := last.get(size)) else None for size in sizes]
            table.add("– its last leaves", *values, *[None] * (len(head) - 1 - len(sizes)))
    for name in full:
        fill = [None] * (len(head) - 2 - len(sizes))
        table.add(name, *[None] * (len(sizes) - 1), spread(recalls(cells[name, 0])), "100 %", *fill)
    seeds = len({row["run"]["seed"] for rows in cells.values() for row in rows})
    config, real = largest[0]["provenance"]["config"], cells[next(iter(full)), 0][0]["provenance"]["pairs"]
    students = f"{seeds} seeds × {config['students']} students"
    evaluated = f"protocol {config['protocol']}, selection {config['select']}"
    steps = result["settings"]["distill"]["steps"]
    return table.markdown(
        f"Mean recall on {result.get('split', 'test')} in percent, mean ± standard deviation over {students}, "
        f"{evaluated}. {columns(axes)} "
        "Share of all real pairs' recall, with the same layers trained, seconds and memory are at the most pairs. "
        f"{sizes[-1]} pairs are {100 * sizes[-1] / real:.1f} % of {real:,}. {steps} outer steps "
        f"a phase of two, or all in one. {_never_learned(result)}{len(result['rows'])} runs, whose distillations took "
        f"{sum(row.get('seconds', 0.0) for row in result['rows']) / 3600:.1f} CPU hours in all. "
        + source(result, ran="one thread a run")
    )


def against(results: Path, data: str, to: str | None = None) -> str:
    """Differences to the method `to`, or to the best at each size; and what averages of leaves gain on their last."""
    result = read(results / f"ablation-{data}.json")
    if result is None:
        return NOT_YET
    cells = measured(result)
    sizes, names = _sizes(cells), _names(result, cells)

    def compared(size: int) -> str:
        return to or max((n for n in names if (n, size) in cells), key=lambda name: mean(recalls(cells[name, size])))

    table = Table(["", *(f"{size} pairs, to {compared(size)}" for size in sizes)])
    for name in names:
        shown = [
            _difference(by_seed(cells[name, size]), by_seed(cells[compared(size), size]), name != compared(size))
            for size in sizes
        ]
        table.add(name, *shown)
    for name in names:
        last = {size: _last(cells[name, size]) for size in sizes}
        if any(last.values()):
            gained = [_difference(by_seed(cells[name, size]), by_seed(last[size])) for size in sizes]
            table.add(f"{name}: its average − its last leaves", *gained)
    return table.markdown(
        f"Points of mean recall on {result.get('split', 'test')}; 95 % intervals of Student's t over paired seeds, of "
        "each of which the students are averaged first; each line by itself. " + source(result, ran="one thread a run")
    )


def _difference(one: Mapping[int, float], other: Mapping[int, float], shown: bool = True) -> str | None:
    differences = paired(one, other)
    return str(Interval.of(differences)) if differences and shown else None


def _sizes(cells: Mapping[tuple[str, int], Rows]) -> list[int]:
    return sorted({pairs for _, pairs in cells if pairs})


def _names(result: Result, cells: Mapping[tuple[str, int], Rows]) -> list[str]:
    """Methods in the order of the catalog: runs are stored in the order in which they ended."""
    return sorted({name for name, pairs in cells if pairs}, key=[*get_args(Selection), *result["methods"]].index)


def _last(rows: Rows) -> Rows:
    """The runs whose sets are averages, scored without one."""
    return [row | row["last leaves"] for row in rows if "last leaves" in row]


def questions(results: Path, sets: Sequence[str]) -> str:
    """Differences in mean recall, paired by seed."""
    by_data = {data: one for data in sets if (one := read(results / f"ablation-{data}.json")) is not None}
    if not by_data:
        return NOT_YET
    sizes = sorted({size for one in by_data.values() for size in _sizes(measured(one))})
    table = Table(["question", "difference", "data", *(f"{size} pairs" for size in sizes)], left=(0, 1, 2))
    for question, names in QUESTIONS.items():
        for data, ablation in by_data.items():
            cells = measured(ablation)
            mine, its = ({size: by_seed(cells[name, size]) for size in sizes} for name in names)
            shown = [_difference(mine[size], its[size]) for size in sizes]
            if any(shown):
                table.add(question, " − ".join(names), data, *(cell or "–" for cell in shown))
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

    one = from_json(Run, row["run"])
    return tuned(one, [run for run in _tried(result) if run.method == one.method])


def _trials(result: Result, method: str) -> int:
    """How many settings of a method were tried, on all tuning seeds each."""
    return len({replace(run, seed=0) for run in _tried(result) if run.method == method})


def _tried(result: Result) -> list[Run]:
    from ptmst.schema import from_json
    from ptmst.studies.runs import Run

    runs = [from_json(Run, row["run"]) for row in result["rows"]]
    return [run for run in runs if run.tunes]


def _mean(rows: Rows, key: str, unit: float, style: str) -> str:
    values = [row[key] for row in rows if row.get(key)]
    return f"{mean(values) / unit:{style}}" if values else ""
