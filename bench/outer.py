"""`python -m bench.outer --device cpu|cuda --json FILE`: the outer step, measured beside what people use today."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ptmst.allocator import keep_freed_memory

_GPU_MINUTES = 8.0
"""Begin no case later; the last one takes less than a minute more."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.outer", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the outer step runs")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results, as pytest-benchmark's JSON")
    parser.add_argument("--growth", action="store_true", help="how cost grows along one axis, not who is faster")
    parser.add_argument("--only", metavar="WORDS", default="", help="cases that match, as in pytest -k")
    parser.add_argument(
        "--allocator",
        choices=("ptmst", "system"),
        default="ptmst",
        help="memory of the process: as `ptmst` sets it up, or as the system does (CPU only)",
    )
    asked = parser.parse_args()
    kept = asked.allocator == "ptmst" and keep_freed_memory()
    print(f"allocator: {'keeps freed memory' if kept else 'the system’s'}", flush=True)

    import pytest

    here = Path(__file__).parent
    arguments = [
        str(here / "test_outer.py") + ("::test_growth" if asked.growth else "::test_outer_step"),
        f"--device={asked.device}",
        f"--benchmark-json={asked.json}",
        "--benchmark-columns=median,min,max,rounds",
        "--benchmark-sort=name",
        "-q",
        "--timeout=0",
        *(["-k", asked.only] if asked.only else []),
        *([f"--minutes={_GPU_MINUTES}"] if asked.device == "cuda" else []),
    ]
    return int(pytest.main(arguments))


if __name__ == "__main__":
    sys.exit(main())
