"""`python -m bench.adjoint --plan NAME`: run a part of the study, or continue it with --resume; then draw its page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from bench import reading, readme
from bench.adjoint import figures
from bench.adjoint.cells import Cell
from bench.adjoint.plans import PLANS
from bench.adjoint.runs import measure, prepare, store_path, teach
from ptmst import schema
from ptmst.errors import InputError
from ptmst.support import files, progress
from ptmst.support.parallel import completed
from ptmst.support.provenance import machine

ROOT, RESULTS = readme.ROOT, readme.RESULTS / "adjoint"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.adjoint", description=__doc__)
    parser.add_argument("--plan", choices=sorted(PLANS), required=True, help="part of the study")
    parser.add_argument("--resume", action="store_true", help="keep what the results hold, run what they lack")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="runs at once, a thread each")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/adjoint"), metavar="FOLDER", help="data and stores; may be removed"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where NAME.json is written")
    asked = parser.parse_args()
    file = asked.results / f"{asked.plan}.json"
    if file.exists() and not asked.resume:
        parser.error(f"{file}: expected no results, found some; continue with --resume, or remove the file")
    rows = reading.rows(file)
    cells = PLANS[asked.plan](asked.results)
    # Read as cells, so that a setting which is new since then has its default.
    kept = {schema.from_json(Cell, row["cell"]): row for row in rows}
    rows = [kept[cell] for cell in cells if cell in kept]
    if len(kept) > len(rows):
        print(f"{file}: {len(kept) - len(rows)} runs of another plan are dropped", file=sys.stderr)
    left = [cell for cell in cells if cell not in kept]
    for data, tower in dict.fromkeys((cell.data, cell.tower) for cell in left):
        prepare(data, tower, asked.work)
    command = f"python -m bench.adjoint --plan {asked.plan} --resume"
    head = {"command": command, "torch": torch.__version__, "machine": machine() | {"threads": 1}}
    asked.results.mkdir(parents=True, exist_ok=True)
    stores = list({store_path(cell, asked.work): cell for cell in left}.values())
    with progress.bar("experts", len(stores)) as bar:
        for name in completed(teach, [(cell, asked.work) for cell in stores], asked.workers):
            bar.advance(name)
    with progress.bar(asked.plan, len(cells), len(cells) - len(left)) as bar:
        for row in completed(measure, [(cell, asked.work) for cell in left], asked.workers):
            rows.append(row)
            files.write_json(file, head | {"rows": rows})
            bar.advance(f"{row['cell']['data']}, seed {row['cell']['seed']}, {row['cell']['setting']}")
    if asked.results == RESULTS:
        figures.draw(RESULTS, ROOT / "docs" / "adjoint")
        readme.write("docs/adjoint.md")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; continue with --resume", file=sys.stderr)
        sys.exit(130)
