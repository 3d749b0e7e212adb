"""`python -m bench.features --json FILE`: teaching behind a frozen tower, with kept features and through the tower.

The experts of the demo on emoji, three times in one run: through the tower in every batch, with an empty cache, and
with the features that it then holds. All experts of each are compared.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from bench import result
from bench.command import bare_parser

THROUGH, EMPTY, KEPT = "through the tower in every batch", "kept features, empty cache", "kept features, in the cache"
WAYS = (THROUGH, EMPTY, KEPT)


def measure(data: Path, out: Path, epochs: int, experts: int, ways: Sequence[str] = WAYS) -> list[dict[str, Any]]:
    """A row for each way; experts are compared with those of the first."""
    from ptmst.data import load_split
    from ptmst.presets import experiment
    from ptmst.teachers.teach import train_teachers
    from ptmst.trajectories.store import TrajectoryStore

    demo = experiment("demo").teach
    config = replace(demo, data=replace(demo.data, root=data), epochs=epochs, experts=experts, device="cpu")
    pairs = len(load_split(config.data, "train"))
    rows: list[dict[str, Any]] = []
    stores: dict[str, TrajectoryStore] = {}
    for way in ways:
        asked = replace(config, out=out / way.replace(" ", "-").replace(",", ""))
        with _through_the_tower() if way == THROUGH else nullcontext():
            began, cpu = time.perf_counter(), _cpu_seconds()
            # Only this process sees through the tower.
            stores[way] = train_teachers(replace(asked, workers=1) if way == THROUGH else asked)
            seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
        row = {"way": way, "experts": experts, "epochs": epochs, "seconds": seconds, "CPU seconds": cpu}
        rows.append(row | {"pairs": pairs})
    for row in rows:
        row["distance"] = _distance(stores[str(row["way"])], stores[ways[0]])
    return rows


@contextmanager
def _through_the_tower() -> Iterator[None]:
    """Experts see images, as where these are augmented."""
    from ptmst.teachers import side_by_side, training

    with ExitStack() as patches:
        for module in (side_by_side, training):
            patches.enter_context(mock.patch.object(module, "seen_features", return_value=None))
        yield


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _distance(store: Any, other: Any) -> float:
    """How far the experts end from each other, relative to their way from the start: the most of all experts."""
    apart = []
    for number in sorted(store.experts):
        mine, theirs = store.expert(number).raw(), other.expert(number).raw()
        start, end = theirs.point(0), theirs.point(store.epochs)
        apart.append(float((mine.point(store.epochs) - end).norm() / (end - start).norm()))
    return max(apart)


def main() -> int:
    options = bare_parser("features", __doc__)
    options.add_argument("--kept", action="store_true", help="with kept features alone, which takes two minutes")
    asked = options.parse_args()
    from ptmst.config import WriteDataConfig
    from ptmst.data import write_data

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PTMST_CACHE"] = f"{folder}/cache"
        data = Path(folder) / "data"
        write_data(WriteDataConfig("emoji", data))
        result.write(asked.json, measure(data, Path(folder), 10, 4, WAYS[1:] if asked.kept else WAYS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
