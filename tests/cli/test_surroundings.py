"""What is around the process: streams that are closed, full or plain, no home, Ctrl-C at any moment."""

from __future__ import annotations

import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.table import Table

from ptmst import DistilledSet
from ptmst.cli import doctor, main, surroundings
from ptmst.cli.about import Presets
from ptmst.errors import InputError
from ptmst.evaluation import evaluate as evaluating
from ptmst.evaluation import scores as scoring
from ptmst.evaluation.metrics import METRICS
from ptmst.evaluation.scores import Scores
from ptmst.support import folders, locks, parts, progress

SCORES = Scores((dict.fromkeys(METRICS, 12.5),), {"split": "test", "config": {"protocol": "x", "select": "y"}})


@contextmanager
def prepared(encoding: str) -> Iterator[io.BytesIO]:
    """What is written to an output of an encoding, as the process finds it."""
    content, before = io.BytesIO(), (sys.stdout, signal.getsignal(signal.SIGINT))
    sys.stdout = io.TextIOWrapper(content, encoding)
    surroundings.prepare(lambda: "stopped")
    try:
        yield content
    finally:
        sys.stdout.flush()
        sys.stdout = before[0]
        signal.signal(signal.SIGINT, before[1])
        surroundings._interrupts.clear()


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "12.5+-0.3 eta -> \\u72ac \\xe9 \\ud83d"),
        ("latin-1", "12.5±0.3 eta -> \\u72ac é \\ud83d"),
        ("cp1252", "12.5±0.3 eta -> \\u72ac é \\ud83d"),
        ("utf-8", "12.5±0.3 η → 犬 é \\ud83d"),
    ],
)
def test_an_output_that_cannot_show_every_character(encoding: str, shown: str) -> None:
    with prepared(encoding) as content:
        progress.result("12.5±0.3 η → 犬 é \ud83d")
        assert content.getvalue().decode(encoding) == f"{shown}\n"


def test_a_table_in_plain_ascii() -> None:
    table = Table("name")
    table.add_row("犬 ±")
    with prepared("ascii") as content:
        progress.table(table)
        sys.stdout.flush()
        assert "\\u72ac +-" in content.getvalue().decode("ascii")


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", ":smile:", "set[1]", "[link=http://a]b[/link]"])
def test_a_name_is_no_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(f"{name} head", title=f"{name} title", caption=f"{name} caption")
    table.add_row(name)
    progress.table(table)
    said = capsys.readouterr().out
    assert all(f"{name}{part}" in said for part in (" head", " title", " caption", ""))


def test_a_name_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress.result("a\x1b[31m\x07\u202eb\r\x9bc\nd\té")
    progress.note("\x1b]0;title\x07")
    said = capsys.readouterr()
    assert said.out == "a\\x1b[31m\\x07\\u202eb\\r\\x9bc\nd\té\n" and said.err == "\\x1b]0;title\\x07\n"
    assert main(["inspect", "a\x1b[31m"]) == 2
    assert "a\\x1b[31m: expected a file or folder" in capsys.readouterr().err


def program(*arguments: str, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "ptmst", *arguments], **streams)  # type: ignore[call-overload, no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["presets"], ["--help"]])
def test_a_closed_pipe_is_quiet(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = program(*arguments, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert process.communicate()[1] == b"" and process.returncode == 141


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_behind_the_output_is_told() -> None:
    with open("/dev/full", "wb") as full:
        process = program("--help", stdout=full.fileno(), stderr=subprocess.PIPE)
    assert process.communicate()[1] == b"ptmst: [Errno 28] No space left on device\n" and process.returncode == 2


IMPORT = """
import signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None, wanted=sys.argv[1]):
        if name == wanted:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from ptmst.__main__ import main
sys.argv = ["ptmst", "teach", "--out", "nowhere"]
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("module", "advice"), [("tyro", "starts again"), ("torch", "continues")])
def test_ctrl_c_while_something_is_imported_is_one_line(module: str, advice: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORT, module]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"ptmst: stopped; the same command {advice}\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_an_import_amid_the_work_undoes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the import makes of it."""

    class Interrupt:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "nowhere":
                signal.raise_signal(signal.SIGINT)

    def run(_: object) -> None:
        with parts.folder(tmp_path / "out"):
            try:
                importlib.import_module("nowhere")
            except KeyboardInterrupt:
                raise ImportError("nowhere") from None

    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    monkeypatch.setattr(Presets, "run", run)
    with prepared("utf-8"):
        assert main(["presets"]) == 130
    assert list(tmp_path.iterdir()) == [] and not locks.HELD


def test_ctrl_c_elsewhere_is_raised() -> None:
    with prepared("utf-8"), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("PTMST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    message = "cache: expected a home folder to keep it in, found none; name a folder with PTMST_CACHE=FOLDER"
    with pytest.raises(InputError, match=f"^{message}$"):
        folders.cache_folder()
    assert doctor._cache() == f"missing ({message})"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folders.cache_folder() == tmp_path / "ptmst"
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "ours"))
    assert folders.cache_folder() == tmp_path / "ours"


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Evaluations that were run, each in no time."""
    runs: list[int] = []

    def evaluate(*_: object) -> Scores:
        runs.append(1)
        return SCORES

    monkeypatch.setattr(DistilledSet, "load", lambda path: DistilledSet((), {}, {}))
    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    return runs


def test_an_output_that_cannot_be_written_is_told_before_the_work(
    scored: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file" / "scores.json", tmp_path):
        assert main(["evaluate", "set", "--out", str(out)]) == 2
        assert f"{out}: cannot be written (" in capsys.readouterr().err
    assert not scored


def test_what_was_computed_is_printed_where_it_cannot_be_saved(
    scored: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise InputError("scores.json: cannot be written (No space left on device); free space")

    monkeypatch.setattr(scoring, "write_scores", full)
    assert main(["evaluate", "set", "--out", str(tmp_path / "scores.json")]) == 2
    said = capsys.readouterr()
    assert scored and "12.5±0.0" in said.out and "No space left on device" in said.err
