"""The table of waits: each row is beside its opponent, and what became slower is named by ratios."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import result, slower, waits
from bench.waits import Wait, measured


def test_the_best_of_turns_counts() -> None:
    ours, theirs, order = iter([0.3, 0.02, 0.01]), iter([0.3, 0.03, 0.02]), list[str]()

    def one(name: str, seconds: Any) -> None:
        order.append(name)
        time.sleep(next(seconds))

    row = measured("a", Wait("soon", "b", lambda: one("a", ours), lambda: one("b", theirs), rounds=2))
    assert order == ["a", "b"] * 3
    assert 0.01 <= row["seconds"] < 0.02 <= row["seconds beside"] < 0.03
    assert row["ratio"] == row["seconds"] / row["seconds beside"]
    assert "ratio" not in measured("c", Wait("soon", "", lambda: None, rounds=0))


def row(wait: str, ratio: float, seconds: float = 1.0) -> dict[str, Any]:
    return {"wait": wait, "seconds": seconds, "beside": "plain torch", "ratio": ratio}


def test_what_became_slower_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [row("a", 1.0), row("b", 1.0), row("c", 0.5), {"wait": "demo", "seconds": 100.0}]
    after = [row("a", 1.2, seconds=9.0), row("b", 1.3)]
    expected = ["b: 1.30 × plain torch, before 1.00 ×", "c: not measured any more"]
    assert slower.slower(before, after) == expected
    assert slower.slower(before, before) == [] == slower.slower(before[:2], after, by=1.4)
    for name, rows in (("before", before), ("after", after)):
        result.write(tmp_path / name, rows)
    monkeypatch.setattr(sys, "argv", ["slower", str(tmp_path / "before"), str(tmp_path / "after")])
    assert slower.main() == 1 and capsys.readouterr().out.splitlines() == expected
    monkeypatch.setattr(sys, "argv", ["slower", str(tmp_path / "before"), str(tmp_path / "before")])
    assert slower.main() == 0 and capsys.readouterr().out == "nothing became slower\n"


@pytest.mark.exhaustive
def test_every_wait_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMST_CACHE", str(tmp_path / "cache"))
    for name, prepare in waits.waits(tmp_path).items():
        if name != waits.DEMO:
            found = measured(name, prepare())
            assert found["seconds"] > 0 and found["ratio"] > 0
