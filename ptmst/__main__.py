"""The program: Ctrl-C has one line as its answer from the first import on."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    from ptmst.cli import main as run

    return run()


def stop(number: int, frame: object) -> None:
    """End at once on Ctrl-C: an exception would be raised inside an import, which may make another of it."""
    os.write(2, b"ptmst: stopped; the same command starts again\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
