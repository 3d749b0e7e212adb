"""`python -m bench.gpu`: what it keeps, skips, ends and reports; and the whole of it on a device that does nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import null_device
from bench import measure, result
from bench.gpu import checks, tables
from bench.gpu.checks import close, same_means
from bench.gpu.parts import Part, Stage, parts
from bench.gpu.rows import ROWS, WHOLE, Folder, Sheet, Spoilt, Wrong
from bench.gpu.runner import Runner
from bench.tables import NOT_YET
from ptmst import InputError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def folder(path: Path, call: str = "1", setting: str = "card, torch") -> Folder:
    return Folder(path, setting, call)


def sheet(path: Path, call: str = "1", until: float = float("inf")) -> Sheet:
    return Sheet(folder(path, call), "part", until, lambda: None)


# Rows


def test_a_line_that_was_torn_costs_nothing_else(tmp_path: Path) -> None:
    folder(tmp_path).append("part", row="a", ms=1.0)
    with open(tmp_path / ROWS, "ab") as file:
        file.write(b'{"part": "part", "row": "b", "m')
    folder(tmp_path).append("part", row="c", ms=3.0)
    assert [row["row"] for row in folder(tmp_path).rows()] == ["a", "c"]


def test_rows_of_another_card_are_left_alone(tmp_path: Path) -> None:
    folder(tmp_path, setting="other card, torch").append("part", row=WHOLE)
    assert not folder(tmp_path).complete("part") and not folder(tmp_path).rows()
    assert folder(tmp_path, setting="other card, torch").complete("part")
    assert folder(tmp_path).merged().name == "gpu-card.json"


def test_a_part_goes_on_with_what_is_missing_or_failed(tmp_path: Path) -> None:
    asked: list[str] = []

    def find(name: str) -> dict[str, Any]:
        asked.append(name)
        if name == "wrong":
            raise Wrong("not so")
        if name == "broken":
            raise ZeroDivisionError("by zero")
        return {"ms": float("nan")} if name == "infinite" else {"ms": 2.5}

    names = ("good", "wrong", "broken", "infinite")
    for call in ("1", "1", "2"):
        one = sheet(tmp_path, call)
        for name in names:
            one.row(name, 0, partial(find, name))
        one.answer(WHOLE)
    assert asked == [*names, *names[1:]]
    answers = {row: found for (_, row), found in folder(tmp_path, "2").latest().items()}
    assert answers["good"]["ms"] == 2.5
    failed = {row: found["failed"] for row, found in answers.items() if "failed" in found}
    assert failed == {
        "wrong": "not so",
        "broken": "ZeroDivisionError: by zero",
        "infinite": "expected finite numbers, found inf or nan",
    }
    assert not folder(tmp_path, "2").complete("part")
    for name in names[1:]:
        sheet(tmp_path, "3").row(name, 0, dict)
    assert folder(tmp_path, "3").complete("part") and not folder(tmp_path, "3").ended("part")


def test_nothing_is_begun_that_would_not_end_in_time(tmp_path: Path) -> None:
    one = sheet(tmp_path, until=time.time() + 10)
    one.row("long", 20, pytest.fail)
    assert not one.whole and not folder(tmp_path).rows()
    one.row("short", 1, dict)
    assert [row["row"] for row in folder(tmp_path).rows()] == ["short", "short"]


def test_a_process_whose_device_is_spoilt_ends(tmp_path: Path) -> None:
    def check() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    one = Sheet(folder(tmp_path), "part", float("inf"), check)
    with pytest.raises(Spoilt, match="illegal memory access"):
        one.row("last", 0, dict)
    assert ("part", "last") in folder(tmp_path).latest()


def test_two_calls_do_not_write_one_folder(tmp_path: Path) -> None:
    with folder(tmp_path).claimed(), pytest.raises(InputError, match="another process is writing into it"):
        folder(tmp_path).claimed().__enter__()


# Processes

WORKER = """
import json, os, sys, time
part, out, setting, call = sys.argv[1], sys.argv[3], sys.argv[5], sys.argv[7]
rows = os.path.join(out, "rows.jsonl")
def say(**found):
    with open(rows, "a") as file:
        file.write(json.dumps({"part": part, "call": call, "setting": setting, "at": time.time(), **found}) + "\\n")
known = open(rows).read() if os.path.exists(rows) else ""
say(row="whole part", begun=True)
if part == "dies" and '"row": "a"' not in known:
    say(row="a", begun=True)
    print("a last word", flush=True)
    os._exit(9)
