"""The program that kills, and a few of its kills."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.kills import COMMANDS, _without_clocks, cases, good, state
from bench.result import ROOT

ROW: dict[str, Any] = {
    "kills": [{"traceback": False}],
    "resumed": 0,
    "missing": [],
    "differing": [],
    "left behind": [],
    "orphans": 0,
}


def test_every_command_is_killed_and_more_kills_are_further_ones() -> None:
    few, many = cases(20), cases(200)
    assert len(few) == 20 and len(many) == len(set(many)) == 200 and set(few) <= set(many)
    assert set(Counter(name for name, _ in few)) == set(COMMANDS)


@pytest.mark.parametrize(
    "change",
    [
        {"resumed": 2},
        {"missing": ["a"]},
        {"differing": ["a"]},
        {"left behind": [".a.part"]},
        {"orphans": 1},
        {"kills": [{"traceback": False}, {"traceback": True}]},
    ],
)
def test_what_is_not_as_it_should_be_is_seen(change: dict[str, Any]) -> None:
    assert good(ROW) and not good(ROW | change)


def test_clocks_are_not_compared_and_all_else_is(tmp_path: Path) -> None:
    one = {"rows": [{"seconds": 1.0, "recall": 5}, {"a": 1}], "sha256": "x"}
    other = {"sha256": "y", "rows": [{"a": 1}, {"recall": 5, "seconds": 2.0}]}
    differs = {"sha256": "y", "rows": [{"a": 1}, {"recall": 6, "seconds": 1.0}]}
    same, again, not_same = (_without_clocks(json.dumps(value).encode()) for value in (one, other, differs))
    assert same == again != not_same
    plain = b'{"recall":  5}'
    assert _without_clocks(plain) == plain and _without_clocks(b"{") == b"{"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".a.part").write_bytes(b"")
    assert list(state(tmp_path)) == ["folder/", "folder/.a.part"]


def killed(folder: Path, *arguments: str) -> None:
    command = [
        sys.executable,
        "-m",
        "bench.kills",
        "--json",
        str(folder / "kills.json"),
        "--work",
        str(folder / "work"),
    ]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((folder / "kills.json").read_text())["rows"]
    assert rows and all(map(good, rows))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits another process")
def test_a_killed_run_leaves_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    killed(tmp_path, "--only", "data", "--kills", "13")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits another process")
def test_every_command_survives_kills(tmp_path: Path) -> None:
    killed(tmp_path, "--kills", "26")
