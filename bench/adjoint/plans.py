"""The parts of the study: which cells each has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from bench import result
from bench.adjoint.cells import BASE, DATA, EXACT, STUDENTS, TRUNCATED, Cell, Form, Side, cell, with_rates
from bench.result import Result, Rows
from ptmst import schema
from ptmst.config import DistillConfig, LeafRates, Phase
from ptmst.errors import InputError
from ptmst.presets import in_one_phase

SHARES, CLIPS = (0.25, 0.5, 0.75, 1.0), (None, 1.0, 2.0)
SCREENED = [TRUNCATED, *(Side(adjoint=share, clip=clip) for share in SHARES for clip in CLIPS)]


def screening(results: Path) -> list[Cell]:
    """Shares of the adjoint by clips, at 20 and 50 pairs, 3 seeds; raw trajectories, Adam."""
    return _screened(SCREENED)


def _screened(sides: Sequence[Side]) -> list[Cell]:
    return [
        cell(data, seed, f"{pairs} pairs", side, replace(BASE, phases=(Phase(pairs, 5, (0, 3)),)))
        for seed in (0, 1, 2)
        for pairs in (20, 50)
        for data in DATA
        for side in sides
    ]


def experts(results: Path) -> list[Cell]:
    """Experts by epoch: do they still improve at the last end point, and how far do all real pairs lead?"""
    return [
        replace(cell(data, seed, "experts", TRUNCATED, BASE), measure="experts") for seed in (0, 1, 2) for data in DATA
    ]


SGD = replace(
    BASE,
    student_lr=0.05,
    optimizer="sgd",
    momentum=0.5,
    rates=LeafRates(images=200.0, texts=100.0, lr=0.000003, similarity=10.0),
)
"""The paper's outer optimizer, at rates that move a leaf by about as much as Adam's at the first steps.

η is the exception: its gradient has spikes of a hundred times its median where a student's loop is unstable, and at a
rate that moves η as Adam does they make it negative, whatever the adjoint.
"""
OPTIMIZERS = {"adam": (BASE, (1 / 9, 1 / 3, 1.0, 3.0)), "sgd": (SGD, (0.008, 0.04, 0.2, 1.0, 5.0))}
"""Base settings, and factors of all leaf rates but η's that are tried."""


def tuning(results: Path, name: str = "adam") -> list[Cell]:
    """The outer rates of each recursion that is confirmed, on one grid, to be chosen on val; separate seeds."""
    (base, factors), sides = OPTIMIZERS[name], confirmed(results)
    return [
        cell(data, seed, f"{name} × {factor:.2g}", side, with_rates(base, factor))
        for seed in (10, 11)
        for data in DATA
        for factor in factors
        for side in sides
    ]


CONFIRMED = tuple(range(20, 25))
"""Fresh seeds."""
EQUAL_SECONDS = 1.2
"""Outer steps with the truncated gradient in the time of one of the others; rounded up, in its favor."""


def confirmation(results: Path, name: str = "adam") -> list[Cell]:
    """The best of the screening against truncated and exact, with one change at a time, on fresh seeds."""
    cells, sides = [], confirmed(results)
    own = {(data, side): tuned(results, data, name, side) for data in DATA for side in sides}
    for seed in CONFIRMED:
        for data in DATA:
            for setting, changes in SETTINGS[name].items():
                for side in sides:
                    base = _changed(own[data, side], changes)
                    cells.append(cell(data, seed, setting, side, base, forms=FORMS))
                    if side == TRUNCATED and setting in TIMED:
                        longer = replace(base, steps=int(EQUAL_SECONDS * base.steps))
                        cells.append(cell(data, seed, setting, side, longer, forms=FORMS))
    return cells


UNDISTILLED = "undistilled"
STILL = replace(BASE, rates=LeafRates(0.0, 0.0, 0.0, 0.0), steps=20)
"""Settings that leave the pairs unchanged."""


def undistilled(results: Path) -> list[Cell]:
    """The initial pairs of the confirmation, unchanged."""
    return [cell(data, seed, UNDISTILLED, TRUNCATED, STILL, forms=FORMS) for seed in CONFIRMED for data in DATA]


def _changed(config: DistillConfig, changes: Mapping[str, Any]) -> DistillConfig:
    """`config` with some settings changed, and of its rates those that are named."""
    rates = replace(config.rates, **changes.get("rates", {}))
    return replace(config, **{**changes, "rates": rates})


