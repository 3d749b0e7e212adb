"""The tables of docs/adjoint.md, made from the results."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.adjoint.cells import DATA, EXACT, TRUNCATED, Form, Side
from bench.adjoint.plans import ALTERNATIVES, FORMS, OPTIMISERS, SCREENED, SEGMENTS, SETTINGS, best_side, scored
from ptmst import config as configs

Rows = list[dict[str, Any]]
_NOT_YET = "Not measured yet."


@dataclass(frozen=True)
class Interval:
    """A mean of paired differences and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Interval:
        """By Student's t over the pairs, which are seeds; no interval of fewer than two."""
        from scipy.stats import t

        if len(differences) < 2:
            return cls(mean(differences), float("-inf"), float("inf"))
        half = float(t.ppf(0.975, len(differences) - 1)) * stdev(differences) / len(differences) ** 0.5
        return cls(mean(differences), mean(differences) - half, mean(differences) + half)

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + (f" [{self.low:+.1f}, {self.high:+.1f}]" if isfinite(self.low) else "")


def read(results: Path, plan: str) -> dict[str, Any] | None:
    """A part of the study, or none where it was not run."""
    file = results / f"{plan}.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return found


def both(results: Path, plan: str) -> dict[str, Any] | None:
    """A part with Adam as the outer optimiser, and the same with SGD where it was run."""
    adam, sgd = read(results, plan), read(results, f"{plan}-sgd")
    return adam and adam | {"rows": adam["rows"] + (sgd["rows"] if sgd else [])}


def side_of(row: Mapping[str, Any]) -> Side:
    return configs.from_json(Side, row["cell"]["side"])


def by_seed(rows: Iterable[Mapping[str, Any]], form: Form = "per-phase") -> dict[int, float]:
    """Mean recall on test of a seed's students."""
    return {row["cell"]["seed"]: mean(scored(row, form, "test")) for row in rows}


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Differences over the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def experts(results: Path) -> str:
    found = read(results, "experts")
    if found is None:
        return _NOT_YET
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
        return _NOT_YET
    return _sides(found, SCREENED, "Share c, clip κ")


def alternatives(results: Path) -> str:
    """The other recursions beside the truncated form and the best damped one of the same seeds."""
    found, before = read(results, "alternatives"), read(results, "screening")
    if found is None or before is None:
        return _NOT_YET
    kept = [TRUNCATED, best_side(before["rows"]), EXACT]
    rows = [row for row in before["rows"] if side_of(row) in kept] + found["rows"]
    return _sides(found | {"rows": rows}, [*kept, *ALTERNATIVES], "Recursion")


def _sides(found: dict[str, Any], sides: Sequence[Side], title: str) -> str:
    cases = list(dict.fromkeys((row["cell"]["data"], row["cell"]["setting"]) for row in found["rows"]))
    lines = [
        f"| {title} | {' | '.join(f'{data}, {setting}' for data, setting in cases)} | worst | L | diverged | step |",
        f"|---|{'--:|' * (len(cases) + 4)}",
    ]
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
            text = f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else "–"
            cells.append(f"**{text}**" if values and mean(values) == best[case] else text)
        mine = [row for case in cases for row in rows[side][case]]
        if not mine:
            continue
        ended = [row for row in mine if row["diverged at"] is None]
        worst = min(value for case in cases for value in recall[side, case])
        lost = sum(s is None for row in mine for s in row["students"].get("per-phase", [None] * 3)) / (3 * len(mine))
        loss = f"{mean(mean(row['loss']) for row in ended):.2f}" if ended else "–"
        step = f"{1e3 * mean(row['cpu s of a step'] for row in ended):.0f} ms" if ended else "–"
        cells += [f"{worst:.1f}", loss, f"{100 * lost:.0f} %"]
        lines.append(f"| {side.label} | {' | '.join(cells)} | {step} |")
    about = (
        "Mean recall on test in percent, mean ± standard deviation over all students of all seeds (3 each); the worst "
        "of all students; matching loss L of the last 20 outer steps; share of students that diverged (recall 0); CPU "
        "time of an outer step."
    )
    return "\n".join([*lines, "", _source(found, about)])


