"""Runs in processes of their own: what comes back, and that all end when the caller stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptmst.errors import InputError
from ptmst.support.parallel import completed

pytestmark = pytest.mark.slow


def squared(number: int) -> int:
    if number == 13:
        raise InputError("thirteen")
    return number * number


def stubborn(asked: tuple[Path, int]) -> int:
    """The first ends at once; others note a polite signal, as an outer loop does, and go on."""
    folder, number = asked
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"{number} {os.getpid()}").touch()
    if number:
        time.sleep(60)
    return number


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_result_comes_back() -> None:
    assert sorted(completed(squared, range(5), 2)) == [0, 1, 4, 9, 16]
    with pytest.raises(InputError, match="thirteen"):
        list(completed(squared, [13, 1], 2))


def test_all_end_at_once_where_the_caller_stops(tmp_path: Path) -> None:
    runs = completed(stubborn, [(tmp_path, number) for number in range(6)], 2)
    assert next(runs) == 0
    until = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    began = time.monotonic()
    runs.close()  # type: ignore[attr-defined]  # a generator
    assert time.monotonic() - began < 20
    begun = [path.name.split() for path in tmp_path.iterdir()]
    # Those that were under way, and none after them.
    assert 2 <= len(begun) <= 3
    assert not any(running(int(pid)) for _, pid in begun)


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_parallel import stubborn
from ptmst.support.parallel import completed
if __name__ == "__main__":
    list(completed(stubborn, [(Path(sys.argv[1]), 1)], 1))
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    begun = tmp_path / "begun"
    begun.mkdir()
    command = [sys.executable, str(tmp_path / "parent.py"), str(begun), str(Path(__file__).parent)]
    parent = subprocess.Popen(command)
    until = time.monotonic() + 60
    while not list(begun.iterdir()) and time.monotonic() < until:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    (pid,) = (int(path.name.split()[1]) for path in begun.iterdir())
    until = time.monotonic() + 10
    while running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not running(pid)