FORMS: tuple[Form, ...] = ("per-phase", "reference", "fixed")
ONE, TWO = (Phase(50, 5, (0, 2)),), (Phase(25, 5, (0, 2)), Phase(25, 7, (1, 3)))
PTM_ST: dict[str, Any] = {"trajectory": "shortcut", "phases": TWO}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "adam": {
        "base": {},
        "PTM-ST": PTM_ST,
        "shortcut": {"trajectory": "shortcut", "phases": ONE},
        "two phases": {"phases": TWO},
        "16 inner steps": {"inner_steps": 16},
        "η⁰ = 0.03": {"student_lr": 0.03},
        "η not learned": {"rates": {"lr": 0.0}},
    },
    "sgd": {"SGD": {}, "SGD, PTM-ST": PTM_ST},
}
"""What differs from the base: 50 pairs, raw trajectories, one phase, 8 inner steps, η⁰ = 0.1; by outer optimizer."""
TIMED = ("base", "SGD", "PTM-ST")
"""Settings in which the truncated gradient is also given equal seconds."""


def confirmed(results: Path) -> tuple[Side, Side, Side]:
    return TRUNCATED, best_side(finished(results, "screening")), EXACT


def best_side(screened: Rows, sides: Sequence[Side] = ()) -> Side:
    """The one of `sides` with the highest recall on val, each setting's in units of the truncated gradient's.

    By default all that were screened except the truncated and the exact one, which it is compared with.
    """
    recall: dict[tuple[str, str], dict[Side, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in screened:
        side = schema.from_json(Side, row["cell"]["side"])
        recall[row["cell"]["data"], row["cell"]["setting"]][side] += scored(row, "per-phase", "val")
    sides = sides or [side for side in SCREENED if side not in (TRUNCATED, EXACT)]
    return max(sides, key=lambda side: mean(mean(by[side]) / mean(by[TRUNCATED]) for by in recall.values()))


def tuned(results: Path, data: str, optimizer: str, side: Side) -> DistillConfig:
    """The settings of a recursion with the rates that were best on val; a run that diverged counts as 0."""
    base, factors = OPTIMIZERS[optimizer]
    label = [f"{optimizer} × {factor:.2g}" for factor in factors]
    recalls: dict[str, list[float]] = defaultdict(list)
    for row in finished(results, "tuning" if optimizer == "adam" else "tuning-sgd"):
        if row["cell"]["data"] == data and schema.from_json(Side, row["cell"]["side"]) == side:
            recalls[row["cell"]["setting"]] += scored(row, "per-phase", "val")
    return with_rates(base, max(zip(factors, label, strict=True), key=lambda tried: mean(recalls[tried[1]]))[0])


def scored(row: Mapping[str, Any], form: Form, split: str) -> list[float]:
    """Mean recall of the students of a row; 0 for one that diverged, and for all where the distillation did."""
    students = row["students"].get(form, [None] * STUDENTS)
    return [0.0 if student is None else student[split] for student in students]


ALTERNATIVES = [
    Side("window", adjoint=1.0, steps=2),
    Side("window", adjoint=1.0, steps=4),
    Side("random-window", adjoint=1.0, steps=4),
    Side(adjoint=0.5, texts=0.0),
    Side(adjoint=0.0, texts=0.5),
    Side(adjoint=0.5, texts=1.0),
    Side(adjoint=1.0, texts=0.5),
    Side("per-layer", adjoint=0.5, clip=1.0),
    Side("per-layer", adjoint=1.0, clip=1.0),
    Side("bounded", adjoint=1.0, clip=1.0),
    Side("bounded", adjoint=1.0, clip=1.5),
]


def alternatives(results: Path) -> list[Cell]:
    """Other recursions, on the seeds and settings of the screening."""
    return _screened(ALTERNATIVES)


CONTESTED = ("base", "PTM-ST", "shortcut", "16 inner steps")


def contest(results: Path) -> list[Cell]:
    """The best of the alternatives on fresh seeds, at the settings and rates of the best that was screened."""
    screened = finished(results, "screening") + finished(results, "alternatives")
    side, best = best_side(screened, ALTERNATIVES), confirmed(results)[1]
    return [
        cell(data, seed, setting, side, _changed(tuned(results, data, "adam", best), SETTINGS["adam"][setting]))
        for seed in CONFIRMED
        for data in DATA
        for setting in CONTESTED
    ]


def reasons(results: Path) -> list[Cell]:
    """How the adjoint grows on its way back, and what its gradients are worth."""
    return [replace(cell(data, seed, "why", TRUNCATED, BASE), measure="why") for seed in (0, 1) for data in DATA]


def real_tower(results: Path) -> list[Cell]:
    """A timm tower at 64 px on scenes: the truncated gradient against the best, undistilled pairs, and all pairs."""
    seed = 30
    experts = replace(cell("scenes", seed, "experts", TRUNCATED, BASE, tower="timm"), measure="experts")
    return [
        *(cell("scenes", seed, "nf_regnet_b0, 64 px", side, BASE, tower="timm") for side in confirmed(results)[:2]),
        cell("scenes", seed, UNDISTILLED, TRUNCATED, STILL, tower="timm"),
        experts,
    ]


COMBINED: dict[str, dict[str, Any]] = {
    "": {},
    ", blended": {"blend": 1.0},
    ", η learned slowly": {"rates": {"lr": 0.0002}},
}


def combination(results: Path) -> list[Cell]:
    """The best recursion on shortcuts, in one phase or two, and what else may help: equal outer steps in all."""
    side = confirmed(results)[1]
    two = replace(BASE, **PTM_ST)
    return [
        cell(data, seed, f"{name}{more}", side, _changed(base, changes))
        for seed in (40, 41, 42)
        for data in DATA
        for name, base in (("two phases", two), ("one phase", in_one_phase(two)))
        for more, changes in COMBINED.items()
    ]


IN_TWO: tuple[Form, ...] = ("per-phase", "first", "second", "at once")


def phases(results: Path) -> list[Cell]:
    """What two phases lose against one, on shortcuts with the truncated gradient: by pairs, steps and matched span."""
    cells = []
    for seed, pairs, data in product((0, 1, 2), (50, 200), DATA):
        first, second = (replace(phase, pairs=pairs // 2) for phase in TWO)
        two = replace(BASE, trajectory="shortcut", phases=(first, second))
        longer = replace(two, steps=2 * two.steps)
        variants: dict[str, tuple[DistillConfig, tuple[Form, ...]]] = {
            "one": (in_one_phase(two), ("per-phase",)),
            "one, longer": (in_one_phase(longer), ("per-phase",)),
            "two": (two, IN_TWO),
            "two, longer": (longer, IN_TWO),
            "two alike": (replace(two, phases=(first, first)), IN_TWO),
        }
        for name, (config, forms) in variants.items():
            cells.append(cell(data, seed, f"{name}, {pairs} pairs", TRUNCATED, config, forms=forms))
    return cells


SEGMENTS = (0, 1, 2, 4, 6, 8)
"""Epochs that a matched span of one epoch starts from."""


def segments(results: Path) -> list[Cell]:
    """Sets distilled from early and from late parts of the experts' trajectories (the paper's diagnosis)."""
    sides = confirmed(results)[:2]
    return [
        cell(data, seed, f"epoch {start}", side, replace(BASE, phases=(Phase(50, start + 1, (start, start + 1)),)))
        for seed in (0, 1, 2)
        for data in DATA
        for start in SEGMENTS
        for side in sides
    ]


PLANS: dict[str, Callable[[Path], list[Cell]]] = {
    "experts": experts,
    "screening": screening,
    "tuning": tuning,
    "confirmation": confirmation,
    "tuning-sgd": partial(tuning, name="sgd"),
    "confirmation-sgd": partial(confirmation, name="sgd"),
    "alternatives": alternatives,
    "contest": contest,
    "why": reasons,
    "real-tower": real_tower,
    "segments": segments,
    "combination": combination,
    "phases": phases,
    "undistilled": undistilled,
}


def finished(results: Path, plan: str) -> Rows:
    """The rows of a part. Raises InputError if it is not complete."""
    expected = set(PLANS[plan](results))
    measured = [row for row in rows(results, plan) if schema.from_json(Cell, row["cell"]) in expected]
    if len(measured) < len(expected):
        raise InputError(f"{plan}: expected {len(expected)} runs, found {len(measured)}; finish that part first")
    return measured


def rows(results: Path, plan: str) -> Rows:
    """What a part has measured so far."""
    return result.rows(results / f"{plan}.json")


def part(results: Path, plan: str) -> Result | None:
    """The results of a part, or None if it was not run."""
    return result.read(results / f"{plan}.json")