def tuning(results: Path) -> str:
    found, screened = both(results, "tuning"), read(results, "screening")
    if found is None or screened is None:
        return _NOT_YET
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
    """Setting by setting, the paired differences of the best damped side."""
    found, screened = both(results, "confirmation"), read(results, "screening")
    if found is None or screened is None:
        return _NOT_YET
    best = best_side(screened["rows"])
    lines = [
        f"| setting | data | seeds | truncated | {best.label} | exact | against truncated | in equal seconds | "
        "against exact |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for setting in (setting for settings in SETTINGS.values() for setting in settings):
        for data in DATA:
            by_side = runs(found["rows"], data, setting)
            mine, truncated = by_side.get((best, False), {}), by_side.get((TRUNCATED, False), {})
            longer, exact = by_side.get((TRUNCATED, True), {}), by_side.get((EXACT, False), {})
            seeds = mine.keys() & truncated.keys() & exact.keys()
            if not seeds:
                continue
            mine, truncated, exact = ({seed: side[seed] for seed in seeds} for side in (mine, truncated, exact))
            means = [f"{mean(side.values()):.1f}" if side else "–" for side in (truncated, mine, exact)]
            against = [
                str(Interval.of(paired(mine, other))) if paired(mine, other) else "–"
                for other in (truncated, longer, exact)
            ]
            lines.append(f"| {setting} | {data} | {len(mine)} | {' | '.join(means)} | {' | '.join(against)} |")
    about = (
        "Mean recall on test in percent of 3 students a seed; differences paired by seed, with the 95 % interval of "
        "Student's t. In equal seconds: the truncated form with 1.2 times the outer steps."
    )
    return "\n".join([*lines, "", _source(found, about)])


def segments(results: Path) -> str:
    """Recall by the part of the teachers' trajectories that was matched."""
    found = read(results, "segments")
    if found is None:
        return _NOT_YET
    lines = [
        f"| data | side | {' | '.join(f'{start} → {start + 1}' for start in SEGMENTS)} |",
        f"|---|---|{'--:|' * len(SEGMENTS)}",
    ]
    sides = list(dict.fromkeys(side_of(row) for row in found["rows"]))
    for data in DATA:
        for side in sides:
            cells = []
            for start in SEGMENTS:
                values = [
                    value
                    for row in found["rows"]
                    if (row["cell"]["data"], row["cell"]["setting"]) == (data, f"epoch {start}")
                    and side_of(row) == side
                    for value in scored(row, "per-phase", "test")
                ]
                cells.append(f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else "–")
            lines.append(f"| {data} | {side.label} | {' | '.join(cells)} |")
    about = (
        "Mean recall on test in percent, mean ± standard deviation over the students of three seeds, by the one epoch "
        "of the teachers' trajectories that is matched."
    )
    return "\n".join([*lines, "", _source(found, about)])


def combination(results: Path) -> str:
    """What goes with the damped adjoint, on val, on which it is chosen, and on test."""
    found = read(results, "combination")
    if found is None:
        return _NOT_YET
    lines = [
        f"| setting | {' | '.join(f'{data}, {split}' for data in DATA for split in ('val', 'test'))} |",
        f"|---|{'--:|' * (2 * len(DATA))}",
    ]
    for setting in dict.fromkeys(row["cell"]["setting"] for row in found["rows"]):
        cells = []
        for data in DATA:
            mine = [r for r in found["rows"] if (r["cell"]["data"], r["cell"]["setting"]) == (data, setting)]
            for split in ("val", "test"):
                values = [value for row in mine for value in scored(row, "per-phase", split)]
                cells.append(f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else "–")
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    about = (
        "Mean recall in percent, mean ± standard deviation over the students of three seeds; shortcut trajectories, 50 "
        f"pairs, 400 outer steps in all, {side_of(found['rows'][0]).label}."
    )
    return "\n".join([*lines, "", _source(found, about)])


def neighbours(results: Path) -> str:
    """The paper's measure of oscillation: gradients of start points side by side, in the truncated form."""
    found = read(results, "why")
    if found is None:
        return _NOT_YET
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
        return _NOT_YET
    sides = list(dict.fromkeys(side_of(row) for row in found["rows"]))
    return _sides(found, sides, "Side")


def forms(results: Path) -> str:
    """Whether the form of evaluation matters: the same sets, three ways of training students on them."""
    found, screened = both(results, "confirmation"), read(results, "screening")
    if found is None or screened is None:
        return _NOT_YET
    best = best_side(screened["rows"])
    lines = ["| evaluation | data | truncated | damped | difference |", "|---|---|--:|--:|--:|"]
    for form in FORMS:
        for data in DATA:
            recalls: dict[Side, dict[int, list[float]]] = {TRUNCATED: defaultdict(list), best: defaultdict(list)}
            for setting in (setting for settings in SETTINGS.values() for setting in settings):
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
    about = "Means over all settings of the table above; differences paired by seed, with their 95 % interval."
    return "\n".join([*lines, "", _source(found, about)])


def reasons(results: Path) -> str:
    """What gradients are worth, side by side."""
    found = read(results, "why")
    if found is None:
        return _NOT_YET
    states = list(next(iter(found["rows"]))["states"])
    sides = [name for name in found["rows"][0]["states"][states[0]] if name not in ("loss", "curvature")]
    columns = {
        "cosine with exact": "with the exact one",
        "cosine of averages": "of averages",
        "cosine between draws": "between draws",
        "noise to signal": "noise / signal",
        "largest over median norm": "largest / median norm",
    }
    lines = [
        f"| pairs | side | {' | '.join(columns.values())} | ‖λ₁‖/‖λ_n‖ image, text | gain |",
        f"|---|---|{'--:|' * (len(columns) + 2)}",
    ]
    for state in states:
        for side in sides:
            rows = [row["states"][state][side] for row in found["rows"]]
            cells = [f"{mean(row['images'][name] for row in rows):.2f}" for name in columns]
            grown = "–"
            if "growth" in rows[0]:
                grown = ", ".join(f"{mean(row['growth'][-1][group] for row in rows):.2f}" for group in (0, 1))
            gain = mean(row["gain"] for row in rows)
            lines.append(f"| {state} | {side} | {' | '.join(cells)} | {grown} | {gain:+.4f} |")
    about = (
        "Means over data sets and seeds, of the images' gradients of 48 outer steps at fixed pairs. Cosines: of each "
        "gradient with the exact one of its step; of the average gradient with the average exact one; between "
        "different steps. Noise / signal: mean squared distance from the average over the squared norm of the average. "
        "Gain: how much the median matching loss of 24 other outer steps falls after a step of 0.02 (root mean square) "
        "against the average gradient of 24."
    )
    return "\n".join([*lines, "", _source(found, about)])


def runs(rows: Rows, data: str, setting: str, form: Form = "per-phase") -> dict[tuple[Side, bool], dict[int, float]]:
    """Mean recall by seed, of each side; and of the truncated one with more outer steps."""
    steps = min((row["cell"]["distill"]["steps"] for row in rows), default=0)
    found: dict[tuple[Side, bool], Rows] = defaultdict(list)
    for row in rows:
        if (row["cell"]["data"], row["cell"]["setting"]) == (data, setting):
            found[side_of(row), row["cell"]["distill"]["steps"] > steps].append(row)
    return {key: by_seed(mine, form) for key, mine in found.items()}


def _source(found: Mapping[str, Any], about: str) -> str:
    machine = found["machine"]
    return f"{about} `{found['command']}` on {machine['cpu']}, one thread a run; torch {found['torch']}."