if part == "spoilt" and '"row": "b"' not in known:
    say(row="b", ms=1.0)
    sys.exit(3)
say(row="number of " + part, ms=2.0)
if part == "slow":
    time.sleep(600)
if part != "late":
    say(row="whole part", seconds=0.0)
"""


def fake(name: str, stage: Stage = "checks", first: float = 0) -> Part:
    return Part(name, stage, "", (), first, first)


def run(path: Path, *some: Part, call: str = "1", seconds: float = 60) -> Runner:
    path.mkdir(exist_ok=True)
    runner = Runner(folder(path, call), some, [sys.executable, "-c", WORKER], time.time() + seconds, 16, 1000)
    runner.run()
    runner.stop()
    return runner


def test_parts_that_are_done_are_not_begun_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    some = fake("two", "measures"), fake("one")
    assert not run(out, *some).failed()
    assert capsys.readouterr().out.count(": begun") == 2
    found = [row["part"] for row in folder(out).rows()]
    assert found == sorted(found)  # measures wait for checks, whatever comes first
    run(out, *some, call="2")
    said = capsys.readouterr().out
    assert said.count("found before") == 2 and ": begun" not in said
    content = result.read(out / "gpu-card.json")
    assert content is not None
    assert [row["row"] for row in content["rows"] if row["row"] != WHOLE] == ["number of one", "number of two"]


def test_a_part_that_needs_the_whole_host_is_alone(tmp_path: Path) -> None:
    """Nor does a later one overtake it."""
    whole = replace(fake("whole", "measures"), cores=16)
    assert not run(tmp_path, fake("a", "measures"), whole, fake("b", "measures"), fake("check")).failed()
    found = [(row["part"], "begun" in row) for row in folder(tmp_path).rows() if row.get("row") == WHOLE]
    order = [part for part, begun in found if begun]
    assert order == ["check", "a", "whole", "b"]
    assert found.index(("a", False)) < found.index(("whole", True))
    assert found.index(("whole", False)) < found.index(("b", True))


def test_a_process_that_dies_is_one_answer_and_the_rest_goes_on(tmp_path: Path) -> None:
    runner = run(tmp_path, fake("dies"), fake("spoilt"))
    assert [(part, row) for part, row, _ in runner.failed()] == [("dies", "a")]
    assert "exit code 9" in runner.failed()[0][2]["failed"]
    latest = folder(tmp_path).latest()
    assert {("dies", "number of dies"), ("spoilt", "b"), ("spoilt", "number of spoilt")} < set(latest)
    assert folder(tmp_path).complete("spoilt")
    assert "dies: a last word" in (tmp_path / "log.txt").read_text()
    summary = "\n".join(runner.summary())
    assert "checks: 3 good, 1 failed, 0 skipped" in summary and "failed: dies / a: exit code 9" in summary


def test_it_ends_in_time_with_what_was_found(tmp_path: Path) -> None:
    began = time.monotonic()
    runner = run(tmp_path, fake("slow"), fake("late"), fake("never", first=100), seconds=7)
    assert time.monotonic() - began < 12
    assert not runner.failed() and ("slow", "number of slow") in folder(tmp_path).latest()
    assert "not complete for lack of time, the same command continues: never, late, slow" in "\n".join(runner.summary())
    assert "never" not in {row["part"] for row in folder(tmp_path).rows()}
    assert not _with(str(tmp_path))


def _with(word: str) -> list[int]:
    """Processes with a word among their arguments, but for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:  # gone
            continue
        if word in command and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


# Checks


def results(**means: float) -> dict[str, Any]:
    rows = [{"name": name, "recall": {"mean": {"mean": mean}}} for name, mean in means.items()]
    return {"minutes": 1.0, "rows": rows}


def test_a_demo_is_right_within_three_points() -> None:
    on_a_cpu = results(random=11.9, lors=15.5)
    assert same_means(results(random=14.8, lors=12.6), on_a_cpu)["on a CPU"] == {"random": 11.9, "lors": 15.5}
    for mean in (15.0, 8.8, float("nan")):
        with pytest.raises(Wrong, match=r"within 3\.0 points, found \{'random': "):
            same_means(results(random=mean, lors=15.5), on_a_cpu)


