"""`python -m bench.slower BEFORE AFTER`: name what became slower between two files of `bench.waits`.

Compared are ratios to what was measured beside it in the same run, never seconds: machines differ. Exits with 1 where
something became slower, or is no longer measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import result
from bench.result import Rows

BY = 1.25
"""Times that a ratio may grow: on two shared cores, the same code varies by less."""


def slower(before: Rows, after: Rows, by: float = BY) -> list[str]:
    """A line for everything that became slower, or is missing."""
    now = {row["wait"]: row for row in after}
    found = []
    for row in before:
        if "ratio" not in row:
            continue
        name, was = row["wait"], row["ratio"]
        if name not in now:
            found.append(f"{name}: not measured any more")
        elif (is_now := now[name]["ratio"]) > by * was:
            found.append(f"{name}: {is_now:.2f} × {row['beside']}, before {was:.2f} ×")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.slower", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--by", type=float, default=BY, help="times that a ratio may grow")
    asked = parser.parse_args()
    for file in (asked.before, asked.after):
        if not file.is_file():
            parser.error(f"{file}: expected results of bench.waits, found no such file; measure them first")
    found = slower(result.rows(asked.before), result.rows(asked.after), asked.by)
    print("\n".join(found) or "nothing became slower")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
