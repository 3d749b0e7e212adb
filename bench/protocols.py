"""`python -m bench.protocols FOLDER --json FILE`: sets of an ablation, under two protocols of evaluation.

FOLDER is that of the ablation. Students take as many steps in both, on all pairs at once or on batches as large as
those that the set was matched in; on val, where a protocol is chosen, and on test. A stopped run continues.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from bench import result
from bench.command import bare_parser, collect
from bench.on_stamps import Case, recorded, set_of
from bench.result import Row
from bench.spread import spread
from bench.tables import NOT_YET, Table, source
from ptmst import EvaluateConfig, schema
from ptmst.config import Selection
from ptmst.evaluation.intervals import Interval
from ptmst.presets import methods
from ptmst.studies.runs import one_by_one, recalls

PROTOCOLS = ("per-phase", "as-matched")
SPLITS = ("val", "test")


def measured(folder: Path, case: Case, row: Row) -> Iterator[Row]:
    (method, seed), made = case, set_of(folder, row)
    config = replace(schema.from_json(EvaluateConfig, row["provenance"]["config"]), seed=seed)
    for split in SPLITS:
        for protocol in PROTOCOLS:
            asked: Any = {"split": split, "protocol": protocol}
            yield {
                "method": method,
                "seed": seed,
                **asked,
                "recall": recalls(one_by_one(made, replace(config, **asked))),
            }


def table(file: Path) -> str:
    """A line for each method: recalls by split and protocol, and what the batches change, paired by seed."""
    found = result.read(file)
    if found is None:
        return NOT_YET
    by: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(dict)
    for row in found["rows"]:
        by[row["method"], row["split"], row["protocol"]][row["seed"]] = row["recall"]
    shown = Table(["method", "seeds", *(f"{split}, {one}" for split in SPLITS for one in (*PROTOCOLS, "difference"))])
    for method in dict.fromkeys(row["method"] for row in found["rows"]):
        cells: list[str] = []
        for split in SPLITS:
            once, matched = (by[method, split, protocol] for protocol in PROTOCOLS)
            cells += [spread([value for values in one.values() for value in values]) for one in (once, matched)]
            cells.append(str(Interval.of([mean(matched[seed]) - mean(once[seed]) for seed in once])))
        shown.add(method, str(len(by[method, "val", "per-phase"])), *cells)
    return shown.markdown(
        "Mean recall in percent, mean ± standard deviation over seeds × 3 students, of runs that did not end early; "
        f"differences are paired by seed, with their 95 % intervals of Student's t. {source(found, ran='')}"
    )


def main() -> int:
    options = bare_parser("protocols", __doc__)
    options.add_argument("folder", type=Path, metavar="FOLDER", help="of an ablation")
    asked = options.parse_args()
    known = {case: row for case, row in recorded(asked.folder).items() if case[0] in methods()}
    assert not {*get_args(Selection)} & {method for method, _ in known}
    collect(
        asked.json,
        "protocols",
        list(known),
        lambda row: (row["method"], row["seed"]),
        lambda case: list(measured(asked.folder, case, known[case])),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