def test_gradients_are_close_leaf_by_leaf() -> None:
    expected = {"images": torch.ones(100), "left": torch.zeros(3)}
    found = close({"images": torch.full((100,), 1.00005), "left": torch.zeros(3)}, expected)["relative distance"]
    assert found["images"] == pytest.approx(5e-5, rel=1e-2) and found["left"] == 0
    for wrong in ({"images": torch.full((100,), 1.0002)}, {"left": torch.tensor([0, 0, 1e-9])}, {"images": torch.nan}):
        with pytest.raises(Wrong, match=next(iter(wrong))):
            close(expected | {name: torch.as_tensor(value) for name, value in wrong.items()}, expected)


def test_shares_are_all_of_the_tests(tmp_path: Path) -> None:
    class Item:
        def __init__(self, nodeid: str) -> None:
            self.nodeid = nodeid

    seen = []
    for share in range(3):
        items: list[Any] = [Item(f"tests/a.py::{n}") for n in range(7)]
        checks.Tests(sheet(tmp_path), share, 3).pytest_collection_modifyitems(items)
        seen += [item.nodeid for item in items]
    assert len(seen) == 7 and len(set(seen)) == 7


def test_every_part_can_be_found() -> None:
    for dry in (False, True):
        some = parts(dry)
        assert len({part.name for part in some}) == len(some)
        assert [part.stage for part in some] == sorted(part.stage for part in some)
    assert {part.function for part in parts(False)} == {part.function for part in parts(True)}
    shown = (ROOT / "docs" / "gpu.md").read_text().partition("## What is measured")[0]
    assert {part.name.rpartition("-")[0] or part.name for part in parts(False) if part.stage == "checks"} == set(
        re.findall(r"^\| `(\w+)(?:-…)?` \|", shown, re.MULTILINE)
    )


def test_a_machine_without_nvidia_smi_has_an_unknown_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert result.driver() == "unknown"


def test_memory_of_a_replay_is_not_taken_for_that_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 350)
    assert measure.peak_memory(torch.device("cuda"), lambda: None) == 250
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 100)
    with pytest.raises(ValueError, match="expected a call that allocates, found none"):
        measure.peak_memory(torch.device("cuda"), lambda: None)


# Tables


def call(dry: bool) -> dict[str, Any]:
    machine = {"gpu": "Card", "driver": "580", "cpu": "Processor", "cores": 16}
    versions = {"cuda": "13.0", "torch": "2.11"}
    return {"command": "python -m bench.gpu --out a", "machine": machine, "versions": versions, "dry": dry}


def write(path: Path, dry: bool, *rows: dict[str, Any]) -> None:
    result.write(path, rows, setting="Card", calls=[call(dry)])


def test_tables_tell_what_was_found_and_nothing_else(tmp_path: Path) -> None:
    for name, lines in tables.TABLES.items():
        assert tables.table(lines, tmp_path, "results") == NOT_YET, name
    case = {"part": "outer", "case": "tower-1", "tower": "tower", "size": 224, "batch": 40, "inner steps": 8}
    case |= {"gradient": "truncated"}
    ours = {"way": "ptmst captured, tf32", "ms": 125.0, "peak MB": 8192.0, "fraction of floor": 0.5}
    write(
        tmp_path / "gpu-card.json",
        False,
        {**case, "row": "double backward", "way": "double backward", "ms": 500.0, "peak MB": 15360.0},
        {**case, "row": "tf32", **ours},
        {**case, "row": "unrolled", "way": "unrolled", "out of memory": "tried to allocate"},
        {"part": "outer", "row": "compile", "case": "tower-1", "compile s": 200.0},
        {"part": "outer", "row": "bf16", "failed": "cosine with eager float32: …\nmore"},
        {"part": "tests-1", "row": "tests/a.py::test", "seconds": 1.0},
        {"part": "outer", "row": WHOLE, "seconds": 1.0},
    )
    shown = tables.table(tables.outer, tmp_path, "results")
    assert "tower, 224 px, B 40, 8 inner steps, truncated gradient, compiled in 200 s:" in shown
    assert "| ptmst captured, tf32 | 125.0 | 4.00 × | 8.0 GB | 50 % |" in shown
    assert "| unrolled | out of memory | | | |" in shown
    assert shown.endswith(
        "on Card, driver 580, CUDA 13.0; torch 2.11; Processor, 16 cores ([raw](results/gpu-card.json))."
    )
    checked = tables.table(tables.checks, tmp_path, "results")
    assert "* 1 tests that need a device passed, 0 were skipped." in checked
    assert "* Failed: outer, bf16: cosine with eager float32: …\n" in checked
    for lines in (tables.flat, tables.contrastive, tables.runs, tables.profile):
        assert tables.table(lines, tmp_path, "results") == NOT_YET


