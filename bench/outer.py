"""`python -m bench.outer --json FILE`: the outer step on a CPU, measured beside what people use today."""

from __future__ import annotations

import sys

from bench.command import parser, run


def main() -> int:
    options = parser("outer", __doc__)
    options.add_argument("--growth", action="store_true", help="how cost grows along one axis, not who is faster")
    asked = options.parse_args()
    return run("test_outer.py" + ("::test_growth" if asked.growth else "::test_outer_step"), asked)


if __name__ == "__main__":
    sys.exit(main())
