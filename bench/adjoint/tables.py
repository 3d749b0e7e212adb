"""The tables of docs/adjoint.md, and those of the study in docs/results.md, made from the results."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import inf
from pathlib import Path
from statistics import mean, median
from typing import Any

from bench.adjoint.cells import DATA, EXACT, STUDENTS, TRUNCATED, Form, Side
from bench.adjoint.plans import (
    ALTERNATIVES,
    CONTESTED,
    FORMS,
    OPTIMIZERS,
    SCREENED,
    SEGMENTS,
    SETTINGS,
    UNDISTILLED,
    best_side,
    part,
    scored,
)
from bench.result import Result, Row, Rows
from bench.spread import paired, spread
from bench.tables import NOT_YET, Table, bold, source
from ptmst import schema
from ptmst.evaluation.intervals import Interval


def both(results: Path, plan: str) -> Result | None:
    """A part with Adam as the outer optimizer, and the same with SGD if that was run."""
    parts = [one for name in (plan, f"{plan}-sgd") if (one := part(results, name)) is not None]
    if not parts:
        return None
    commands = "`, `".join(one["command"] for one in parts)
    return parts[0] | {"rows": [row for one in parts for row in one["rows"]], "command": commands}


def side_of(row: Mapping[str, Any]) -> Side:
    return schema.from_json(Side, row["cell"]["side"])


def by_seed(rows: Iterable[Mapping[str, Any]], form: Form = "per-phase") -> dict[int, float]:
    """Mean recall on test of a seed's students."""
    return {row["cell"]["seed"]: mean(scored(row, form, "test")) for row in rows}


def experts(results: Path) -> str:
    """Recall of the experts after each epoch."""
    result = part(results, "experts")
    if result is None:
        return NOT_YET
    epochs = range(len(result["rows"][0]["recall"][0]))
    table = Table(["data", "experts", *map(str, epochs)])
    for data in DATA:
        recalls = [one for row in result["rows"] if row["cell"]["data"] == data for one in row["recall"]]
        table.add(data, str(len(recalls)), *(f"{mean(column):.1f}" for column in zip(*recalls, strict=True)))
    return table.markdown(_about(result, "Mean recall on test in percent, after each epoch."))


def screening(results: Path) -> str:
    """Every cell; the best mean of each column is bold."""
    result = part(results, "screening")
    if result is None:
        return NOT_YET
    return _sides(result, SCREENED, "Share c, clip κ", _rank_correlation(result["rows"]))


def _rank_correlation(rows: Rows) -> str:
    """Spearman's, over the lines of a column: does recall follow the matching loss?"""
    from scipy.stats import spearmanr

    correlations = []
    for data, setting in _cases(rows):
        by_side: dict[Side, Rows] = defaultdict(list)
        for row in _case(rows, data, setting):
            by_side[side_of(row)].append(row)
        recall = [mean(by_seed(one).values()) for one in by_side.values()]
        loss = [mean(mean(row["loss"]) for row in one) for one in by_side.values()]
        alike = len(set(recall)) == 1 or len(set(loss)) == 1
        correlations.append("–" if alike else f"{float(spearmanr(recall, loss).statistic):.2f}")
    return f" Rank correlation of recall and L over the lines, by column: {', '.join(correlations)}."


def alternatives(results: Path) -> str:
    """The other recursions beside the truncated one and the best damped one of the same seeds."""
    result, before = part(results, "alternatives"), part(results, "screening")
    if result is None or before is None:
        return NOT_YET
    # And those of the engine's own recursions that differ from an alternative in one thing only.
    best = best_side(before["rows"])
    shown = list(dict.fromkeys([TRUNCATED, Side(adjoint=0.5), best, EXACT, Side(adjoint=1, clip=1)]))
    rows = [row for row in before["rows"] if side_of(row) in shown] + result["rows"]
    return _sides(result | {"rows": rows}, [*shown, *ALTERNATIVES], "Recursion", against=best)


