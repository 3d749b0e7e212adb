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
from ptmst.support import progress
from ptmst.support.parallel import completed, side_by_side

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


def hears_ctrl_c(_: int) -> bool:
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_ctrl_c_is_the_affair_of_the_caller_alone() -> None:
    """Workers cannot be reached by it even while they start: what they inherit says so, not what they do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert list(completed(hears_ctrl_c, range(3), 2)) == [False] * 3
    assert list(side_by_side(hears_ctrl_c, {"a": 0, "b": 1}, 2).values()) == [False] * 2
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    assert hears_ctrl_c(0)


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


SCRIPT = """
from pathlib import Path
from test_parallel import squared
from ptmst.support.parallel import completed, results
print("main runs")
print(sorted(completed(squared, range(3), 2)), list(results(squared, {"a": 3}, 1, print)))
"""


def test_a_script_need_not_ask_whether_it_is_the_main_one(tmp_path: Path) -> None:
    """As README's is: processes that start do not run it again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["main runs", "[0, 1, 4] [9]"]


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_parallel import stubborn
from ptmst.support import progress
from ptmst.support.parallel import completed, side_by_side
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


def counted(total: int) -> int:
    if total == 13:
        raise InputError("thirteen")
    with progress.bar("count", total) as bar:
        for number in range(total):
            bar.advance(f"at {number}")
            time.sleep(0.01)
    return total


def test_what_runs_side_by_side_is_shown_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[progress.Told] = []
    monkeypatch.setattr(progress.Bars, "show", lambda _, told: shown.append(told))
    assert side_by_side(counted, {"LoRS": 40, "PTM-ST": 3, "other": 2}, 2) == {"LoRS": 40, "PTM-ST": 3, "other": 2}
    for name, total in (("LoRS", 40), ("PTM-ST", 3), ("other", 2)):
        told = [done for label, done, of, _ in shown if label == f"{name}: count" and of == total]
        assert told[0] == 0 and told[-1] == total and told == sorted(told)
    assert any(0 < done < 40 for label, done, *_ in shown if label.startswith("LoRS"))


def test_a_failure_side_by_side_ends_the_others(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="thirteen"):
        side_by_side(counted, {"long": 6000, "bad": 13}, 2)
    assert time.monotonic() - began < 30


def test_bars_of_others_are_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    with progress.bars() as bars:
        for told in (
            ("a: count", 0, 4, ""),
            ("a: count", 2, 4, "half"),
            ("b: count", 1, 4, ""),
            ("a: count", 4, 4, ""),
        ):
            bars.show(told)
    lines = [line for line in capsys.readouterr().err.splitlines() if "half" in line or "4/4" in line]
    assert lines[0].startswith("a: count: 2/4") and lines[1].startswith("a: count: 4/4")
