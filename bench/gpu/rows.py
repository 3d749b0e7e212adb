"""Results as lines of JSON, each written as soon as it is there: a process that is killed loses none of them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import result
from bench.result import Row
from ptmst.errors import InputError

Latest = dict[tuple[str, str], Row]
"""By part and row."""
ROWS, LOG = "rows.jsonl", "log.txt"
WHOLE = "whole part"
"""The row of a part that is complete."""
_LONGEST = 1500
"""Most characters of an error."""


class Wrong(Exception):
    """An answer that is not the expected one. Its speed does not count."""


class Spoilt(Exception):
    """The device accepts no more work from this process, which has to end; another process continues."""


@dataclass(frozen=True)
class Folder:
    """The results of one or more calls on one kind of machine."""

    path: Path
    setting: str
    """GPU, torch and size of the cases: rows of other settings in the same folder stay unchanged."""
    call: str
    """Which call of the command this is."""

    def append(self, part: str, **entries: Any) -> None:
        """Raises ValueError for numbers that are not finite."""
        row = {"part": part, "call": self.call, "setting": self.setting, "at": round(time.time(), 1), **entries}
        line = json.dumps(row, allow_nan=False) + "\n"
        with open(self.path / ROWS, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if (end := file.seek(0, os.SEEK_END)) and os.pread(file.fileno(), 1, end - 1) != b"\n":
                line = "\n" + line  # the last writer was killed in the middle
            file.write(line.encode())

    def rows(self) -> list[Row]:
        """All complete rows of this setting."""
        try:
            lines = (self.path / ROWS).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        rows = [row for line in lines if (row := _parsed(line)) is not None]
        return [row for row in rows if row["setting"] == self.setting]

    def latest(self) -> Latest:
        """The last answer of every row."""
        return {(row["part"], row["row"]): row for row in self.rows() if "row" in row and "begun" not in row}

    def unanswered(self, part: str) -> list[str]:
        """Rows of a part that this call began and that have no answer."""
        mine = [row for row in self.rows() if (row["part"], row["call"]) == (part, self.call) and "row" in row]
        answered = {row["row"] for row in mine if "begun" not in row}
        return [name for name in dict.fromkeys(row["row"] for row in mine) if name not in answered]

    def complete(self, part: str) -> bool:
        """Whether a part is complete, in any call, and nothing failed."""
        latest = self.latest()
        return (part, WHOLE) in latest and not any(of == part and "failed" in row for (of, _), row in latest.items())

    def ended(self, part: str) -> bool:
        """Whether this call completed a part."""
        return self.latest().get((part, WHOLE), {}).get("call") == self.call

    def merged(self) -> Path:
        """Write all answers as one file, which belongs into bench/results."""
        calls = [{k: v for k, v in row.items() if k != "part"} for row in self.rows() if row["part"] == "call"]
        about = {key: calls[-1][key] for key in ("command", "machine", "versions")} if calls else {}
        answers = [{k: v for k, v in row.items() if k != "setting"} for row in self.latest().values()]
        name = re.sub(r"[^a-z0-9]+", "-", self.setting.split(",")[0].lower()).strip("-")
        path = self.path / f"gpu-{name}.json"
        result.write(path, answers, **about, setting=self.setting, calls=calls)
        return path

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Raises InputError if another process writes into the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        held = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another process is writing into it; wait, or choose another --out"
            ) from None
        finally:
            os.close(held)


def _parsed(line: bytes) -> Row | None:
    try:
        row: Row = json.loads(line)
    except ValueError:  # torn
        return None
    return row


class Sheet:
    """The rows of one part, written by its process."""

    def __init__(self, folder: Folder, part: str, until: float, check: Callable[[], None]) -> None:
        """Rows that would not be complete by `until`, seconds since the epoch, are left for another call.

        `check` raises if the device accepts no more work.
        """
        self._folder, self._part, self._until, self._check = folder, part, until, check
        self._had = {
            row
            for (of, row), answer in folder.latest().items()
            if of == part and ("failed" not in answer or answer["call"] == folder.call)
        }
        self.whole = True
        """No row was left for lack of time."""

    def wants(self, row: str) -> bool:
        """Whether it is missing: it has no answer, and this call has not tried it."""
        return row not in self._had

    def begin(self, row: str, seconds: float) -> bool:
        """Record that a row is begun, and return True, unless there is too little time left."""
        if time.time() + seconds > self._until:
            self.whole = False
            print(f"{row}: not begun, it takes about {seconds:.0f} s", flush=True)
            return False
        self._folder.append(self._part, row=row, begun=True)
        return True

    def answer(self, row: str, **entries: Any) -> None:
        try:
            self._folder.append(self._part, row=row, **entries)
        except ValueError:
            self._folder.append(self._part, row=row, failed="expected finite numbers, found inf or nan")

    def row(self, name: str, seconds: float, measure: Callable[[], Row]) -> None:
        """Measure a row that is missing, if there is time; an error is its answer. Raises Spoilt."""
        if not self.wants(name) or not self.begin(name, seconds):
            return
        began = time.perf_counter()
        try:
            answer = measure()
        except Exception as error:
            if not isinstance(error, Wrong):
                traceback.print_exc()
            answer = {"failed": describe(error)}
        self.answer(name, **answer, seconds=round(time.perf_counter() - began, 2))
        self.check_device()

    def check_device(self) -> None:
        """Raises Spoilt."""
        if (why := self.spoilt()) is not None:
            raise Spoilt(why)

    def spoilt(self) -> str | None:
        """Why the device accepts no more work from this process, if so."""
        try:
            self._check()
        except Exception as error:
            return describe(error)
        return None


def describe(error: BaseException) -> str:
    kind = "" if isinstance(error, Wrong) else f"{type(error).__name__}: "
    return f"{kind}{error}"[:_LONGEST]
