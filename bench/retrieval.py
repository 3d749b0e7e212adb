"""`python -m bench.retrieval --json FILE`: retrieval recall at the size of COCO's 5k test split."""

from __future__ import annotations

import sys

from bench.command import parser, run


def main() -> int:
    return run("test_retrieval.py", parser("retrieval", __doc__).parse_args())


if __name__ == "__main__":
    sys.exit(main())
