"""Parts side by side: as processes, as many as cores, memory and time allow."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from bench.gpu.parts import CORES, STAGES, Part
from bench.gpu.rows import LOG, WHOLE, Folder
from bench.gpu.timing import LOCK
from bench.gpu.worker import FAILED, SPOILT
from bench.result import Row

_POLL_S, _MERGE_EVERY_S, _TO_END_S = 0.5, 5.0, 4.0
_SHARE, _TO_MEASURE_GB = 0.9, 30
"""Share of the device's memory that parts may take, and GB that a part takes while it measures."""
_SHOWN = (
    "ms",
    "graph ms",
    "replay ms",
    "compile s",
    "peak MB",
    "of a copy",
    "of a copy, in a graph",
    "fraction of floor",
    "images/s",
    "students/s",
    "kernels",
    "mean recall",
    "relative distance",
    "out of memory",
    "skipped",
)


class Runner:
    """One call of the command."""

    def __init__(
        self,
        folder: Folder,
        parts: Sequence[Part],
        command: Sequence[str],
        until: float,
        cores: int,
        gigabytes: float,
    ) -> None:
        """`command` starts the process of a part; everything has ended by `until`, in seconds since the epoch."""
        self._folder, self._parts, self._command, self._until = folder, parts, command, until
        self._cores, self._gigabytes = cores, gigabytes
        self._slower = max(1.0, CORES / cores)
        self._running: dict[str, tuple[Part, subprocess.Popen[str]]] = {}
        self._left: list[str] = []
        """Parts that were not begun, or not completed, for lack of time."""
        self._seen, self._merged = len(folder.rows()), 0.0
        self._began = time.time()

    def run(self) -> None:
        waiting = [part for part in self._parts if not self._folder.complete(part.name)]
        for part in self._parts:
            if part not in waiting:
                self._say(f"{part.name}: found before")
        while waiting or self._running:
            if self._late():
                self._left += [part.name for part in waiting]
                return
            waiting = [*self._ended(), *waiting]
            for part in list(waiting):
                if not self._its_turn(part, waiting):
                    continue
                if self._began_in_time(part) and not self._has_room(part):
                    if part.cores >= self._cores:
                        break  # nobody overtakes a part that needs the whole host
                    continue
                waiting.remove(part)
                if self._began_in_time(part):
                    self._begin(part)
                else:
                    self._left.append(part.name)
                    self._say(f"{part.name}: not begun, its first result takes about {self._first(part):.0f} s")
            self._tell()
            time.sleep(_POLL_S)
        self._tell()

    def stop(self) -> None:
        """End what still runs; its results so far stay."""
        for _, process in self._running.values():
            _kill(process)
        self._left += self._running
        self._running = {}
        self._tell()
        self._folder.merged()

    def failed(self) -> list[tuple[str, str, Row]]:
        """Part, row and answer."""
        return [(part, row, found) for part, row, found in self._answers() if "failed" in found]

    def summary(self) -> list[str]:
        lines = []
        for stage in STAGES:
            names = {part.name for part in self._parts if part.stage == stage}
            answers = [(part, row, found) for part, row, found in self._answers() if part in names and row != WHOLE]
            failed = sum("failed" in found for *_, found in answers)
            skipped = sum("skipped" in found for *_, found in answers)
            if names:
                lines.append(f"{stage}: {len(answers) - failed - skipped} good, {failed} failed, {skipped} skipped")
        lines += [f"  failed: {part} / {row}: {_line(found['failed'])}" for part, row, found in self.failed()]
        if self._left:
            lines.append(f"not complete for lack of time, the same command continues: {', '.join(self._left)}")
        return [*lines, f"all of it: {self._folder.merged()}"]

    def _answers(self) -> Iterator[tuple[str, str, Row]]:
        mine = {part.name for part in self._parts}
        return ((part, row, found) for (part, row), found in self._folder.latest().items() if part in mine)

    def _first(self, part: Part) -> float:
        return part.first * self._slower

    def _began_in_time(self, part: Part) -> bool:
        return time.time() + self._first(part) < self._until - _TO_END_S

    def _late(self) -> bool:
        return time.time() > self._until - _TO_END_S

    def _its_turn(self, part: Part, waiting: Sequence[Part]) -> bool:
        """Parts of a later stage wait for all of an earlier one, so that they do not disturb each other."""
        stages = [STAGES.index(other.stage) for other in (*waiting, *(other for other, _ in self._running.values()))]
        return STAGES.index(part.stage) == min(stages)

    def _has_room(self, part: Part) -> bool:
        running = [other for other, _ in self._running.values()]
        cores = sum(other.cores for other in (*running, part))
        gigabytes = sum(other.gigabytes for other in (*running, part)) + _TO_MEASURE_GB
        return not running or (cores <= self._cores and gigabytes <= _SHARE * self._gigabytes)

    def _begin(self, part: Part) -> None:
        environment = os.environ | {
            LOCK: str(self._folder.path / ".device"),
            "OMP_NUM_THREADS": str(part.cores),
            "TORCHINDUCTOR_COMPILE_THREADS": str(part.cores),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }
        folder = self._folder
        options = ["--out", str(folder.path), "--setting", folder.setting, "--call", folder.call]
        process = subprocess.Popen(
            [*self._command, part.name, *options, "--until", str(self._until - _TO_END_S)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # In a separate process group, so that its children end with it.
            start_new_session=True,
        )
        threading.Thread(target=self._log, args=(part.name, process), daemon=True).start()
        self._running[part.name] = part, process
        self._say(f"{part.name}: begun, about {part.seconds * self._slower:.0f} s")

    def _log(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as said, open(self._folder.path / LOG, "a") as log:
            for line in said:
                log.write(f"{name}: {line}")
                log.flush()

    def _ended(self) -> list[Part]:
        """Handle processes that ended; returns parts that have to be started again."""
        again = []
        for part, process in list(self._running.values()):
            if (code := process.poll()) is None:
                continue
            del self._running[part.name]
            _kill(process)  # its children
            if code == 0 and not self._folder.ended(part.name):
                self._left.append(part.name)
            if code not in (0, FAILED, SPOILT):
                unanswered = self._folder.unanswered(part.name)
                rows = [row for row in unanswered if row != WHOLE] or [WHOLE]
                for row in rows:
                    self._folder.append(part.name, row=row, failed=f"exit code {code} of its process; {LOG} has why")
                if rows != [WHOLE]:
                    again.append(part)
            if code == SPOILT:
                again.append(part)
        return again

    def _tell(self) -> None:
        rows = self._folder.rows()
        for row in rows[self._seen :]:
            if "row" in row and "begun" not in row and row["row"] != WHOLE:
                self._say(f"{row['part']} / {row['row']}: {_short(row)}")
        if len(rows) > self._seen and time.time() - self._merged > _MERGE_EVERY_S:
            self._folder.merged()
            self._merged = time.time()
        self._seen = len(rows)

    def _say(self, line: str) -> None:
        print(f"{time.time() - self._began:5.0f} s  {line}", flush=True)


def _kill(process: subprocess.Popen[str]) -> None:
    """The process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _short(row: Row) -> str:
    if "failed" in row:
        return f"FAILED: {_line(row['failed'])}"
    shown = [f"{name} {_number(row[name])}" for name in _SHOWN if name in row]
    return ", ".join(shown) or "good"


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_number(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _line(text: str) -> str:
    return text.partition("\n")[0][:300]
