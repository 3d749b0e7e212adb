"""README and docs say what is so: tables are those of bench/results, commands and the example can be run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import ptmst
from bench.readme import PAGES, TABLES, written
from ptmst import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line.split("#")[0] for _, block in BLOCKS for line in block.splitlines() if line.startswith("ptmst ")]


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_results(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "<!-- table: " in text
    assert written(text, PAGES[page]) == text


def test_every_table_is_shown() -> None:
    shown = re.findall(r"<!-- table: (\S+) -->", "".join((ROOT / page).read_text() for page in PAGES))
    assert set(shown) == set(TABLES)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_can_be_parsed(line: str) -> None:
    _, *arguments = shlex.split(line)
    cli.parse(arguments)


def test_every_command_is_shown() -> None:
    assert {shlex.split(line)[1] for line in COMMANDS} == set(cli.COMMANDS) - {"demo"}


def test_the_example_runs_at_a_smaller_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = (block for language, block in BLOCKS if language == "python")
    smaller = {
        'write_scenes("data/scenes"': 'write_scenes("data/scenes", train=120, val=20, test=20, warmup=20',
        "warmup_epochs=20": "warmup_epochs=1, image_width=16",
        "experts=4": "experts=1, epochs=7, endpoints=(5, 7)",
        "steps=250": "steps=2",
        "EvaluateConfig()": "EvaluateConfig(students=1, epochs=2)",
    }
    for long, short in smaller.items():
        assert long in example
        example = example.replace(long, short)
    names: dict[str, Any] = {}
    exec(example, names)
    assert isinstance(names["distilled"], ptmst.DistilledSet)


def test_the_examples_of_kernels_run() -> None:
    """One after the other; the matching loss of the first goes down."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "kernels.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    losses: list[float] = []
    step = "    optimiser.step()\n"
    assert step in blocks[0]
    names: dict[str, Any] = {"losses": losses}
    exec(blocks[0].replace(step, f"{step}    losses.append(matched.loss.item())\n"), names)
    assert len(losses) == 20
    assert sum(losses[-4:]) < sum(losses[:4])
    exec(blocks[1], names)
    assert names["logit_scale"].grad is not None and names["images"].grad.shape == (64, 32)
