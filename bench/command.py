"""What the benchmark commands share: their options, and pytest run with them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptmst.support.memory import keep_freed_memory


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about)
    options.add_argument("--json", type=Path, required=True, metavar="FILE", help="results, as pytest-benchmark's JSON")
    options.add_argument("--only", metavar="WORDS", default="", help="cases that match, as in pytest -k")
    options.add_argument(
        "--allocator",
        choices=("ptmst", "system"),
        default="ptmst",
        help="memory of the process: as `ptmst` sets it up, or as the system does",
    )
    return options


def run(test: str, asked: argparse.Namespace) -> int:
    """Run a test of this folder; returns pytest's exit code."""
    kept = asked.allocator == "ptmst" and keep_freed_memory()
    print(f"allocator: {'keeps freed memory' if kept else 'the system’s'}", flush=True)

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
