"""What is done now and then beside a long piece of work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ptmst.errors import InputError


def in_words(seconds: float) -> str:
    """So many seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def repeatedly(action: Callable[[], None], every_s: float) -> Iterator[None]:
    """Do something every so many seconds, on a thread, as long as the block runs; not while or after it ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            try:
                action()
            except InputError:  # whoever writes what matters finds out for itself
                pass

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
