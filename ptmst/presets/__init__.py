"""Settings as data: experiments (a published row, a demo) and methods (what a method changes in an experiment)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from ptmst import schema
from ptmst.config import DistillConfig, Experiment, Phase
from ptmst.errors import InputError

BASE = "flickr30k-500"
"""The experiment that a method named alone changes."""
BASE_DATA = "flickr30k-"
"""The experiments that methods have published numbers for."""


@dataclass(frozen=True)
class Method:
    """A method of trajectory matching, as changes to the settings of any experiment (docs/method.md §9)."""

    about: str
    """What it is, in a line."""
    source: str
    """Where it is published."""
    phases: Literal["as they are", "one"] = "as they are"
    """one = a single phase of all pairs over the start ranges of all, with the outer steps of all."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What makes it this method: tables by command."""
    published: dict[str, Any] = field(default_factory=dict)
    """Numbers that were published with it, for any number of pairs."""
    at: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Numbers that were published with it, by the size of the set."""


@dataclass(frozen=True)
class Preset:
    """An entry of the catalogue."""

    name: str
    kind: Literal["experiment", "method"]
    about: str
    source: str


def catalogue() -> tuple[Preset, ...]:
    """All presets, experiments first."""
    found = [Preset(name, "experiment", one.about, one.source) for name, one in _experiments().items()]
    return (*found, *(Preset(name, "method", one.about, one.source) for name, one in methods().items()))


@cache
def methods() -> Mapping[str, Method]:
    """Every method by name."""
    return {name: schema.from_toml(Method, Path(str(file))) for name, file in _files("presets", "methods").items()}


@cache
def _experiments() -> Mapping[str, Experiment]:
    return {name: schema.from_toml(Experiment, Path(str(file))) for name, file in _files("presets").items()}


def _files(*folders: str) -> dict[str, Traversable]:
    folder = resources.files("ptmst").joinpath(*folders)
    found = {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}
    return dict(sorted(found.items(), key=lambda entry: _in_order(entry[0])))


def _in_order(name: str) -> tuple[str, int]:
    before, _, number = name.rpartition("-")
    return (before, int(number)) if number.isdigit() else (name, 0)


def experiment(preset: str | None = None, file: Path | None = None) -> Experiment:
    """The experiment of a preset: an experiment, a method, or both with a comma between; then of a file.

    On Flickr30k, or alone, a method brings the numbers that were published with it; elsewhere what makes it itself. A
    file says only what it changes. Raises InputError for an unknown preset, with the nearest ones, for two of a kind,
    and for every mistake in the file.
    """
    found, names = Experiment(), preset.split(",") if preset else []
    for number, name in enumerate(names):
        if name in _experiments() and number == 0:
            found = _experiments()[name]
        elif name in methods() and any(before in methods() for before in names[:number]):
            raise InputError(
                f"preset {preset}: expected one method, found {name} after another; keep one, and set by flags what "
                "else it shall have (--blend, --adjoint, …)"
            )
        elif name in methods():
            # Published numbers are for the published data; elsewhere a method keeps the experiment's own.
            published = all(before.startswith(BASE_DATA) for before in names[:number])
            found = applied(name, found if number else _experiments()[BASE], published=published)
        elif name in _experiments():
            raise InputError(f"preset {preset}: expected one experiment, and first, found {name} later; mend the order")
        else:
            known = [*_experiments(), *methods()]
            raise InputError(f"{name}: expected a preset, found none of that name{schema.nearest(name, known)}")
    return found if file is None else schema.from_toml(Experiment, file, schema.to_json(found))


def applied(name: str, to: Experiment, *, published: bool = False) -> Experiment:
    """An experiment as a method would do it, at the cost of `to`: as many pairs and, in all, as many outer steps.

    `published` takes the numbers too that were published with the method (rates, steps, ranks).
    """
    method = methods()[name]
    base = replace(to, distill=in_one_phase(to.distill)) if method.phases == "one" else to
    changes = [method.settings]
    if published:
        sizes = sorted(int(size) for size in method.at if int(size) >= to.distill.pairs)
        changes += [method.published, *([method.at[str(sizes[0])]] if sizes else [])]
    values = schema.to_json(base)
    for change in changes:
        values = schema.merged(values, change)
    return schema.from_json(Experiment, values)


def in_one_phase(config: DistillConfig) -> DistillConfig:
    """All pairs in one phase over the start ranges of all, with the outer steps of all."""
    starts = [phase.start for phase in config.phases]
    phase = Phase(
        pairs=config.pairs,
        endpoint=max(phase.endpoint for phase in config.phases),
        start=(min(first for first, _ in starts), max(last for _, last in starts)),
    )
    return replace(config, phases=(phase,), steps=config.steps * len(config.phases))
