"""Triton's kernels compiled for a GPU that is not there: what the interpreter forgives, a compiler does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ptmst.kernels import dispatch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FLAT = ("point", "shortcut", "vector", "flat", "sgd")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """In a process of its own, where nothing is interpreted."""
    if dispatch.lacks_triton():
        pytest.skip("Triton cannot run here")
    folder = tmp_path_factory.mktemp("ptx")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "bench.ptx", "--json", str(folder / "report.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())["rows"]
    return rows


def test_every_kernel_is_compiled(report: list[dict[str, Any]]) -> None:
    sources = (ROOT / "kernels" / "python" / "kernels" / "triton_kernels").glob("*.py")
    kernels = {
        line.removeprefix("def ").partition("(")[0]
        for path in sources
        for line in path.read_text().splitlines()
        if line.startswith("def ") and line.partition("(")[0].endswith("_kernel")
    }
    assert len(kernels) >= 10
    assert {row["kernel"].split()[0] for row in report} == kernels


def test_registers_suffice(report: list[dict[str, Any]]) -> None:
    """The assembler trades a word or two for more threads at once; more would be a kernel that does too much."""
    for row in report:
        assert max(row["spilled bytes stored"], row["spilled bytes loaded"]) <= 16, row
        # A multiprocessor has 65,536: kernels that wait for memory share it with three more of 256 threads.
        assert 0 < row["registers"] <= (64 if row["kernel"].startswith(FLAT) else 128), row


def test_flat_kernels_read_and_write_16_bytes_at_once(report: list[dict[str, Any]]) -> None:
    """Whatever the number of parameters: it is no argument of theirs that has to be a multiple of anything."""
    flat = [row for row in report if row["kernel"].startswith(FLAT)]
    assert len(flat) == len(FLAT)
    for row in flat:
        assert row["widest load"] == row["widest store"] == 16, row
