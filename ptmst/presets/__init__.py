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
RENAMED = {"ptmst": "st-adjoint"}
"""Names that presets had before, which are refused with advice: old → new."""


@dataclass(frozen=True)
class Method:
    """A method of trajectory matching, as changes to the settings of any experiment (docs/method.md §9)."""

    about: str = field(metadata={"decides": False})
    """What it is, in a line."""
    source: str = field(metadata={"decides": False})
    """Where it is published."""
    phases: Literal["as they are", "one"] = "as they are"
    """one: merge all phases into a single one, with their pairs, start ranges and outer steps."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings that define it: tables by command."""
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
    experiments = (Preset(name, "experiment", one.about, one.source) for name, one in _experiments().items())
    return (*experiments, *(Preset(name, "method", one.about, one.source) for name, one in methods().items()))


@cache
def methods() -> Mapping[str, Method]:
    """Every method by name."""
    return {name: schema.from_toml(Method, Path(str(file))) for name, file in _files("presets", "methods").items()}


@cache
def _experiments() -> Mapping[str, Experiment]:
    return {name: schema.from_toml(Experiment, Path(str(file))) for name, file in _files("presets").items()}


def _files(*folders: str) -> dict[str, Traversable]:
    folder = resources.files("ptmst").joinpath(*folders)
    by_name = {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}
    return dict(sorted(by_name.items(), key=lambda entry: _by_size(entry[0])))


def _by_size(name: str) -> tuple[str, int]:
    """Sort key: coco-100 before coco-500, which comes before flickr30k-100."""
    before, _, number = name.rpartition("-")
    return (before, int(number)) if number.isdigit() else (name, 0)


def experiment(preset: str | None = None, file: Path | None = None) -> Experiment:
    """The experiment that a preset names, with the changes of a file.

    `preset` is an experiment, a method, or both with a comma between them. On Flickr30k, or alone, a method adds its
    published numbers; elsewhere only what defines it. `file` contains only changes. Raises InputError for an unknown
    preset, with the nearest names, for two of a kind, and for all mistakes in the file.
    """
    settings, names = Experiment(), preset.split(",") if preset else []
    for number, name in enumerate(names):
        if name in _experiments() and number == 0:
            settings = _experiments()[name]
        elif name in methods() and any(before in methods() for before in names[:number]):
            raise InputError(
                f"preset {preset}: expected one method, found {name} after another; keep one, and add settings of the "
                "other by flags (--blend, --adjoint, …)"
            )
        elif name in methods():
            # Published numbers are for the published data; elsewhere a method keeps the experiment's own.
            published = all(before.startswith(BASE_DATA) for before in names[:number])
            settings = applied(name, settings if number else _experiments()[BASE], published=published)
        elif name in _experiments():
            raise InputError(
                f"preset {preset}: expected one experiment, and first, found {name} later; change the order"
            )
        else:
            raise _unknown(name)
    if file is None:
        return settings
    changed = schema.from_toml(Experiment, file, schema.to_json(settings))
    if changed.tuned != settings.tuned:
        raise InputError(
            f"{file}: expected settings of commands, found tuned ones of methods; name them under a command"
        )
    return changed


def _unknown(name: str) -> InputError:
    if name in RENAMED:
        return InputError(f"preset {name}: this method is now called {RENAMED[name]}; use --preset {RENAMED[name]}")
    known = [*_experiments(), *methods()]
    return InputError(f"{name}: expected a preset, found none of that name{schema.nearest(name, known)}")


def applied(name: str, to: Experiment, *, published: bool = False) -> Experiment:
    """The experiment `to` with a method applied, at the same cost: as many pairs and, in all, as many outer steps.

    What the experiment has tuned for the method is applied too, at whatever cost; `published` instead applies the
    numbers that were published with it (rates, steps, ranks).
    """
    method = methods()[name]
    base = replace(to, distill=in_one_phase(to.distill)) if method.phases == "one" else to
    changes = [method.settings]
    if published:
        sizes = sorted(int(size) for size in method.at if int(size) >= to.distill.pairs)
        changes += [method.published, *([method.at[str(sizes[0])]] if sizes else [])]
    elif name in to.tuned:
        changes.append(to.tuned[name])
    values = schema.to_json(base)
    for change in changes:
        values = schema.merged(values, change)
    return schema.from_json(Experiment, values)


def in_one_phase(config: DistillConfig) -> DistillConfig:
    """All phases merged into one, with their pairs, start ranges and outer steps; a single one stays as it is."""
    if len(config.phases) == 1:
        return config
    starts = [phase.start for phase in config.phases]
    phase = Phase(
        pairs=config.pairs,
        endpoint=max(phase.endpoint for phase in config.phases),
        start=(min(first for first, _ in starts), max(last for _, last in starts)),
    )
    return replace(config, phases=(phase,), steps=config.steps * len(config.phases))