def test_a_dry_run_has_no_table(tmp_path: Path) -> None:
    write(tmp_path / "gpu-card.json", True, {"part": "tests-1", "row": "tests/a.py::test", "seconds": 1.0})
    assert tables.table(tables.checks, tmp_path, "results") == NOT_YET


# The bundle


def names(text: str) -> set[str]:
    return {canonicalize_name(word) for line in text.splitlines() if not line.startswith("#") for word in line.split()}


def test_a_bundle_and_what_is_taken_to_be_there_are_all_that_is_needed() -> None:
    """By what the packages that are installed here say, for Python 3.12."""
    bundle = names((ROOT / "bundle.txt").read_text())
    block = re.search(r"<!-- there -->\n```\n(.*?)```", (ROOT / "docs" / "gpu.md").read_text(), re.DOTALL)
    assert block is not None
    there = names(block[1])
    assert not bundle & there
    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert bundle <= pinned
    target = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux"}
    # Not to be built there, and used with tar files alone.
    left, seen, unneeded = (
        ["ptmst"],
        set[str](),
        {"webdataset", "ninja", "scikit-build-core", "pyarrow", "mypy", "ruff"},
    )
    while left:
        name = canonicalize_name(left.pop())
        if name in seen | there | unneeded:
            continue
        seen.add(name)
        for line in metadata.requires(name) or []:
            need = Requirement(line)
            extras = ("hf", "test") if name == "ptmst" else ("",)
            if need.marker is None or any(need.marker.evaluate({**target, "extra": extra}) for extra in extras):
                left.append(need.name)
    assert seen - {"ptmst"} == bundle


# All of it, on a device that does nothing

_LACKING = null_device.lacking()
SITE = """
import sys
import torch
from null_device import stand_ins

stand_ins.install()
if "demo-scenes" not in sys.orig_argv:  # which takes minutes where all goes well
    stand_ins.answer()
torch.compile = lambda function, **how: function
"""


@pytest.mark.skipif(_LACKING is not None, reason=_LACKING or "")
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_all_of_it_runs_dry(tmp_path: Path) -> None:
    """Killed once on the way. What needs right numbers fails there, and is told; nothing breaks."""
    site, out = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join(map(str, (site, ROOT / "tests", ROOT)))
    environment = os.environ | null_device.build(tmp_path / "device") | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--out", str(out)]

    with open(tmp_path / "said", "w") as said:
        killed = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=said, stderr=said)
        _wait_for(lambda: '"row": "soft_contrastive"' in _text(out / ROWS))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    _wait_for(lambda: not _with(str(out)))
    kept = _text(out / ROWS).splitlines()

    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    lines = _text(out / ROWS).splitlines()
    assert lines[: len(kept)] == kept
    rows = [json.loads(line) for line in lines]
    answers = {(row["part"], row["row"]): row for row in rows if "row" in row and "begun" not in row}
    assert all(row["setting"].endswith(", dry") for row in rows)
    ended = {part for part, row in answers if row == WHOLE}
    assert ended == {part.name for part in parts(True)}

    failed = {key: row["failed"] for key, row in answers.items() if "failed" in row}
    expected = (
        "cosine with eager float32: expected",
        "relative distance from the CPU's gradient: expected",
        "expected the answer in float64, found a different one",
        "expected the profiler to see kernels, found none",
        "expected it to run to its end, found exit code 2: ptmst: ",
        "call: assert",
        "call: AssertionError: ",
        "a stack's students: expected those trained one by one",
        "InputError: span 0 → 1, group image, text: expected a span that moves",
    )
    assert not {key: text for key, text in failed.items() if not text.startswith(expected)}
    for part, row in failed:
        assert f"failed: {part} / {row}: " in done.stdout
    parts_failed = {part for part, _ in failed}
    assert {
        "demo-scenes",
        "gradients",
        "flat",
        "outer-convnet-8-b4-fp32-tf32",
        "opponents-convnet-8-b4-exact",
    } <= parts_failed
    numbers = answers["contrastive", "infonce-identity-N128, ptmst"]
    assert numbers["ms"] > 0 and numbers["peak MB"] > 0
    assert (
        answers["teach", "teach, tf32"]["images/s"] > 0
        and answers["outer-convnet-8-b4-fp32-tf32", "compile"]["compile s"] > 0
    )
    assert (out / "gpu-nvidia-h100-80gb-hbm3.json").exists() and not list(tables.cards(out))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _wait_for(what: Any) -> None:
    until = time.monotonic() + 300
    while not what():
        assert time.monotonic() < until
        time.sleep(0.1)
