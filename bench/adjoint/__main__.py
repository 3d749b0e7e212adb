"""`python -m bench.adjoint --plan NAME`: run a part of the study, or continue it with --resume; update its page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench import readme, result
from bench.adjoint import figures
from bench.adjoint.cells import Cell
from bench.adjoint.plans import PLANS
from bench.adjoint.runs import measure, prepare, store_path, teach
from ptmst import schema
from ptmst.errors import InputError
from ptmst.support import progress
from ptmst.support.parallel import completed
from ptmst.support.provenance import machine

RESULTS = result.RESULTS / "adjoint"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.adjoint", description=__doc__)
    parser.add_argument("--plan", choices=sorted(PLANS), required=True, help="part of the study")
    parser.add_argument("--resume", action="store_true", help="continue: run only the cells that the results lack")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="runs at once, a thread each")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/adjoint"), metavar="FOLDER", help="data and stores; may be removed"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where NAME.json is written")
    asked = parser.parse_args()
    file = asked.results / f"{asked.plan}.json"
    if file.exists() and not asked.resume:
        parser.error(f"{file}: expected no results, found some; continue with --resume, or remove the file")
    cells = PLANS[asked.plan](asked.results)
    # Compared as cells, so that a setting added since then has its default.
    measured = {schema.from_json(Cell, row["cell"]): row for row in result.rows(file)}
    rows = [measured[cell] for cell in cells if cell in measured]
    if len(measured) > len(rows):
        print(f"{file}: {len(measured) - len(rows)} runs of another plan are dropped", file=sys.stderr)
    left = [cell for cell in cells if cell not in measured]
    for data, tower in dict.fromkeys((cell.data, cell.tower) for cell in left):
        prepare(data, tower, asked.work)
    command = f"python -m bench.adjoint --plan {asked.plan} --resume"
    one_thread = machine() | {"threads": 1}
    stores = list({store_path(cell, asked.work): cell for cell in left}.values())
    with progress.bar("experts", len(stores)) as bar:
        for name in completed(teach, [(cell, asked.work) for cell in stores], asked.workers):
            bar.advance(name)
    with progress.bar(asked.plan, len(cells), len(cells) - len(left)) as bar:
        for row in completed(measure, [(cell, asked.work) for cell in left], asked.workers):
            rows.append(row)
            result.write(file, rows, command=command, machine=one_thread)
            bar.advance(f"{row['cell']['data']}, seed {row['cell']['seed']}, {row['cell']['setting']}")
    if asked.results == RESULTS:
        figures.draw(RESULTS, figures.FOLDER)
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
