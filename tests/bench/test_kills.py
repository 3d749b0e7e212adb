"""The program that kills, and a few of its kills."""

from __future__ import annotations

import json
import os
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


SMALL = """
import importlib, shutil, sys
from dataclasses import replace
from pathlib import Path
from bench import kills

DATA = "data --name scenes --train 40 --val 8 --test 8 --warmup 16 --captions 1 --root {base}/data"
READ = "--data.name scenes --data.root {base}/data --data.image-size 16 --encoder.image-width 16"
TEACH = f"teach --experts 1 --epochs 2 --lr 0.05 --endpoints all --batch-size 20 --encoder.warmup-epochs 1 {READ}"
DISTILL = (
    "distill {base}/store --phases 4:2:0-1 --steps 3 --inner-steps 2 --batch-size 4 --optimizer adam "
    "--momentum 0.9 --rates.images 0.02 --rates.texts 0.1 --rates.lr 0.002 --rates.similarity 0.1 "
    "--checkpoint-minutes 0"
)
EVALUATE = "evaluate {base}/set --students 1 --epochs 2 --lr-drop 1 --batch-size 4"
LINES = {
    "teach": TEACH + " --out {run}/store",
    "distill": DISTILL + " --out {run}/set",
    "evaluate": EVALUATE + " --out {run}/scores/scores.json",
    "export folder": "export {base}/set --out {run}/out",
}


class Forked(kills.Run):
    def __init__(self, words, work, fork):
        super().__init__(words, work, True)


kills.Run = Forked
kills.COMMANDS = {name: replace(kills.COMMANDS[name], line=line) for name, line in LINES.items()}
kills.SOURCES = {"data": (DATA,)}


class Chain(kills.Campaign):
    def _whole(self, name):
        command = kills.COMMANDS[name]
        self._prepare(command.line)
        shutil.rmtree(self._run, ignore_errors=True)
        self._run.mkdir()
        seconds = self._finish(command, True)[1]
        shutil.copytree(self._run, self._base, dirs_exist_ok=True)
        return kills.state(self._run), [], {True: seconds, False: seconds}


for module in (*kills.IMPORTED, "torch._dynamo"):
    importlib.import_module(module)
campaign = Chain(Path(sys.argv[1]))
for name in LINES:
    for row in campaign.measure((name, 0)):
        print(name, row)
        assert kills.good(row)
"""
"""A kill each of further commands, small and forked; the next command reads what an uninterrupted run leaves."""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits another process")
def test_a_killed_run_of_small_size_leaves_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SMALL, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("\n") == 4, done.stdout + done.stderr


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and limits another process")
def test_every_command_survives_kills(tmp_path: Path) -> None:
    killed(tmp_path, "--kills", "26")
