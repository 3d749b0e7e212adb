"""What a user sees while something runs: on stderr progress with time left, on stdout results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 20.0
_WIDEST = 1000


class Bar:
    """One piece of work of `total` steps."""

    def __init__(self, label: str, total: int, done: int, progress: Progress | None) -> None:
        self._label, self._total, self._done, self._first = label, total, done, done
        self._progress = progress
        self._task = progress.add_task(label, total=total, completed=done, note="") if progress else None
        self._began = self._said = time.monotonic()

    def note(self, note: str) -> None:
        """Say at once what is being done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, note=note)
        else:
            print(f"{self._label}: {note}", file=sys.stderr, flush=True)

    def advance(self, note: str = "", steps: int = 1) -> None:
        self._done += steps
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=steps, note=note)
            return
        now = time.monotonic()
        if now - self._said >= _LINE_EVERY_S:
            self._said = now
            left = (now - self._began) / (self._done - self._first) * (self._total - self._done)
            print(f"{self._label}: {self._done}/{self._total}, {left:.0f} s left  {note}", file=sys.stderr, flush=True)


@contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress of `total` steps, `done` of which were finished in an earlier run."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(label, total, done, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(label, total, done, progress)


def tell(line: str) -> None:
    """A remark on how things are done, on stderr at once."""
    print(line, file=sys.stderr, flush=True)


def say(line: str) -> None:
    """A result, on stdout at once."""
    print(line, flush=True)


def show(renderable: RenderableType) -> None:
    """A table, on stdout; never cut to fit: a narrow terminal wraps its lines."""
    console = Console()
    whole = console.measure(renderable, options=console.options.update(max_width=_WIDEST)).maximum
    console.width = max(console.width, whole)
    console.print(renderable)
