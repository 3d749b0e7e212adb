"""The tables of docs/adjoint.md, made from the results."""

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
    OPTIMISERS,
    SCREENED,
    SEGMENTS,
    SETTINGS,
    UNDISTILLED,
    best_side,
    scored,
)
from bench.reading import NOT_YET, Interval, Rows, paired, read, spread
from ptmst import schema


def both(results: Path, plan: str) -> dict[str, Any] | None:
    """A part with Adam as the outer optimiser, and the same with SGD where it was run."""
    found = [one for name in (plan, f"{plan}-sgd") if (one := read(results, name)) is not None]
    if not found:
        return None
    commands = "`, `".join(one["command"] for one in found)
    return found[0] | {"rows": [row for one in found for row in one["rows"]], "command": commands}


def side_of(row: Mapping[str, Any]) -> Side:
    return schema.from_json(Side, row["cell"]["side"])


def by_seed(rows: Iterable[Mapping[str, Any]], form: Form = "per-phase") -> dict[int, float]:
    """Mean recall on test of a seed's students."""
    return {row["cell"]["seed"]: mean(scored(row, form, "test")) for row in rows}


def experts(results: Path) -> str:
    found = read(results, "experts")
    if found is None:
        return NOT_YET
    epochs = range(len(found["rows"][0]["recall"][0]))
    lines = [f"| data | experts | {' | '.join(map(str, epochs))} |", f"|---|--:|{'--:|' * len(epochs)}"]
    for data in DATA:
        recalls = [one for row in found["rows"] if row["cell"]["data"] == data for one in row["recall"]]
        cells = [f"{mean(column):.1f}" for column in zip(*recalls, strict=True)]
        lines.append(f"| {data} | {len(recalls)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _source(found, "Mean recall on test in percent, after each epoch.")])


def screening(results: Path) -> str:
    """Every cell; the best mean of each column is bold."""
    found = read(results, "screening")
    if found is None:
        return NOT_YET
    return _sides(found, SCREENED, "Share c, clip κ", _rank_correlation(found["rows"]))


def _rank_correlation(rows: Rows) -> str:
    """Spearman's, over the sides of a column: does recall follow the matching loss?"""
    from scipy.stats import spearmanr

    found = []
    for data, setting in _cases(rows):
        by_side: dict[Side, Rows] = defaultdict(list)
        for row in _case(rows, data, setting):
            by_side[side_of(row)].append(row)
        recall = [mean(by_seed(one).values()) for one in by_side.values()]
        loss = [mean(mean(row["loss"]) for row in one) for one in by_side.values()]
        alike = len(set(recall)) == 1 or len(set(loss)) == 1
        found.append("–" if alike else f"{float(spearmanr(recall, loss).statistic):.2f}")
    return f" Rank correlation of recall and L over the sides, by column: {', '.join(found)}."


def alternatives(results: Path) -> str:
    """The other recursions beside the truncated form and the best damped one of the same seeds."""
    found, before = read(results, "alternatives"), read(results, "screening")
    if found is None or before is None:
        return NOT_YET
    # With those of the engine's own that differ from an alternative in one thing alone.
    kept = list(
        dict.fromkeys([TRUNCATED, Side(adjoint=0.5), best_side(before["rows"]), EXACT, Side(adjoint=1, clip=1)])
    )
    rows = [row for row in before["rows"] if side_of(row) in kept] + found["rows"]
    return _sides(found | {"rows": rows}, [*kept, *ALTERNATIVES], "Recursion", against=best_side(before["rows"]))


def contest(results: Path) -> str:
    """The best of the alternatives against the best that was screened, on the confirmation's seeds."""
    found, confirmed, screened = (read(results, plan) for plan in ("contest", "confirmation", "screening"))
    if found is None or confirmed is None or screened is None:
        return NOT_YET
    best, other = best_side(screened["rows"]), side_of(found["rows"][0])
    rows = found["rows"] + [row for row in confirmed["rows"] if row["cell"]["setting"] in CONTESTED]
    lines = [f"| setting | data | {best.label} | {other.label} | difference |", "|---|---|--:|--:|--:|"]

    def compared(setting: str, data: str, mine: Mapping[int, float], its: Mapping[int, float]) -> str:
        seeds = sorted(mine.keys() & its.keys())
        means = [f"{mean(side[seed] for seed in seeds):.1f}" for side in (mine, its)]
        return f"| {setting} | {data} | {' | '.join(means)} | {Interval.of(paired(its, mine))} |"

    lines.append(compared("**all**", " and ".join(DATA), *(pooled(rows, CONTESTED, side) for side in (best, other))))
    for setting in CONTESTED:
        for data in DATA:
            by_side = runs(rows, data, setting)
            lines.append(compared(setting, data, by_side[best, False], by_side[other, False]))
    about = (
        "Mean recall on test in percent of 3 students a seed; differences paired by seed over five seeds, with the "
        "95 % interval of Student's t (of the first line: of the seeds' means over all settings and both data sets)."
    )
    return "\n".join([*lines, "", _source(found, about)])


def _cases(rows: Rows) -> list[tuple[str, str]]:
    """Columns of a table of sides: data set and setting."""
    return list(dict.fromkeys((row["cell"]["data"], row["cell"]["setting"]) for row in rows))


def _sides(
    found: dict[str, Any], sides: Sequence[Side], title: str, more: str = "", against: Side | None = None
) -> str:
    """A line a side; with `against`, its difference from that side, paired by seed."""
    cases = _cases(found["rows"])
    columns = [*(f"{data}, {setting}" for data, setting in cases)]
    columns += [*([f"− ({against.label})"] if against else []), "worst", "L", "diverged", "step"]
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    rows: dict[Side, dict[tuple[str, str], Rows]] = defaultdict(lambda: defaultdict(list))
    for row in found["rows"]:
        rows[side_of(row)][row["cell"]["data"], row["cell"]["setting"]].append(row)
    recall = {
        (side, case): [r for row in rows[side][case] for r in scored(row, "per-phase", "test")]
        for side in sides
        for case in cases
    }
    best = {case: max((mean(recall[side, case]) for side in sides if recall[side, case]), default=0) for case in cases}
    for side in sides:
        cells = []
        for case in cases:
            values = recall[side, case]
            text = spread(values)
            cells.append(f"**{text}**" if values and mean(values) == best[case] else text)
        mine = [row for case in cases for row in rows[side][case]]
        if not mine:
            continue
        ended = [row for row in mine if row["diverged at"] is None]
        worst = min(value for case in cases for value in recall[side, case])
        lost = mean(s is None for row in mine for s in row["students"].get("per-phase", [None] * STUDENTS))
        loss = f"{mean(mean(row['loss']) for row in ended):.2f}" if ended else "–"
        step = f"{1e3 * mean(row['cpu s of a step'] for row in ended):.0f} ms" if ended else "–"
        if against:
            by = [{case: by_seed(rows[one][case]) for case in cases} for one in (side, against)]
            seeds = sorted(by[0][cases[0]])
            differences = [mean(by[0][case][seed] - by[1][case][seed] for case in cases) for seed in seeds]
            cells.append(str(Interval.of(differences)) if side != against else "")
        cells += [f"{worst:.1f}", loss, f"{100 * lost:.0f} %"]
        lines.append(f"| {side.label} | {' | '.join(cells)} | {step} |")
    about = (
        "Mean recall on test in percent, mean ± standard deviation over all students of all seeds (3 each); the worst "
        "of all students; matching loss L of the last 20 outer steps; share of students that diverged (recall 0); CPU "
        "time of an outer step." + more
    )
    if against:
        about += f" Differences from {against.label}: seeds' means over all columns, with their 95 % interval."
    return "\n".join([*lines, "", _source(found, about)])


def tuning(results: Path) -> str:
    found, screened = both(results, "tuning"), read(results, "screening")
    if found is None or screened is None:
        return NOT_YET
    sides = (TRUNCATED, best_side(screened["rows"]), EXACT)
    labels = [(name, factor) for name, (_, factors) in OPTIMISERS.items() for factor in factors]
    lines = [
        f"| data | side | {' | '.join(f'{name} × {factor:.2g}' for name, factor in labels)} |",
        f"|---|---|{'--:|' * len(labels)}",
    ]
    for data in DATA:
        for side in sides:
            cells = []
            for name, factor in labels:
                values = [
                    value
                    for row in found["rows"]
                    if (row["cell"]["data"], row["cell"]["setting"], side_of(row))
                    == (data, f"{name} × {factor:.2g}", side)
                    for value in scored(row, "per-phase", "val")
                ]
                cells.append(f"{mean(values):.1f}" if values else "–")
            lines.append(f"| {data} | {side.label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _source(found, "Mean recall on val in percent; a run that diverged counts as 0.")])


def confirmation(results: Path) -> str:
    """All of Adam's settings together, then setting by setting: paired differences, undistilled pairs at the end."""
    found, screened = both(results, "confirmation"), read(results, "screening")
    if found is None or screened is None:
        return NOT_YET
    best, rows = best_side(screened["rows"]), found["rows"]
    sides = (TRUNCATED, best, EXACT)
    lines = [
        f"| setting | data | seeds | truncated | {best.label} | exact | {best.label} − truncated | in equal seconds | "
        "exact − truncated | lost |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for title, settings in {"**all with Adam**": [*SETTINGS["adam"]], "**all with SGD**": [*SETTINGS["sgd"]]}.items():
        together = [pooled(rows, settings, side) for side in sides]
        if all(together):
            lines.append(_compared(title, " and ".join(DATA), together, {}, ""))
    for setting in (setting for settings in SETTINGS.values() for setting in settings):
        for data in DATA:
            by_side = runs(rows, data, setting)
            mine = [by_side.get((side, False), {}) for side in sides]
            if not set.intersection(*(set(one) for one in mine)):
                continue
            lost = "/".join(str(_lost(rows, data, setting, side)) for side in sides)
            lines.append(_compared(setting, data, mine, by_side.get((TRUNCATED, True), {}), lost))
    for row in _undistilled(results):
        lines.append(row)
    about = (
        "Mean recall on test in percent of 3 students a seed; differences paired by seed, with the 95 % interval of "
        "Student's t (of the first two lines: of the seeds' means over all settings and both data sets). In equal "
        "seconds: above the truncated form with 1.2 times the outer steps. Lost: students that diverged, or whose "
        "distillation did, of truncated/damped/exact; they count as 0."
    )
    return "\n".join([*lines, "", _source(found, about)])


def pooled(rows: Rows, settings: Sequence[str], side: Side) -> dict[int, float]:
    """By seed: the mean over settings and data sets, of seeds that have them all."""
    values: dict[int, list[float]] = defaultdict(list)
    measured = {row["cell"]["setting"] for row in rows}
    cases = [(data, setting) for data in DATA for setting in settings if setting in measured]
    for data, setting in cases:
        for seed, value in runs(rows, data, setting).get((side, False), {}).items():
            values[seed].append(value)
    return {seed: mean(found) for seed, found in values.items() if len(found) == len(cases)}


def _compared(
    setting: str, data: str, sides: Sequence[Mapping[int, float]], longer: Mapping[int, float], lost: str
) -> str:
    """A line of truncated, damped and exact, over the seeds that all have."""
    seeds = set.intersection(*(set(side) for side in sides))
    truncated, damped, exact = ({seed: side[seed] for seed in sorted(seeds)} for side in sides)
    means = [f"{mean(side.values()):.1f}" for side in (truncated, damped, exact)]
    pairs = ((damped, truncated), (damped, longer), (exact, truncated))
    against = [str(Interval.of(paired(*pair))) if paired(*pair) else "–" for pair in pairs]
    return f"| {' | '.join([setting, data, str(len(seeds)), *means, *against, lost])} |"


def _lost(rows: Rows, data: str, setting: str, side: Side) -> int:
    mine = [row for row in _case(rows, data, setting) if side_of(row) == side]
    steps = min(row["cell"]["distill"]["steps"] for row in mine)
    students = [
        row["students"].get("per-phase", [None] * STUDENTS) for row in mine if row["cell"]["distill"]["steps"] == steps
    ]
    return sum(student is None for found in students for student in found)


def _undistilled(results: Path) -> list[str]:
    """Lines of the pairs that distillation begins with."""
    found = read(results, "undistilled")
    if found is None:
        return []
    lines = []
    for data in DATA:
        by = by_seed(row for row in found["rows"] if row["cell"]["data"] == data)
        lines.append(f"| real pairs, undistilled | {data} | {len(by)} | {mean(by.values()):.1f} | | | | | | |")
    return lines


def segments(results: Path) -> str:
    """Recall by the part of the teachers' trajectories that was matched."""
    found = read(results, "segments")
    if found is None:
        return NOT_YET
    lines = [
        f"| data | side | {' | '.join(f'{start} → {start + 1}' for start in SEGMENTS)} |",
        f"|---|---|{'--:|' * len(SEGMENTS)}",
    ]
    sides = list(dict.fromkeys(side_of(row) for row in found["rows"]))
    for data in DATA:
        for side in sides:
            cells = []
            for start in SEGMENTS:
                mine = [row for row in _case(found["rows"], data, f"epoch {start}") if side_of(row) == side]
                cells.append(_spread(mine, "test"))
            lines.append(f"| {data} | {side.label} | {' | '.join(cells)} |")
    about = (
        "Mean recall on test in percent, mean ± standard deviation over the students of three seeds, by the one epoch "
        "of the teachers' trajectories that is matched."
    )
    return "\n".join([*lines, "", _source(found, about)])


def _case(rows: Rows, data: str, setting: str) -> Rows:
    return [row for row in rows if (row["cell"]["data"], row["cell"]["setting"]) == (data, setting)]


def _spread(rows: Rows, split: str, form: Form = "per-phase") -> str:
    """Mean and standard deviation over the students of all seeds."""
    return spread([value for row in rows for value in scored(row, form, split)])


def combination(results: Path) -> str:
    """What goes with the damped adjoint, on val, on which it is chosen, and on test."""
    found = read(results, "combination")
    if found is None:
        return NOT_YET
    lines = [
        f"| setting | {' | '.join(f'{data}, {split}' for data in DATA for split in ('val', 'test'))} |",
        f"|---|{'--:|' * (2 * len(DATA))}",
    ]
    for setting in dict.fromkeys(row["cell"]["setting"] for row in found["rows"]):
        cells = []
        for data in DATA:
            cells += [_spread(_case(found["rows"], data, setting), split) for split in ("val", "test")]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    about = (
        "Mean recall in percent, mean ± standard deviation over the students of three seeds; shortcut trajectories, 50 "
        f"pairs, 400 outer steps in all, {side_of(found['rows'][0]).label}."
    )
    return "\n".join([*lines, "", _source(found, about)])


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
"""Lines: their title, the setting and the form of evaluation."""


def phases(results: Path) -> str:
    """What two phases lose against one."""
    found = read(results, "phases")
    if found is None:
        return NOT_YET
    # Whole seeds alone, so that all cells have the same.
    count = Counter(row["cell"]["seed"] for row in found["rows"])
    rows = [row for row in found["rows"] if count[row["cell"]["seed"]] == max(count.values())]
    sizes = sorted({row["cell"]["setting"].rpartition(", ")[2] for row in rows}, key=len)
    columns = list(product(sizes, DATA))
    lines = [
        f"| students train on | {' | '.join(f'{data}, {size}' for size, data in columns)} |",
        f"|---|{'--:|' * len(columns)}",
    ]
    for title, setting, form in PHASES:
        cells = [_spread(_case(rows, data, f"{setting}, {size}"), "test", form) for size, data in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    about = (
        f"Mean recall on test in percent, mean ± standard deviation over {STUDENTS} students each of "
        f"{len({row['cell']['seed'] for row in rows})} seeds; shortcut trajectories, truncated form, the same rates "
        "for all. Students train for 101 epochs on each phase, or on all pairs at once, of which none matches one of "
        "the other phase."
    )
    return "\n".join([*lines, "", _source(found, about)])


def neighbours(results: Path) -> str:
    """The paper's measure of oscillation: gradients of start points side by side, in the truncated form."""
    found = read(results, "why")
    if found is None:
        return NOT_YET
    states = found["rows"][0]["states"]
    starts = range(len(next(iter(states.values()))[TRUNCATED.label]["neighbours"]["norm"]))
    lines = [f"| pairs | | {' | '.join(map(str, starts))} |", f"|---|---|{'--:|' * len(starts)}"]
    for state in states:
        rows = [row["states"][state][TRUNCATED.label]["neighbours"] for row in found["rows"]]
        for name, title, form in (("cosine", "cosine with the next", ".2f"), ("norm", "norm", ".3f")):
            cells = [f"{mean(column):{form}}" for column in zip(*(row[name] for row in rows), strict=True)]
            cells += [""] * (len(starts) - len(cells))
            lines.append(f"| {state} | {title} | {' | '.join(cells)} |")
    about = (
        "By start point of the one epoch that is matched: cosine of the images' gradient with that of the next one, "
        "batches alike, and its norm; truncated form, means over data sets, seeds and four draws each."
    )
    return "\n".join([*lines, "", _source(found, about)])


def real_tower(results: Path) -> str:
    found = read(results, "real-tower")
    if found is None:
        return NOT_YET
    distilled = [row for row in found["rows"] if row["cell"]["measure"] == "recall"]
    lines = ["| trained on | recall | worst | L | step |", "|---|--:|--:|--:|--:|"]
    for row in sorted(distilled, key=lambda row: row["cell"]["setting"] != UNDISTILLED):
        values, still = scored(row, "per-phase", "test"), row["cell"]["setting"] == UNDISTILLED
        name = "real pairs, undistilled" if still else side_of(row).label
        cells = [spread(values), f"{min(values):.1f}"]
        cells += ["", ""] if still else [f"{mean(row['loss']):.2f}", f"{row['cpu s of a step']:.1f} s"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for row in (row for row in found["rows"] if row["cell"]["measure"] == "experts"):
        last = [recalls[-1] for recalls in row["recall"]]
        lines.append(f"| all real pairs ({len(last)} experts) | {spread(last)} | {min(last):.1f} | | |")
    about = (
        f"Mean recall on test in percent of {STUDENTS} students on the set of one seed, mean ± standard deviation; "
        "matching loss L of the last 20 outer steps; CPU time of an outer step."
    )
    return "\n".join([*lines, "", _source(found, about)])


def forms(results: Path) -> str:
    """Whether the form of evaluation matters: Adam's sets, three ways of training students on them."""
    found, screened = read(results, "confirmation"), read(results, "screening")
    if found is None or screened is None:
        return NOT_YET
    best = best_side(screened["rows"])
    lines = ["| evaluation | data | truncated | damped | difference |", "|---|---|--:|--:|--:|"]
    for form in FORMS:
        for data in DATA:
            recalls: dict[Side, dict[int, list[float]]] = {TRUNCATED: defaultdict(list), best: defaultdict(list)}
            for setting in SETTINGS["adam"]:
                by_side = runs(found["rows"], data, setting, form)
                one, other = by_side.get((TRUNCATED, False), {}), by_side.get((best, False), {})
                for seed in one.keys() & other.keys():
                    recalls[TRUNCATED][seed].append(one[seed])
                    recalls[best][seed].append(other[seed])
            one, other = ({seed: mean(values) for seed, values in recalls[side].items()} for side in (TRUNCATED, best))
            if not one:
                continue
            difference = Interval.of(paired(other, one))
            lines.append(f"| {form} | {data} | {mean(one.values()):.1f} | {mean(other.values()):.1f} | {difference} |")
    about = "Means over all settings with Adam; differences paired by seed, with their 95 % interval."
    return "\n".join([*lines, "", _source(found, about)])


def reasons(results: Path) -> str:
    """What gradients are worth, side by side; the first start point, at which the student is untrained, by itself."""
    found = read(results, "why")
    if found is None:
        return NOT_YET
    states = list(found["rows"][0]["states"])
    sides = [
        name for name, of in found["rows"][0]["states"][states[0]].items() if isinstance(of, dict) and "gain" in of
    ]
    fixed = list(found["rows"][0]["states"][states[0]][sides[0]]["fixed"])
    lines = [
        "| pairs | side | cosine with exact, start 0 / later | growth, start 0 / later | largest / median norm | "
        f"average over batches, start {' / '.join(fixed)} | noise / signal | gain |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for state in states:
        for side in sides:
            at = [row["states"][state] for row in found["rows"]]
            rows = [one[side] for one in at]
            cells = [
                " / ".join(f"{mean(by_start(at, side, 'cosine with exact', first)):.2f}" for first in (True, False))
            ]
            growth = [last_growth(at, side, first) for first in (True, False)] if "growth" in rows[0] else []
            cells.append(" / ".join(f"{quantile(values, 0.9):.1f}" for values in growth) or "–")
            cells.append(f"{mean(max(row['norm']) / median(row['norm']) for row in rows):.0f}")
            cells.append(
                " / ".join(f"{mean(row['fixed'][s]['cosine of averages'] for row in rows):.2f}" for s in fixed)
            )
            ratios = []
            for start in fixed:
                noise, signal = (mean(row["fixed"][start][name] for row in rows) for name in ("noise", "signal"))
                ratio = noise / signal if signal > 0 else inf
                ratios.append(f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}" if ratio < 1000 else "∞")
            cells.append(" / ".join(ratios))
            cells.append(f"{mean(row['gain'] for row in rows):+.4f}")
            lines.append(f"| {state} | {side} | {' | '.join(cells)} |")
    about = (
        "The images' gradients at fixed pairs, over data sets and seeds. Of 48 outer steps that differ in expert, "
        "start point (0, 1 or 2) and batches: mean cosine with the exact gradient of the same step; 90th percentile of "
        "‖λ₁‖/‖λ_n‖ in the image group; largest over median norm. Of one expert and start point: cosine of the average "
        "over 32 draws of batches with the exact gradient's average over 32 others, and variance over the squared norm "
        "of the mean. Gain: how much the median matching loss of 24 outer steps falls after a step of 0.02 (root mean "
        "square) against the average gradient of 24 others."
    )
    return "\n".join([*lines, "", _source(found, about)])


def by_start(at: Sequence[Mapping[str, Any]], side: str, name: str, first: bool) -> list[Any]:
    """What every draw measured, of those that start at epoch 0, or of the later ones."""
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
    """By linear interpolation, as numpy has it."""
    import numpy as np

    return float(np.quantile(values, share))


def runs(rows: Rows, data: str, setting: str, form: Form = "per-phase") -> dict[tuple[Side, bool], dict[int, float]]:
    """Mean recall by seed, of each side; and of the truncated one with more outer steps."""
    steps = min((row["cell"]["distill"]["steps"] for row in rows), default=0)
    found: dict[tuple[Side, bool], Rows] = defaultdict(list)
    for row in _case(rows, data, setting):
        found[side_of(row), row["cell"]["distill"]["steps"] > steps].append(row)
    return {key: by_seed(mine, form) for key, mine in found.items()}


def _source(found: Mapping[str, Any], about: str) -> str:
    machine = found["machine"]
    return f"{about} `{found['command']}` on {machine['cpu']}, one thread a run; torch {found['torch']}."
