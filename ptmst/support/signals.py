"""Ctrl-C and SIGTERM between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C (and SIGTERM) until the caller asks; a second one interrupts at once.

    The leaves are updated in place, so a step must not be cut in half before its state is saved. A signal that
    arrives after the last time the caller has asked is raised on exit.
    """
    asked = told = False

    def note(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    def tell() -> bool:
        nonlocal told
        told = asked
        return told

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield tell
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and not told:
        raise KeyboardInterrupt
