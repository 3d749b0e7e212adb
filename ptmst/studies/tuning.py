"""What is tried to tune a method, the same for all: axis by axis, each from the best of those before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ptmst.config import Experiment, LossKind
from ptmst.presets import applied, methods
from ptmst.studies.cost import Between
from ptmst.studies.runs import Run

FACTORS = (1 / 27, 1 / 9, 1 / 3, 1.0, 3.0, 9.0)
"""Of all leaf rates but η's, where nothing else is tuned; the best on val is used."""
REAL_LOSSES: tuple[LossKind, ...] = ("wbce", "infonce")
REAL_LR = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Losses and student learning rates that are tried for real pairs."""
_REAL_BATCHES = (0.0, 1 / 2)
"""Shares of real pairs in a student's batch, where the protocol is tuned; 0 = as many as evaluation has."""
_STEP = 3.0
"""Between factors that are tried one after another."""


@dataclass(frozen=True)
class Tried:
    """The values of one axis."""

    field: str
    """Of `Run`."""
    values: tuple[Any, ...]
    extends: bool = False
    """Whether one more is tried beyond an end that is the best so far."""


def tried(axes: Sequence[str]) -> list[Tried]:
    """What is tried of each axis. Where rates alone are tuned, their list is longer."""
    few = (1 / _STEP, 1.0, _STEP)
    of = {
        "rates": Tried("factor", few, extends=True) if len(axes) > 1 else Tried("factor", FACTORS),
        "batch": Tried("batch", (1 / 4, 1 / 2)),
        "similarity": Tried("similarity", few, extends=True),
        "lr": Tried("eta", few, extends=True),
        "steps": Tried("steps", (1, 2)),
        "protocol": Tried("protocol", ("per-phase", "as-matched")),
    }
    return [of[axis] for axis in axes]


def searched(start: Run, axes: Sequence[str], base: Experiment) -> list[Tried]:
    """What is tried of the method of `start`: a fixed S has no rate, real pairs have none of it."""
    if start.method not in methods():
        return []
    fixed = applied(start.method, base).distill.rates.similarity == 0
    return [axis for axis in tried(axes) if not (fixed and axis.field == "similarity")]


def trials(start: Run, axes: Sequence[str], base: Experiment) -> Between:
    """How many runs `search` asks for, for one method."""
    if start.method not in methods():
        return Between.exactly(len(_of_real_pairs(start, axes)))
    known = searched(start, axes, base)
    least = 1 + sum(len(axis.values) - 1 for axis in known)
    return Between(least, least + sum(axis.extends for axis in known))


def search(
    starts: Iterable[Run], axes: Sequence[str], base: Experiment, recalls: Callable[[Sequence[Run]], Sequence[float]]
) -> dict[str, Run]:
    """The best run of every method, by method; `recalls` of runs are measured together.

    Real pairs are tuned by loss and η, and where the protocol is tuned by students' batch; distilled ones by the axes
    one after another. Of equals it is what there was.
    """
    # An axis that is yet to come is at one of the values that will be compared.
    first = {axis.field: axis.values[0] for axis in tried(axes) if axis.field in ("batch", "protocol")}
    found = {run.method: replace(run, **first) if run.method in methods() else run for run in starts}

    def best(of: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
        asked = [run for runs in of.values() for run in runs]
        # The last bits of a mean depend on its order.
        recall = {run: round(value, 6) for run, value in zip(asked, recalls(asked), strict=True)}
        return {
            method: max(runs, key=lambda run: (recall[run], run == found.get(method))) for method, runs in of.items()
        }

    real = {method: _of_real_pairs(run, axes) for method, run in found.items() if method not in methods()}
    for axis in tried(axes):
        having = [method for method, run in found.items() if axis in searched(run, axes, base)]
        found |= best({method: _along(axis, found[method], axis.values) for method in having} | real)
        real = {}
        if axis.extends:
            beyond = {axis.values[0]: axis.values[0] / _STEP, axis.values[-1]: axis.values[-1] * _STEP}
            ends = {method: getattr(found[method], axis.field) for method in having}
            found |= best({m: _along(axis, found[m], (end, beyond[end])) for m, end in ends.items() if end in beyond})
    return found


def _of_real_pairs(run: Run, axes: Sequence[str]) -> list[Run]:
    """What is tried of them, all at once."""
    batches = _REAL_BATCHES if "protocol" in axes else _REAL_BATCHES[:1]
    tried = product(batches, REAL_LOSSES, REAL_LR)
    return [replace(run, batch=batch, loss=loss, lr=lr) for batch, loss, lr in tried]


def _along(axis: Tried, run: Run, values: Iterable[Any]) -> list[Run]:
    return [replace(run, **{axis.field: value}) for value in values]


def tuned(run: Run, trials: Sequence[Run]) -> str:
    """What was tuned of a method, and whether the best is at an end of what its trials, on val, had of it."""

    def values(field: str) -> set[Any]:
        return {getattr(trial, field) for trial in trials}

    def edge(field: str) -> str:
        found = values(field)
        return " (edge)" if len(found) > 1 and getattr(run, field) in (min(found), max(found)) else ""

    if run.method not in methods():
        in_batches = f", students' batch {100 * run.batch:.0f} %" if run.batch else ""
        return f"{run.loss}, η {run.lr:g}{edge('lr')}{in_batches}"
    factors = {"factor": "rates", "similarity": "S", "eta": "η"}
    shown = [
        f"{name} × {getattr(run, field):.2g}{edge(field)}"
        for field, name in factors.items()
        if field == "factor" or values(field) | {getattr(run, field)} != {1.0}
    ]
    shown += [f"batch {100 * run.batch:.0f} %"] if run.batch else []
    shown += [f"steps × {run.steps}"] if values("steps") | {run.steps} != {1} else []
    return ", ".join(shown + ([run.protocol] if run.protocol is not None else []))
