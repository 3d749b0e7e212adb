"""`python -m bench.codings --json FILE`: what the storage dtype of a trajectory store costs in recall.

For each data set and seed experts are trained once. Pairs are distilled from their exact float32 trajectories and from
a store of each dtype, with the same random draws, and fresh students are scored. Drawings have heads behind a frozen
tower and all pairs of the demo, scenes a trained tower and quick settings: compare codings, not recalls. A stopped run
continues.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import torch
from torch import Tensor

from bench.command import bare_parser, collect
from ptmst import TrajectoryStore, distill, evaluate, train_teachers
from ptmst.config import Coding, Experiment
from ptmst.data import write_data
from ptmst.presets import experiment
from ptmst.students.layers import LayerTable
from ptmst.trajectories import shortcut
from ptmst.trajectories.shortcut import Displacement, Expert, Shortcut, shortcut_beta
from ptmst.trajectories.spans import RawSpan

SEEDS = {"emoji": 8, "scenes": 3}
EMOJI_STEPS = 150
CODINGS = ("float32", *get_args(Coding))


@dataclass(frozen=True)
class ExactShortcut:
    """A shortcut whose displacement is not rounded."""

    layers: LayerTable
    base: Tensor
    delta: Tensor
    beta: Tensor

    def point(self, t: int) -> Tensor:
        return self.base + self.layers.expand_layers(self.beta[t]) * self.delta

    def span(self, s: int, t: int) -> RawSpan:
        return RawSpan.between(self.point(s), self.point(t), self.layers)


@dataclass(frozen=True)
class ExactExpert(Expert):
    deltas: dict[int, Tensor]

    def shortcut(self, endpoint: int) -> Shortcut:
        beta = shortcut_beta(self.step_norms, endpoint)
        return ExactShortcut(self.layers, self.base, self.deltas[endpoint], beta)  # type: ignore[return-value]

    def to(self, device: torch.device | str) -> Expert:
        return self


@dataclass
class ExactStore(TrajectoryStore):
    deltas: tuple[dict[int, Tensor], ...] = ()
    """Displacements by expert and end point, in float32."""

    def expert(self, number: int, endpoints: Collection[int] | None = None) -> Expert:
        rounded = super().expert(number, endpoints)
        return ExactExpert(rounded.layers, rounded.base, rounded.displacements, rounded.step_norms, self.deltas[number])


@contextmanager
def exact_deltas(deltas: list[Tensor]) -> Iterator[None]:
    """Collect every displacement before it is rounded."""
    encode = Displacement.encode

    def recorded(delta: Tensor, layers: LayerTable) -> Displacement:
        deltas.append(delta.clone())
        return encode(delta, layers)

    with mock.patch.object(shortcut.Displacement, "encode", staticmethod(recorded)):
        yield


def trained(settings: Experiment, folder: Path) -> dict[str, TrajectoryStore]:
    """The same experts in every coding."""
    recorded: list[Tensor] = []
    with exact_deltas(recorded):
        store = train_teachers(replace(settings.teach, out=folder / "fp16", workers=1))
    endpoints, count = store.endpoints, len(store)
    if len(recorded) != count * len(endpoints):
        raise SystemExit(f"{folder}: expected experts trained from the beginning; remove the folder")
    deltas = tuple(dict(zip(endpoints, recorded[n * len(endpoints) :], strict=False)) for n in range(count))
    fields = (store.layers, store.epochs, endpoints, store.settings)
    exact = ExactStore(store.path, *fields, experts=store.experts, hashes=store.hashes, deltas=deltas)
    stores = {"float32": exact, "fp16": store}
    for coding in (coding for coding in get_args(Coding) if coding not in stores):
        stores[coding] = small = TrajectoryStore(folder / coding, *fields, coding=coding)
        for name in [name for name in store.hashes if name.startswith("tower")]:
            small.add_file(name, store.read_file(name))
        for number in range(count):
            small.add(number, store.expert(number), {})
    return stores


def settings_of(name: str, seed: int, work: Path) -> Experiment:
    settings = experiment("demo,st-adjoint" if name == "emoji" else "scenes-quick")
    root = work / name / "data"
    written = settings.data if name == "emoji" else replace(settings.data, name=name)  # type: ignore[arg-type]
    write_data(replace(written, root=root))
    data = replace(
        settings.teach.data, name=name, root=root, image_size=settings.teach.data.image_size or settings.data.image_size
    )
    steps = EMOJI_STEPS if name == "emoji" else settings.distill.steps
    return replace(
        settings,
        teach=replace(settings.teach, data=data, seed=seed),
        distill=replace(settings.distill, steps=steps, seed=seed),
        evaluate=replace(settings.evaluate, seed=seed),
    )


def measure(name: str, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    settings = settings_of(name, seed, work)
    for coding, store in trained(settings, work / name / f"seed-{seed}").items():
        began = time.perf_counter()
        distilled = distill(settings.distill, store)
        scores = evaluate(distilled, settings.evaluate)
        yield {
            "data": name,
            "seed": seed,
            "coding": coding,
            "mean recall": [student["mean"] for student in scores.students],
            "final loss": [float(phase.history["loss"][-10:].sum(1).mean()) for phase in distilled.phases],
            "expert bytes": sum(file.stat().st_size for file in store.path.glob("expert-*")),
            "seconds": time.perf_counter() - began,
        }


def main() -> int:
    options = bare_parser("codings", __doc__)
    options.add_argument(
        "--work", type=Path, default=Path("runs/codings"), metavar="FOLDER", help="data and stores; may be removed"
    )
    asked = options.parse_args()
    cases = [(name, seed) for name, count in SEEDS.items() for seed in range(count)]
    rows = collect(
        asked.json,
        "codings",
        cases,
        lambda row: (row["data"], row["seed"]),
        lambda case: list(measure(*case, asked.work)),
    )
    for case, coding in product(cases, CODINGS):
        recalls = [row["mean recall"] for row in rows if (row["data"], row["seed"], row["coding"]) == (*case, coding)]
        print(*case, coding, f"{statistics.mean(recalls[0]):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
