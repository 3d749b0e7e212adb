"""Progress can be switched off, results cannot; what the library remarks goes through `logging`."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from rich.table import Table

import ptmst
from ptmst.support import progress
from ptmst.support.parallel import completed

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    yield
    ptmst.progress(True)


def work() -> None:
    progress.note("begin")
    with progress.bar("work", 2) as bar:
        bar.note("warming up")
        bar.advance("one")
        bar.advance("two")
    progress.result("done")


def work_and_fail() -> None:
    work()
    raise ZeroDivisionError


LINES = ["begin", "work: warming up", "work: 1/2, 0 s left  one", "work: 2/2, 0 s left  two"]


def test_progress_is_on_stderr_and_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False, True):
        ptmst.progress(shown)
        work()
        out, err = capsys.readouterr()
        assert (out, err.splitlines()) == ("done\n", LINES if shown else [])


@pytest.mark.parametrize("shown", [True, False])
def test_it_is_switched_off_for_a_while(shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    ptmst.progress(shown)
    with pytest.raises(ZeroDivisionError), progress.switched_off():
        work_and_fail()
    assert capsys.readouterr().err == ""
    with progress.switched_off(False):
        work()
    work()
    assert capsys.readouterr().err.splitlines() == 2 * LINES * shown


def test_a_terminal_shows_bars_and_none_when_switched_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    work()
    assert "━" in capsys.readouterr().err
    ptmst.progress(False)
    work()
    assert capsys.readouterr() == ("done\n", "")


def test_a_table_is_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("name")
    table.add_row("x" * 90)
    progress.table(table)
    assert "x" * 90 in capsys.readouterr().out


def task(number: int) -> int:
    with progress.bar("unseen", 1) as bar:
        bar.note("unseen")
    progress.note("unseen")
    logging.getLogger("ptmst.task").info("unseen")
    logging.getLogger("ptmst.task").warning("seen %d", number)
    return number


def test_workers_show_warnings_but_no_progress(capfd: pytest.CaptureFixture[str]) -> None:
    assert sorted(completed(task, [1, 2], 2)) == [1, 2]
    out, err = capfd.readouterr()
    assert out == "" and sorted(err.splitlines()) == ["seen 1", "seen 2"]


def test_without_the_command_line_only_warnings_are_printed() -> None:
    """By `logging` itself: the library has no handler of its own. And it never imports rich before it shows a bar."""
    code = (
        "import logging, sys\nimport ptmst\nfrom ptmst.engine import outer_step\nfrom ptmst.data import classes\n"
        "import ptmst.distillation.distill, ptmst.evaluation.evaluate, ptmst.teachers.teach, ptmst.exchange.export\n"
        "classes._LOG.info('unseen')\nclasses._LOG.warning('seen')\n"
        "logging.getLogger('ptmst').setLevel(logging.ERROR)\nclasses._LOG.warning('unseen')\n"
        "print(logging.getLogger('ptmst').handlers, *sorted({'rich', 'tyro', 'ptmst.cli'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "seen\n")
