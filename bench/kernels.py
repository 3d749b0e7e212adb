"""`python -m bench.kernels --json FILE`: every kernel on a CPU beside plain torch and torch.compile."""

from __future__ import annotations

import sys

from bench.command import parser, run


def main() -> int:
    return run("test_kernels.py", parser("kernels", __doc__).parse_args())


if __name__ == "__main__":
    sys.exit(main())
