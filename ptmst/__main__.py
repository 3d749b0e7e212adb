"""The program: Ctrl-C has one line as its answer from the first import on."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    from ptmst.cli import main as run

    return run()


def _stop(number: int, frame: object) -> None:
    # An exception would be raised inside an import, which may make another of it. Nothing has begun.
    os.write(2, b"ptmst: stopped; the same command starts again\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
