"""`python -m bench.on_stamps FOLDER --json FILE`: sets of drawings, scored on another domain.

FOLDER is that of an ablation, whose sets and stores are scored on `stamps`, by students that are trained as there. A
stopped run continues.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

from bench.command import bare_parser, collect
from bench.result import Row
from ptmst import DistilledSet, EvaluateConfig, TrajectoryStore, schema
from ptmst.config import TUNING_SEEDS, DataConfig, WriteDataConfig
from ptmst.data import load_split, write_data
from ptmst.evaluation.evaluate import evaluate_experts
from ptmst.studies.ablation import RESULTS
from ptmst.studies.runs import FULL_HEADS, Run, one_by_one, recalls, set_folder, store_folder
from ptmst.support import files

Case = tuple[str, int]
"""Method and seed."""


def recorded(folder: Path) -> dict[Case, Row]:
    """The runs that were compared, by method and seed; all real pairs last."""
    rows = [row for row in files.read_json(folder / RESULTS, "ablation", 1)["rows"] if not _tunes(row)]
    by_case = {(row["run"]["method"], row["run"]["seed"]): row for row in rows if row["students"]}
    return dict(sorted(by_case.items(), key=lambda one: (one[0][0] == FULL_HEADS, one[0])))


def _tunes(row: Row) -> bool:
    return row["run"]["seed"] in TUNING_SEEDS


def set_of(folder: Path, row: Row) -> DistilledSet:
    """The set of a run that was compared."""
    return DistilledSet.load(set_folder(folder, schema.from_json(Run, row["run"])))


def measured(folder: Path, root: Path, case: Case, row: Row) -> Iterator[Row]:
    (method, seed), elsewhere = case, {"on": "stamps", "on_root": root}
    if method == FULL_HEADS:
        config = EvaluateConfig(students=len(row["students"]), **elsewhere)  # type: ignore[arg-type]
        scores = evaluate_experts(TrajectoryStore.open(store_folder(folder, seed, frozen=True)), config)
        recalls_there = [student["mean"] for student in scores.students]
    else:
        config = schema.from_json(EvaluateConfig, row["provenance"]["config"])
        made = set_of(folder, row)
        recalls_there = recalls(one_by_one(made, replace(config, seed=seed, **elsewhere)))  # type: ignore[arg-type]
    scored = load_split(DataConfig(name="stamps", root=root, image_size=64), "test")
    yield {
        "method": method,
        "seed": seed,
        "mean recall": recalls_there,
        "scored": {"data": scored.name, "images": len(scored.image_names), "captions": len(scored)},
    }


def main() -> int:
    options = bare_parser("on_stamps", __doc__)
    options.add_argument("folder", type=Path, metavar="FOLDER", help="of an ablation on emoji")
    options.add_argument(
        "--root", type=Path, default=Path("data/stamps"), metavar="FOLDER", help="the data, or for them"
    )
    asked = options.parse_args()
    write_data(WriteDataConfig(name="stamps", root=asked.root))
    runs = recorded(asked.folder)
    rows = collect(
        asked.json,
        "on stamps",
        list(runs),
        lambda row: (row["method"], row["seed"]),
        lambda case: list(measured(asked.folder, asked.root, case, runs[case])),
    )
    for method in dict.fromkeys(row["method"] for row in rows):
        print(method, f"{mean(value for row in rows if row['method'] == method for value in row['mean recall']):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
