"""What a user sees while something runs: progress on stderr, which can be switched off, and results on stdout.

Remarks on how things are done are not printed here: they go to the loggers under `ptmst`.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

_LINE_EVERY_S, _TELL_EVERY_S = 20.0, 0.3
_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, those that turn the direction of what follows, and bytes of a name that is no Unicode."""
_WIDEST = 1000
_shown = True

Told = tuple[str, int, int, str]
"""Of a bar in another process: its label, how much is done, of how much, what is being done."""
_tell: Callable[[Told], object] | None = None
"""Who shows this process's bars."""


@dataclass(frozen=True)
class Underway:
    """How far a bar is."""

    done: int
    total: int
    doing: str
    per_second: float | None
    """Steps, since it was begun here; None before the first."""

    @property
    def left(self) -> float | None:
        """Seconds."""
        return (self.total - self.done) / self.per_second if self.per_second else None


@dataclass(frozen=True)
class Log:
    """What is shown meanwhile, for one more place to show it; read it from any thread."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=12))
    """The last ones."""
    bars: dict[str, Underway] = field(default_factory=dict)
    """Of work that is under way, by label."""


_log: Log | None = None


@contextmanager
def logged() -> Iterator[Log]:
    """Yields what is shown meanwhile, or would be but for `--quiet`."""
    global _log
    before, _log = _log, Log()
    try:
        yield _log
    finally:
        _log = before


def progress(shown: bool) -> None:
    """Switch progress bars and progress lines on stderr on, as they are by default, or off."""
    global _shown
    _shown = shown


def is_shown() -> bool:
    """Whether it is."""
    return _shown


@contextmanager
def switched_off(off: bool = True) -> Iterator[None]:
    """Without progress meanwhile, if `off`."""
    before = _shown
    progress(before and not off)
    try:
        yield
    finally:
        progress(before)


class Bar:
    """One piece of work of `total` steps: a bar on a terminal, elsewhere a line every 20 seconds."""

    def __init__(self, label: str, total: int, done: int, display: Progress | None) -> None:
        self._label, self._total, self._done, self._first = label, total, done, done
        self._display = display
        self._task = display.add_task(label, total=total, completed=done, note="") if display else None
        self._began = self._said = time.monotonic()
        self._log("")

    def note(self, doing: str) -> None:
        """Say at once what is being done."""
        self._log(doing)
        if self._display is not None and self._task is not None:
            self._display.update(self._task, note=doing)
        else:
            _say(f"{self._label}: {doing}")

    def advance(self, doing: str = "", steps: int = 1) -> None:
        self._done += steps
        standing = self._log(doing)
        if self._display is not None and self._task is not None:
            self._display.update(self._task, advance=steps, note=doing)
            return
        now = time.monotonic()
        if steps and now - self._said >= _LINE_EVERY_S:
            self._said = now
            _say(f"{self._label}: {self._done}/{self._total}, {standing.left or 0:.0f} s left  {doing}")

    def _log(self, doing: str) -> Underway:
        seconds, fresh = time.monotonic() - self._began, self._done - self._first
        standing = Underway(self._done, self._total, doing, fresh / seconds if fresh and seconds else None)
        if _log is not None:
            _log.bars[self._label] = standing
        return standing

    def ended(self) -> None:
        """Nothing more will be done."""
        if _log is not None:
            _log.bars.pop(self._label, None)


class _ToldBar(Bar):
    """One that another process shows."""

    def __init__(self, label: str, total: int, done: int, tell: Callable[[Told], object]) -> None:
        super().__init__(label, total, done, None)
        self._tell = tell
        tell((label, done, total, ""))

    def note(self, doing: str) -> None:
        self._tell((self._label, self._done, self._total, doing))

    def advance(self, doing: str = "", steps: int = 1) -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._said >= _TELL_EVERY_S or self._done == self._total:
            self._said = now
            self.note(doing)

    def ended(self) -> None:
        self._tell((self._label, self._done, self._done, ""))


class Bars:
    """The bars of other processes, each made when it is first told of."""

    def __init__(self, display: Progress | None) -> None:
        self._display, self._bars = display, dict[str, Bar]()

    def show(self, told: Told) -> None:
        label, done, total, doing = told
        known = self._bars.get(label)
        if known is None or done < known._done:
            known = self._bars[label] = Bar(label, total, done, self._display)
        known.advance(doing, done - known._done)
        if done == total:
            known.ended()


class Together:
    """One bar for what several processes tell of theirs with the same label."""

    def __init__(self, label: str, bar: Bar) -> None:
        self._label, self._bar, self._done = label, bar, dict[str, int]()

    def show(self, told: Told) -> None:
        label, done, _, doing = told
        name, _, own = label.rpartition(": ")
        if own == self._label and done > (before := self._done.get(name, 0)):
            self._done[name] = done
            self._bar.advance(f"{name}, {doing}", done - before)


@contextmanager
def bars() -> Iterator[Bars]:
    """Show what other processes tell."""
    display = _display() if _shown else None
    with nullcontext() if display is None else display:
        yield Bars(display)


def told_to(tell: Callable[[Told], object] | None, name: str = "") -> None:
    """Let another process show this one's bars, under a name; None: nobody does."""
    global _tell
    _tell = None if tell is None else lambda told: tell((f"{name}: {told[0]}", *told[1:]))


@contextmanager
def bar(label: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress of `total` steps, `done` of which were finished in an earlier run."""
    display = _display() if _shown and _tell is None else None
    with nullcontext() if display is None else display:
        made = Bar(label, total, done, display) if _tell is None else _ToldBar(label, total, done, _tell)
        try:
            yield made
        finally:
            made.ended()


def _display() -> Progress | None:
    """rich's progress bars; None where stderr is no terminal."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
    )
    return rich.Progress(*columns, console=console)


def note(line: str) -> None:
    """A line of progress, such as the stage that begins, on stderr at once."""
    if _log is not None:
        _log.lines.append(printable(line))
    _say(line)


def _say(line: str) -> None:
    if _shown:
        print(printable(line), file=sys.stderr, flush=True)


def result(line: str) -> None:
    """A line of the result, on stdout at once."""
    print(printable(line), flush=True)


def printable(text: str) -> str:
    """Text for a terminal: characters that would steer it, as in a file's name, are written as `\\x1b`."""
    return _STEERS.sub(lambda found: ascii(found[0])[1:-1], text)


def table(renderable: RenderableType) -> None:
    """A table, on stdout; never cut to fit: a narrow terminal wraps its lines."""
    from rich.console import Console

    class Shown(Console):
        def on_broken_pipe(self) -> None:  # rich would end the process itself, with another code
            raise BrokenPipeError

    # Names of sets and files are no markup.
    console = Shown(markup=False, emoji=False, highlight=False)
    whole = console.measure(renderable, options=console.options.update(max_width=_WIDEST)).maximum
    console.width = max(console.width, whole)
    console.print(renderable)
