"""What was found, a line of JSON as soon as it is there: a process that is killed loses nothing of it."""

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
from ptmst.errors import InputError

Found = dict[str, Any]
Latest = dict[tuple[str, str], Found]
"""By part and row."""
ROWS, LOG = "rows.jsonl", "log.txt"
WHOLE = "whole part"
"""The row of a part that came to its end."""
_TOLD = 1500
"""Characters of an error that are kept."""


class Wrong(Exception):
    """An answer that is not the expected one. Its speed does not count."""


class Spoilt(Exception):
    """The device takes no more work from this process, which has to end; what is left goes on in another."""


@dataclass(frozen=True)
class Folder:
    """The results of one or more calls on one kind of machine."""

    path: Path
    setting: str
    """GPU, torch and size of the cases: rows of other settings in the same folder are left as they are."""
    call: str
    """Which call of the command this is."""

    def append(self, part: str, **found: Any) -> None:
        """Raises ValueError for numbers that are not finite."""
        row = {"part": part, "call": self.call, "setting": self.setting, "at": round(time.time(), 1), **found}
        line = json.dumps(row, allow_nan=False) + "\n"
        with open(self.path / ROWS, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if (end := file.seek(0, os.SEEK_END)) and os.pread(file.fileno(), 1, end - 1) != b"\n":
                line = "\n" + line  # the last writer was killed in the middle
            file.write(line.encode())

    def rows(self) -> list[Found]:
        """All rows of this setting, whole ones."""
        try:
            lines = (self.path / ROWS).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = [row for line in lines if (row := _parsed(line)) is not None]
        return [row for row in found if row["setting"] == self.setting]

    def latest(self) -> Latest:
        """The last answer of every row."""
        return {(row["part"], row["row"]): row for row in self.rows() if "row" in row and "begun" not in row}

    def unanswered(self, part: str) -> list[str]:
        """Rows of a part that this call began, and has no answer to."""
        mine = [row for row in self.rows() if (row["part"], row["call"]) == (part, self.call) and "row" in row]
        answered = {row["row"] for row in mine if "begun" not in row}
        return [name for name in dict.fromkeys(row["row"] for row in mine) if name not in answered]

    def complete(self, part: str) -> bool:
        """Whether a part came to its end, in whatever call, and nothing failed."""
        latest = self.latest()
        return (part, WHOLE) in latest and not any(of == part and "failed" in row for (of, _), row in latest.items())

    def ended(self, part: str) -> bool:
        """Whether a part came to its end in this call."""
        return self.latest().get((part, WHOLE), {}).get("call") == self.call

    def merged(self) -> Path:
        """All answers as one file, to be kept under bench/results."""
        calls = [{k: v for k, v in row.items() if k != "part"} for row in self.rows() if row["part"] == "call"]
        about = {key: calls[-1][key] for key in ("command", "machine", "versions")} if calls else {}
        answers = [{k: v for k, v in row.items() if k != "setting"} for row in self.latest().values()]
        name = re.sub(r"[^a-z0-9]+", "-", self.setting.split(",")[0].lower()).strip("-")
        path = self.path / f"gpu-{name}.json"
        result.write(path, answers, **about, setting=self.setting, calls=calls)
        return path

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Raises InputError where another process writes the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        held = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another process is measuring into it; wait, or choose another --out"
            ) from None
        finally:
            os.close(held)


def _parsed(line: bytes) -> Found | None:
    try:
        row: Found = json.loads(line)
    except ValueError:  # torn
        return None
    return row


class Sheet:
    """The rows of one part, as its process finds them."""

    def __init__(self, folder: Folder, part: str, until: float, check: Callable[[], None]) -> None:
        """Rows that would not be found `until` then, seconds since the epoch, are left for another call.

        `check` raises where the device takes no more work.
        """
        self._folder, self._part, self._until, self._check = folder, part, until, check
        self._had = {
            row
            for (of, row), found in folder.latest().items()
            if of == part and ("failed" not in found or found["call"] == folder.call)
        }
        self.whole = True
        """No row was left for lack of time."""

    def wants(self, row: str) -> bool:
        """Whether it is missing: not found before, and not tried in this call."""
        return row not in self._had

    def begin(self, row: str, seconds: float) -> bool:
        """Say that a row is begun; not where it would take longer than there is."""
        if time.time() + seconds > self._until:
            self.whole = False
            print(f"{row}: not begun, it takes about {seconds:.0f} s", flush=True)
            return False
        self._folder.append(self._part, row=row, begun=True)
        return True

    def answer(self, row: str, **found: Any) -> None:
        try:
            self._folder.append(self._part, row=row, **found)
        except ValueError:
            self._folder.append(self._part, row=row, failed="expected finite numbers, found others")

    def row(self, name: str, seconds: float, find: Callable[[], Found]) -> None:
        """Find a row that is missing, if there is time; what goes wrong is its answer. Raises Spoilt."""
        if not self.wants(name) or not self.begin(name, seconds):
            return
        began = time.perf_counter()
        try:
            found = find()
        except Exception as error:
            if not isinstance(error, Wrong):
                traceback.print_exc()
            found = {"failed": told(error)}
        self.answer(name, **found, seconds=round(time.perf_counter() - began, 2))
        self.check_device()

    def check_device(self) -> None:
        """Raises Spoilt."""
        if (why := self.spoilt()) is not None:
            raise Spoilt(why)

    def spoilt(self) -> str | None:
        """Why the device takes no more work from this process."""
        try:
            self._check()
        except Exception as error:
            return told(error)
        return None


def told(error: BaseException) -> str:
    kind = "" if isinstance(error, Wrong) else f"{type(error).__name__}: "
    return f"{kind}{error}"[:_TOLD]
