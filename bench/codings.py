"""`python -m bench.codings --json FILE`: what a store's coding costs in recall.

For each data set and seed experts are taught once; the same experts are then distilled from exact float32
trajectories, from the fp16 store and from the int8 store, at the same draws, and fresh students are scored. Small
settings (the demo's quick ones), so that differences between codings, not recall, are what it shows. A stopped run
continues: what FILE holds is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

from bench import reading
from ptmst import TrajectoryStore, distill, evaluate, train_teachers
from ptmst.config import DataConfig, Experiment
from ptmst.data import write_rendered
from ptmst.presets import experiment
from ptmst.students.layers import LayerTable
from ptmst.support import files
from ptmst.support.provenance import machine
from ptmst.trajectories import shortcut
from ptmst.trajectories.shortcut import Displacement, Expert, Shortcut, shortcut_beta
from ptmst.trajectories.spans import RawSpan

DATA: tuple[Literal["scenes", "digits"], ...] = ("scenes", "digits")
SEEDS = (0, 1, 2)
CODINGS = ("float32", "fp16", "int8")


@dataclass(frozen=True)
class ExactShortcut:
    """A shortcut whose displacement was never rounded."""

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
        kept = super().expert(number, endpoints)
        return ExactExpert(kept.layers, kept.base, kept.displacements, kept.step_norms, self.deltas[number])


@contextmanager
def exact_deltas(found: list[Tensor]) -> Iterator[None]:
    """Collect every displacement before it is rounded."""
    encode = Displacement.encode

    def recorded(delta: Tensor, layers: LayerTable) -> Displacement:
        found.append(delta.clone())
        return encode(delta, layers)

    with mock.patch.object(shortcut.Displacement, "encode", staticmethod(recorded)):
        yield


def taught(settings: Experiment, data: DataConfig, seed: int, folder: Path) -> dict[str, TrajectoryStore]:
    """The same experts in the three codings."""
    found: list[Tensor] = []
    config = replace(settings.teach, out=folder / "fp16", data=data, seed=seed)
    with exact_deltas(found):
        store = train_teachers(config)
    kept, count = store.endpoints, len(store)
    if len(found) != count * len(kept):
        raise SystemExit(f"{folder}: expected experts taught from the beginning; remove the folder")
    deltas = tuple(dict(zip(kept, found[n * len(kept) :], strict=False)) for n in range(count))
    fields = (store.layers, store.epochs, kept, store.settings)
    exact = ExactStore(store.path, *fields, experts=store.experts, hashes=store.hashes, deltas=deltas)
    small = TrajectoryStore(folder / "int8", *fields, coding="int8")
    for name in [name for name in store.hashes if name.startswith("tower")]:
        small.add_file(name, store.read_file(name))
    for number in range(count):
        small.add(number, store.expert(number), {})
    return {"float32": exact, "fp16": store, "int8": small}


def measure(name: Literal["scenes", "digits"], seed: int, work: Path) -> Iterator[dict[str, Any]]:
    settings = experiment("demo-quick")
    root = work / name / "data"
    write_rendered(replace(settings.data, name=name, root=root))
    data = DataConfig(name=name, root=root, image_size=settings.data.image_size)
    folder = work / name / f"seed-{seed}"
    for coding, store in taught(settings, data, seed, folder).items():
        began = time.perf_counter()
        distilled = distill(replace(settings.distill, seed=seed), store)
        scores = evaluate(distilled, replace(settings.evaluate, seed=seed))
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
    parser = argparse.ArgumentParser(prog="python -m bench.codings", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results; what it holds is kept")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/codings"), metavar="FOLDER", help="data and stores; may be removed"
    )
    asked = parser.parse_args()
    rows = reading.rows(asked.json)
    for name in DATA:
        for seed in SEEDS:
            if sum((row["data"], row["seed"]) == (name, seed) for row in rows) == len(CODINGS):
                continue
            rows = [row for row in rows if (row["data"], row["seed"]) != (name, seed)]
            rows += measure(name, seed, asked.work)
            command = f"python -m bench.codings --json {asked.json}"
            files.write_json(
                asked.json,
                {"command": command, "torch": torch.__version__, "machine": machine(), "rows": rows},
            )
            last = {row["coding"]: f"{statistics.mean(row['mean recall']):.1f}" for row in rows[-3:]}
            print(name, seed, last, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
