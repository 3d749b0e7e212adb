"""The tutorial can be followed: every block of its pages and its notebook is executed in order, with fewer steps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import ptmst
from ptmst import cli
from ptmst.studies import run as run_module
from tiny import micro

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TUTORIAL, BY_HAND = ((ROOT / "docs" / name).read_text("utf-8") for name in ("tutorial.md", "by-hand.md"))
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
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


def follow(text: str, said: Callable[[], str]) -> None:
    """Execute every block of a page in the current folder; what it shows is among what was said."""
    shown = ""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(block, "tutorial", "exec"), {})
        elif language == "toml":
            Path("settings.toml").write_text(smaller(block), "utf-8")
        elif language == "text":
            lines = {comparable(line) for line in shown.splitlines()}
            assert not [line for line in block.splitlines() if comparable(line) not in lines], shown
        else:
            said()
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "ptmst" and cli.main(arguments) == 0, line
            shown = said()


def test_the_tutorial_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(run_module, "experiment", micro)
    follow(TUTORIAL, lambda: capsys.readouterr().out)
    assert Path("runs/both.html").read_text("utf-8").count("<h2>Side by side</h2>") == 1
    assert len(list(Path("runs/pictures").rglob("*.png"))) == 40
    assert ptmst.DistilledSet.load("runs/mine/set").num_pairs == 40
    follow(BY_HAND, lambda: capsys.readouterr().out)
    assert Path("runs/report.html").read_text("utf-8").count("<img") >= 80


def test_the_table_by_hand_has_the_rows_of_its_report() -> None:
    (table,) = re.findall(r"(?:^\|.*\n)+", BY_HAND, re.MULTILINE)
    names = [line.split("|")[1].strip() for line in table.splitlines()]
    assert names == ["trained on", "---", "set", "random", "tuned", "all real pairs (store)"]


@pytest.mark.exhaustive
def test_the_notebook_can_be_followed(tmp_path: Path) -> None:
    """In a kernel of its own, with fewer pictures, pairs and steps."""
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient").NotebookClient
    book = nbformat.read(NOTEBOOK, as_version=4)
    source = "\n".join(cell.source for cell in book.cells)
    for long, short in (("range(400)", "range(150)"), ('"30", "--steps", "60"', '"8", "--steps", "2"')):
        assert source.count(long) == 1
        for cell in book.cells:
            cell.source = cell.source.replace(long, short)
    client(book, timeout=280, resources={"metadata": {"path": str(tmp_path)}}).execute()  # raises what a cell raises
    assert ptmst.DistilledSet.load(tmp_path / "runs/mine/set").num_pairs == 8


def test_the_notebook_has_been_executed() -> None:
    book = pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = {kind for cell in cells for output in cell.outputs for kind in output.get("data", {})}
    assert "image/png" in kinds and all(output.output_type != "error" for cell in cells for output in cell.outputs)
    text = NOTEBOOK.read_text("utf-8")
    assert "distilled" in text and not re.search(r'/(work|root|home|tmp|usr)/|"stderr"|\\u001b', text)