def contest(results: Path) -> str:
    """The best of the alternatives against the best that was screened, on the confirmation's seeds."""
    result, confirmed, screened = (part(results, plan) for plan in ("contest", "confirmation", "screening"))
    if result is None or confirmed is None or screened is None:
        return NOT_YET
    best, other = best_side(screened["rows"]), side_of(result["rows"][0])
    rows = result["rows"] + [row for row in confirmed["rows"] if row["cell"]["setting"] in CONTESTED]
    table = Table(["setting", "data", best.label, other.label, "difference"], left=(0, 1))

    def compare(setting: str, data: str, mine: Mapping[int, float], its: Mapping[int, float]) -> None:
        seeds = sorted(mine.keys() & its.keys())
        means = [f"{mean(side[seed] for seed in seeds):.1f}" for side in (mine, its)]
        table.add(setting, data, *means, str(Interval.of(paired(its, mine))))

    compare(bold("all"), " and ".join(DATA), *(pooled(rows, CONTESTED, side) for side in (best, other)))
    for setting in CONTESTED:
        for data in DATA:
            by_side = runs(rows, data, setting)
            compare(setting, data, by_side[best, False], by_side[other, False])
    about = (
        "Mean recall on test in percent of 3 students a seed; differences paired by seed over five seeds, with the "
        "95 % interval of Student's t (of the first line: of the seeds' means over all settings and both data sets)."
    )
    return table.markdown(_about(result, about))


def _cases(rows: Rows) -> list[tuple[str, str]]:
    """Columns of a table: data set and setting."""
    return list(dict.fromkeys((row["cell"]["data"], row["cell"]["setting"]) for row in rows))


def _sides(result: Result, sides: Sequence[Side], title: str, more: str = "", against: Side | None = None) -> str:
    """One line per recursion; with `against`, its difference from that one, paired by seed."""
    cases = _cases(result["rows"])
    difference = [f"− ({against.label})"] if against else []
    columns = [*(f"{data}, {setting}" for data, setting in cases), *difference, "worst", "L", "diverged", "step"]
    table = Table([title, *columns])
    rows: dict[Side, dict[tuple[str, str], Rows]] = defaultdict(lambda: defaultdict(list))
    for row in result["rows"]:
        rows[side_of(row)][row["cell"]["data"], row["cell"]["setting"]].append(row)
    recall = {
        (side, case): [r for row in rows[side][case] for r in scored(row, "per-phase", "test")]
        for side in sides
        for case in cases
    }
    best = {case: max((mean(recall[side, case]) for side in sides if recall[side, case]), default=0) for case in cases}
    for side in sides:
        mine = [row for case in cases for row in rows[side][case]]
        if not mine:
            continue
        values = [(case, recall[side, case]) for case in cases]
        cells = [bold(spread(recalls), bool(recalls) and mean(recalls) == best[case]) for case, recalls in values]
        ended = [row for row in mine if row["diverged at"] is None]
        worst = min(recall for _, recalls in values for recall in recalls)
        diverged = mean(s is None for row in mine for s in row["students"].get("per-phase", [None] * STUDENTS))
        loss = f"{mean(mean(row['loss']) for row in ended):.2f}" if ended else "–"
        step = f"{1e3 * mean(row['cpu s of a step'] for row in ended):.0f} ms" if ended else "–"
        if against:
            by = [{case: by_seed(rows[one][case]) for case in cases} for one in (side, against)]
            seeds = sorted(by[0][cases[0]])
            differences = [mean(by[0][case][seed] - by[1][case][seed] for case in cases) for seed in seeds]
            cells.append(str(Interval.of(differences)) if side != against else "")
        table.add(side.label, *cells, f"{worst:.1f}", loss, f"{100 * diverged:.0f} %", step)
    about = (
        "Mean recall on test in percent, mean ± standard deviation over all students of all seeds (3 each); the worst "
        "of all students; matching loss L of the last 20 outer steps; share of students that diverged (recall 0); CPU "
        "time of an outer step." + more
    )
    if against:
        about += f" Differences from {against.label}: seeds' means over all columns, with their 95 % interval."
    return table.markdown(_about(result, about))


