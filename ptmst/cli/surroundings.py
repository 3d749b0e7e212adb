"""What is around a process that is ours: its streams and Ctrl-C. Torch is not imported here."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from ptmst.support import locks

CLOSED_PIPE = 128 + 13
"""The exit code where nobody reads any more what is written, as the shell shows it of other programs."""
_PLAIN = {"±": "+-", "×": "x", "·": "*", "…": "...", "–": "-", "—": "-", "→": "->", "η": "eta", "θ": "theta", "μ": "u"}
"""Characters of ours, for an output that cannot show them."""
_ERRORS = "ptmst.plain"
_interrupts: list[int] = []


def prepare(stopped: Callable[[], str]) -> None:
    """Make the streams ready for any character, and Ctrl-C, while something is imported, end in the line `stopped`."""
    _open_what_is_closed()
    codecs.register_error(_ERRORS, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        # An import that is cut off makes other errors of it. Where nothing is being written, there is nothing to undo.
        if _imports(frame) and not locks.HELD:
            os.write(2, f"{stopped()}\n".encode())
            os._exit(130)
        _interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, on_interrupt)


def interrupted() -> bool:
    """Whether there was a Ctrl-C: whatever is raised then is its consequence, as in an import that was cut off."""
    return bool(_interrupts)


def flush() -> None:
    """Write out what was printed: a pipe that was closed, or a full disk, is found here and not after the end."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def silence() -> None:
    """Let what cannot be written any more go nowhere, without a word at the end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # it has no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_what_is_closed() -> None:
    """Standard streams that were closed: the next file that is opened would take their place, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wanted = error.object[error.start : error.end]
    shown = "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in wanted)
    return shown, error.end
