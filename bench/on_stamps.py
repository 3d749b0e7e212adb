"""`python -m bench.on_stamps FOLDER --json FILE`: sets of drawings, scored on another domain.

FOLDER is that of an ablation, whose sets and stores are scored on `stamps`. A stopped run continues.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from bench.command import bare_parser, collect
from bench.result import Row
from ptmst import DistilledSet, EvaluateConfig, TrajectoryStore, evaluate
from ptmst.config import WriteDataConfig
from ptmst.data import write_data
from ptmst.evaluation.evaluate import evaluate_experts
from ptmst.studies.runs import FULL_HEADS, store_folder

STUDENTS = 3


def cases(folder: Path) -> list[tuple[str, int]]:
    """Methods by seed; all real pairs last."""
    found = [_of(path) for path in sorted((folder / "sets").iterdir())]
    return [*found, *((FULL_HEADS, seed) for seed in sorted({seed for _, seed in found}))]


def _of(path: Path) -> tuple[str, int]:
    """Method and seed of a set, which is called METHOD-PAIRS-SEED."""
    method, _, seed = path.name.rsplit("-", 2)
    return method, int(seed)


def measured(folder: Path, root: Path, method: str, seed: int) -> Iterator[Row]:
    config = EvaluateConfig(students=STUDENTS, seed=seed, on="stamps", on_root=root)
    if method == FULL_HEADS:
        scores = evaluate_experts(TrajectoryStore.open(store_folder(folder, seed, frozen=True)), config)
    else:
        (path,) = (path for path in (folder / "sets").iterdir() if _of(path) == (method, seed))
        scores = evaluate(DistilledSet.load(path), config)
    scored = scores.provenance["scored"]
    yield {
        "method": method,
        "seed": seed,
        "mean recall": [student["mean"] for student in scores.students],
        "scored": {key: scored[key] for key in ("data", "split", "images", "captions", "fingerprint")},
    }


def main() -> int:
    options = bare_parser("on_stamps", __doc__)
    options.add_argument("folder", type=Path, metavar="FOLDER", help="of an ablation on emoji")
    options.add_argument(
        "--root", type=Path, default=Path("data/stamps"), metavar="FOLDER", help="the data, or for them"
    )
    asked = options.parse_args()
    write_data(WriteDataConfig(name="stamps", root=asked.root))
    rows = collect(
        asked.json,
        "on stamps",
        cases(asked.folder),
        lambda row: (row["method"], row["seed"]),
        lambda case: list(measured(asked.folder, asked.root, *case)),
    )
    for method in dict.fromkeys(row["method"] for row in rows):
        print(method, f"{mean(value for row in rows if row['method'] == method for value in row['mean recall']):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