def tuning(results: Path) -> str:
    """Recall on val at every factor of the outer rates."""
    result, screened = both(results, "tuning"), part(results, "screening")
    if result is None or screened is None:
        return NOT_YET
    sides = (TRUNCATED, best_side(screened["rows"]), EXACT)
    labels = [f"{name} × {factor:.2g}" for name, (_, factors) in OPTIMIZERS.items() for factor in factors]
    table = Table(["data", "adjoint", *labels], left=(0, 1))
    for data, side in product(DATA, sides):
        cells = []
        for label in labels:
            rows = [row for row in _case(result["rows"], data, label) if side_of(row) == side]
            values = [value for row in rows for value in scored(row, "per-phase", "val")]
            cells.append(f"{mean(values):.1f}" if values else "–")
        table.add(data, side.label, *cells)
    return table.markdown(_about(result, "Mean recall on val in percent; a run that diverged counts as 0."))


def confirmation(results: Path) -> str:
    """All settings with Adam together, then each by itself: paired differences; undistilled pairs at the end."""
    result, screened = both(results, "confirmation"), part(results, "screening")
    if result is None or screened is None:
        return NOT_YET
    best, rows = best_side(screened["rows"]), result["rows"]
    sides = (TRUNCATED, best, EXACT)
    columns = ["setting", "data", "seeds", "truncated", best.label, "exact"]
    columns += [f"{best.label} − truncated", "in equal seconds", "exact − truncated", "diverged"]
    table = Table(columns, left=(0, 1))
    for name, title in (("adam", "all with Adam"), ("sgd", "all with SGD")):
        together = [pooled(rows, [*SETTINGS[name]], side) for side in sides]
        if all(together):
            table.add(bold(title), " and ".join(DATA), *_compared(together, {}), "")
    for setting, data in product((setting for settings in SETTINGS.values() for setting in settings), DATA):
        by_side = runs(rows, data, setting)
        mine = [by_side.get((side, False), {}) for side in sides]
        if set.intersection(*(set(one) for one in mine)):
            diverged = "/".join(str(_diverged(rows, data, setting, side)) for side in sides)
            table.add(setting, data, *_compared(mine, by_side.get((TRUNCATED, True), {})), diverged)
    initial = part(results, "undistilled")
    for data in DATA if initial is not None else ():
        recall = by_seed(row for row in (initial or {})["rows"] if row["cell"]["data"] == data)
        table.add("real pairs, undistilled", data, str(len(recall)), f"{mean(recall.values()):.1f}", *[None] * 6)
    about = (
        "Mean recall on test in percent of 3 students a seed; differences paired by seed, with the 95 % interval of "
        "Student's t (of the first two lines: of the seeds' means over all settings and both data sets). In equal "
        "seconds: above the truncated gradient with 1.2 times the outer steps. Diverged: students that diverged, or "
        "whose distillation did, of truncated/damped/exact; they count as 0."
    )
    return table.markdown(_about(result, about))


def pooled(rows: Rows, settings: Sequence[str], side: Side) -> dict[int, float]:
    """By seed: the mean over settings and data sets, of seeds that have them all."""
    values: dict[int, list[float]] = defaultdict(list)
    measured = {row["cell"]["setting"] for row in rows}
    cases = [(data, setting) for data in DATA for setting in settings if setting in measured]
    for data, setting in cases:
        for seed, value in runs(rows, data, setting).get((side, False), {}).items():
            values[seed].append(value)
    return {seed: mean(of) for seed, of in values.items() if len(of) == len(cases)}


def _compared(sides: Sequence[Mapping[int, float]], longer: Mapping[int, float]) -> list[str]:
    """Cells of truncated, damped and exact, over the seeds that all have."""
    seeds = set.intersection(*(set(side) for side in sides))
    truncated, damped, exact = ({seed: side[seed] for seed in sorted(seeds)} for side in sides)
    means = [f"{mean(side.values()):.1f}" for side in (truncated, damped, exact)]
    pairs = ((damped, truncated), (damped, longer), (exact, truncated))
    against = [str(Interval.of(paired(*pair))) if paired(*pair) else "–" for pair in pairs]
    return [str(len(seeds)), *means, *against]


