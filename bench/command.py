"""What the benchmark commands share: their options, pytest with them, and results that grow case by case."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench import result
from bench.result import Row, Rows
from ptmst.support import progress
from ptmst.support.memory import keep_freed_memory

Case = TypeVar("Case")


def bare_parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Options of `python -m bench.NAME`: the file of results."""
    options = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    options.add_argument("--json", type=Path, required=True, metavar="FILE", help="results")
    return options


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Options of a benchmark that pytest runs."""
    options = bare_parser(name, about)
    options.add_argument("--only", metavar="WORDS", default="", help="cases that match, as in pytest -k")
    options.add_argument(
        "--allocator",
        choices=("ptmst", "system"),
        default="ptmst",
        help="memory of the process: as `ptmst` sets it up, or as the system does",
    )
    return options


def run(test: str, asked: argparse.Namespace) -> int:
    """Run a test of this folder; returns pytest's exit code. conftest.py writes the results."""
    changed = asked.allocator == "ptmst" and keep_freed_memory()
    print(f"allocator: {'keeps freed memory' if changed else 'the system’s'}", flush=True)

    import pytest

    arguments = [
        str(Path(__file__).parent / test),
        f"--benchmark-json={asked.json}",
        "--benchmark-columns=median,min,max,rounds",
        "--benchmark-sort=name",
        "-q",
        "--timeout=0",
        *(["-k", asked.only] if asked.only else []),
    ]
    return int(pytest.main(arguments))


def collect(
    file: Path,
    title: str,
    cases: Sequence[Case],
    case_of: Callable[[Row], Case],
    measure: Callable[[Case], Iterable[Row]],
) -> Rows:
    """Measure the cases that the file lacks, with a progress bar; it is written after each, in the order of the cases.

    A stopped run continues.
    """
    rows = [row for row in result.rows(file) if case_of(row) in cases]
    left = [case for case in cases if case not in {case_of(row) for row in rows}]
    with progress.bar(title, len(cases), len(cases) - len(left)) as bar:
        for case in left:
            rows += measure(case)
            rows.sort(key=lambda row: cases.index(case_of(row)))
            result.write(file, rows)
            bar.advance(" ".join(map(str, case)) if isinstance(case, tuple) else str(case))
    return rows


def report(file: Path, rows: Rows, **more: Any) -> int:
    """Write all rows at once and print them; the exit code of a benchmark that measures in one go."""
    result.write(file, rows, **more)
    for row in rows:
        print(
            ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    return 0
