"""`python -m bench.students --json FILE`: the students of one evaluation, one at a time and as one stack."""

from __future__ import annotations

import sys

from bench.command import parser, run


def main() -> int:
    return run("test_students.py", parser("students", __doc__).parse_args())


if __name__ == "__main__":
    sys.exit(main())