def _diverged(rows: Rows, data: str, setting: str, side: Side) -> int:
    mine = [row for row in _case(rows, data, setting) if side_of(row) == side]
    steps = min(row["cell"]["distill"]["steps"] for row in mine)
    mine = [row for row in mine if row["cell"]["distill"]["steps"] == steps]
    return sum(student is None for row in mine for student in row["students"].get("per-phase", [None] * STUDENTS))


def segments(results: Path) -> str:
    """Recall by the part of the experts' trajectories that was matched."""
    result = part(results, "segments")
    if result is None:
        return NOT_YET
    table = Table(["data", "adjoint", *(f"{start} → {start + 1}" for start in SEGMENTS)], left=(0, 1))
    for data, side in product(DATA, dict.fromkeys(side_of(row) for row in result["rows"])):
        cases = [_case(result["rows"], data, f"epoch {start}") for start in SEGMENTS]
        table.add(data, side.label, *(_spread([row for row in rows if side_of(row) == side], "test") for rows in cases))
    about = (
        "Mean recall on test in percent, mean ± standard deviation over the students of three seeds, by the one epoch "
        "of the experts' trajectories that is matched."
    )
    return table.markdown(_about(result, about))


def _case(rows: Rows, data: str, setting: str) -> Rows:
    return [row for row in rows if (row["cell"]["data"], row["cell"]["setting"]) == (data, setting)]


def _spread(rows: Rows, split: str, form: Form = "per-phase") -> str:
    """Mean and standard deviation over the students of all seeds."""
    return spread([value for row in rows for value in scored(row, form, split)])


def combination(results: Path) -> str:
    """What goes with the damped adjoint: on val, which decides, and on test."""
    result = part(results, "combination")
    if result is None:
        return NOT_YET
    columns = list(product(DATA, ("val", "test")))
    table = Table(["setting", *(f"{data}, {split}" for data, split in columns)])
    for setting in dict.fromkeys(row["cell"]["setting"] for row in result["rows"]):
        table.add(setting, *(_spread(_case(result["rows"], data, setting), split) for data, split in columns))
    about = (
        "Mean recall in percent, mean ± standard deviation over the students of three seeds; shortcut trajectories, 50 "
        f"pairs, 400 outer steps in all, {side_of(result['rows'][0]).label}."
    )
    return table.markdown(_about(result, about))


PHASES: list[tuple[str, str, Form]] = [
    ("one phase, 400 steps", "one", "per-phase"),
    ("one phase, 800 steps", "one, longer", "per-phase"),
    ("two phases, 200 steps each", "two", "per-phase"),
    ("– the first alone", "two", "first"),
    ("– the second alone", "two", "second"),
    ("– the pairs of both at once", "two", "at once"),
    ("two phases, 400 steps each", "two, longer", "per-phase"),
    ("– the pairs of both at once", "two, longer", "at once"),
    ("two phases over the span of the first, 200 steps each", "two alike", "per-phase"),
    ("– the pairs of both at once", "two alike", "at once"),
]
"""Lines: their title, the setting and the protocol of evaluation."""


def phases(results: Path) -> str:
    """What two phases lose against one."""
    result = part(results, "phases")
    if result is None:
        return NOT_YET
    # Only complete seeds, so that all cells have the same ones.
    count = Counter(row["cell"]["seed"] for row in result["rows"])
    rows = [row for row in result["rows"] if count[row["cell"]["seed"]] == max(count.values())]
    sizes = sorted({row["cell"]["setting"].rpartition(", ")[2] for row in rows}, key=len)
    columns = list(product(sizes, DATA))
    table = Table(["students train on", *(f"{data}, {size}" for size, data in columns)])
    for title, setting, form in PHASES:
        table.add(title, *(_spread(_case(rows, data, f"{setting}, {size}"), "test", form) for size, data in columns))
    about = (
        f"Mean recall on test in percent, mean ± standard deviation over {STUDENTS} students each of "
        f"{len({row['cell']['seed'] for row in rows})} seeds; shortcut trajectories, truncated gradient, the same rates"
        " for all. Students train for 101 epochs on each phase, or on all pairs at once, of which none matches one of "
        "the other phase."
    )
    return table.markdown(_about(result, about))


