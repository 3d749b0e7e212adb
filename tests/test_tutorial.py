"""docs/tutorial.md can be followed: every block is executed in order, with fewer steps than a reader takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import ptmst
from ptmst import cli

pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
SMALLER = {
    "steps = 40\n": "steps = 2\ninner_steps = 2\n",
    "students = 2\nepochs = 60\nlr_drop = 40\n": "students = 2\nepochs = 1\nlr_drop = 1\n",
}


def comparable(line: str) -> str:
    """A line but for its measured numbers, which have a point, and for space."""
    return " ".join(re.sub(r"\d+\.\d+", "#", line).split())


def smaller(settings: str) -> str:
    for long, short in SMALLER.items():
        assert long in settings
        settings = settings.replace(long, short)
    return settings


def test_the_tutorial_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shown = ""
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "tutorial", "exec"), {})
        elif language == "toml":
            Path("settings.toml").write_text(smaller(block), "utf-8")
        elif language == "text":
            lines = {comparable(line) for line in shown.splitlines()}
            assert not [line for line in block.splitlines() if comparable(line) not in lines], shown
        else:
            capsys.readouterr()
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "ptmst" and cli.main(arguments) == 0, line
            shown = capsys.readouterr().out
    assert Path("runs/report.html").read_text("utf-8").count("<img") >= 80
    assert len(list(Path("runs/pictures").rglob("*.png"))) == ptmst.DistilledSet.load("runs/set").num_pairs == 40


def test_the_table_of_the_tutorial_has_the_rows_of_its_report() -> None:
    (table,) = re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE)
    names = [line.split("|")[1].strip() for line in table.splitlines()]
    assert names == ["trained on", "---", "set", "random", "tuned", "all real pairs (store)"]