def neighbors(results: Path) -> str:
    """The paper's measure of oscillation: gradients of adjacent start points, truncated."""
    result = part(results, "why")
    if result is None:
        return NOT_YET
    states = result["rows"][0]["states"]
    starts = range(len(next(iter(states.values()))[TRUNCATED.label]["neighbors"]["norm"]))
    table = Table(["pairs", None, *map(str, starts)], left=(0, 1))
    for state in states:
        rows = [row["states"][state][TRUNCATED.label]["neighbors"] for row in result["rows"]]
        for name, title, style in (("cosine", "cosine with the next", ".2f"), ("norm", "norm", ".3f")):
            cells = [f"{mean(column):{style}}" for column in zip(*(row[name] for row in rows), strict=True)]
            table.add(state, title, *cells, *[""] * (len(starts) - len(cells)))
    about = (
        "By start point of the one epoch that is matched: cosine of the images' gradient with that of the next one, on "
        "the same batches, and its norm; truncated gradient, means over data sets, seeds and four draws each."
    )
    return table.markdown(_about(result, about))


def real_tower(results: Path) -> str:
    """A tower of timm's: the truncated gradient against the best, undistilled pairs and all of them."""
    result = part(results, "real-tower")
    if result is None:
        return NOT_YET
    table = Table(["trained on", "recall", "worst", "L", "step"])
    distilled = [row for row in result["rows"] if row["cell"]["measure"] == "recall"]
    for row in sorted(distilled, key=lambda row: row["cell"]["setting"] != UNDISTILLED):
        values, still = scored(row, "per-phase", "test"), row["cell"]["setting"] == UNDISTILLED
        name = "real pairs, undistilled" if still else side_of(row).label
        cost = ["", ""] if still else [f"{mean(row['loss']):.2f}", f"{row['cpu s of a step']:.1f} s"]
        table.add(name, spread(values), f"{min(values):.1f}", *cost)
    for row in (row for row in result["rows"] if row["cell"]["measure"] == "experts"):
        last = [recalls[-1] for recalls in row["recall"]]
        table.add(f"all real pairs ({len(last)} experts)", spread(last), f"{min(last):.1f}", None, None)
    about = (
        f"Mean recall on test in percent of {STUDENTS} students on the set of one seed, mean ± standard deviation; "
        "matching loss L of the last 20 outer steps; CPU time of an outer step."
    )
    return table.markdown(_about(result, about))


def forms(results: Path) -> str:
    """The confirmation under each protocol of evaluation."""
    result, screened = part(results, "confirmation"), part(results, "screening")
    if result is None or screened is None:
        return NOT_YET
    best = best_side(screened["rows"])
    table = Table(["evaluation", "data", "truncated", "damped", "difference"], left=(0, 1))
    for form, data in product(FORMS, DATA):
        recalls: dict[Side, dict[int, list[float]]] = {TRUNCATED: defaultdict(list), best: defaultdict(list)}
        for setting in SETTINGS["adam"]:
            by_side = runs(result["rows"], data, setting, form)
            one, other = by_side.get((TRUNCATED, False), {}), by_side.get((best, False), {})
            for seed in one.keys() & other.keys():
                recalls[TRUNCATED][seed].append(one[seed])
                recalls[best][seed].append(other[seed])
        one, other = ({seed: mean(values) for seed, values in recalls[side].items()} for side in (TRUNCATED, best))
        if one:
            means = [f"{mean(recall.values()):.1f}" for recall in (one, other)]
            table.add(form, data, *means, str(Interval.of(paired(other, one))))
    about = "Means over all settings with Adam; differences paired by seed, with their 95 % interval."
    return table.markdown(_about(result, about))


def reasons(results: Path) -> str:
    """What each recursion's gradients are worth; the first start point, with an untrained student, by itself."""
    result = part(results, "why")
    if result is None:
        return NOT_YET
    states: dict[str, Row] = result["rows"][0]["states"]
    first_state = next(iter(states.values()))
    sides = [name for name, of in first_state.items() if isinstance(of, dict) and "gain" in of]
    fixed = list(first_state[sides[0]]["fixed"])
    columns = ["pairs", "adjoint", "cosine with exact, start 0 / later", "growth, start 0 / later"]
    columns += ["largest / median norm", f"average over batches, start {' / '.join(fixed)}", "noise / signal", "gain"]
    table = Table(columns, left=(0, 1))
    for state, side in product(states, sides):
        at = [row["states"][state] for row in result["rows"]]
        rows = [one[side] for one in at]
        cosines = [f"{mean(by_start(at, side, 'cosine with exact', first)):.2f}" for first in (True, False)]
        growth = [last_growth(at, side, first) for first in (True, False)] if "growth" in rows[0] else []
        table.add(
            state,
            side,
            " / ".join(cosines),
            " / ".join(f"{quantile(values, 0.9):.1f}" for values in growth) or "–",
            f"{mean(max(row['norm']) / median(row['norm']) for row in rows):.0f}",
            " / ".join(f"{mean(row['fixed'][start]['cosine of averages'] for row in rows):.2f}" for start in fixed),
            " / ".join(_noise(rows, start) for start in fixed),
            f"{mean(row['gain'] for row in rows):+.4f}",
        )
    about = (
        "The images' gradients at fixed pairs, over data sets and seeds. Of 48 outer steps that differ in expert, "
        "start point (0, 1 or 2) and batches: mean cosine with the exact gradient of the same step; 90th percentile of "
        "‖λ₁‖/‖λ_n‖ in the image group; largest over median norm. Of one expert and start point: cosine of the average "
        "over 32 draws of batches with the exact gradient's average over 32 others, and variance over the squared norm "
        "of the mean. Gain: how much the median matching loss of 24 outer steps falls after a step of 0.02 (root mean "
        "square) against the average gradient of 24 others."
    )
    return table.markdown(_about(result, about))


def _noise(rows: Rows, start: str) -> str:
    """Variance over the squared norm of the mean."""
    noise, signal = (mean(row["fixed"][start][name] for row in rows) for name in ("noise", "signal"))
    ratio = noise / signal if signal > 0 else inf
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}" if ratio < 1000 else "∞"


def by_start(at: Sequence[Mapping[str, Any]], side: str, name: str, first: bool) -> list[Any]:
    """What every draw measured: of those that start at epoch 0, or of the later ones."""
    return [
        value
        for one in at
        for start, value in zip(one["starts"], one[side][name], strict=True)
        if (start == 0) == first
    ]


def last_growth(at: Sequence[Mapping[str, Any]], side: str, first: bool) -> list[float]:
    """‖λ₁‖/‖λ_n‖ of every draw, image group."""
    return [growth[-1][0] for growth in by_start(at, side, "growth", first)]


def quantile(values: Sequence[float], share: float) -> float:
    """With linear interpolation, as in numpy."""
    import numpy as np

    return float(np.quantile(values, share))


def runs(rows: Rows, data: str, setting: str, form: Form = "per-phase") -> dict[tuple[Side, bool], dict[int, float]]:
    """Mean recall by seed, of each recursion; and of the truncated one with more outer steps."""
    steps = min((row["cell"]["distill"]["steps"] for row in rows), default=0)
    by_side: dict[tuple[Side, bool], Rows] = defaultdict(list)
    for row in _case(rows, data, setting):
        by_side[side_of(row), row["cell"]["distill"]["steps"] > steps].append(row)
    return {key: by_seed(mine, form) for key, mine in by_side.items()}


def _about(result: Result, about: str) -> str:
    return f"{about} {source(result, ran='one thread a run')}"
