"""Results: one schema for all files, one way to write and to read them, and tables that show them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import result, tables
from bench.command import collect
from bench.tables import Table, source
from ptmst.errors import InputError
from ptmst.support import files

pytestmark = pytest.mark.slow

ROOT = result.ROOT
FILES = sorted(result.RESULTS.rglob("*.json"))
ABOUT: dict[str, Any] = {
    "command": "python -m bench.x --json FILE",
    "machine": {"cpu": "Processor", "threads": 2, "gpu": "none"},
    "versions": {"torch": "2.11"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_committed_file_has_the_schema(file: Path) -> None:
    found = result.read(file)
    assert found is not None
    assert found["command"].startswith(("python -m bench.", "PYTHONPATH=tests python -m fuzz ", "pytest ", "ptmst "))
    assert found["machine"] and found["versions"] and found["rows"]
    assert all(isinstance(row, dict) for row in found["rows"])
    # Numbers are not edited by hand.
    written = found.pop("sha256", None)
    assert written is None or written == files._json_hash(found)


def test_the_page_of_the_benchmarks_names_every_file_and_command() -> None:
    page = (ROOT / "bench" / "README.md").read_text()
    committed = {file.name for file in FILES if file.parent == result.RESULTS}
    assert committed <= set(re.findall(r"`(\S+\.json)`", page))
    programs = {path: path.read_text() for path in (ROOT / "bench").rglob("*.py")}
    programs = {path: text for path, text in programs.items() if 'if __name__ == "__main__"' in text}
    names = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in programs
    }
    shown = set(re.findall(r"`python -m (bench\.[\w.]+)", page))
    measuring = {names[path] for path, text in programs.items() if "from bench.command import" in text}
    assert measuring <= shown <= set(names.values())


def test_no_module_of_the_benchmarks_imports_a_test() -> None:
    for path in (ROOT / "bench").rglob("*.py"):
        assert not re.search(r"^(from|import) (bench\.)?test_|^from bench import test_", path.read_text(), re.MULTILINE)


def test_a_benchmark_can_set_up_the_memory_of_its_process_before_torch() -> None:
    code = "import sys, bench.outer, bench.kernels, bench.students, bench.retrieval, bench.presets; "
    subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], cwd=ROOT, check=True)


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    assert result.read(file) is None and result.rows(file) == []
    result.write(file, [{"ms": 1.5}], machine={"cpu": "other"}, parameters=7)
    found = result.read(file)
    assert found is not None
    assert found["rows"] == result.rows(file) == [{"ms": 1.5}] and found["parameters"] == 7
    assert found["machine"] == {"cpu": "other"} and found["command"].startswith("pytest")
    assert {"ptmst", "torch", "python"} <= set(found["versions"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "expected results in JSON, found a damaged file"), ('{"rows": []}', "found no command, machine, versions;")],
)
def test_another_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(InputError, match=message):
        result.rows(tmp_path / "other.json")


def test_a_stopped_benchmark_continues(tmp_path: Path) -> None:
    file, measured = tmp_path / "rows.json", list[str]()

    def measure(case: str) -> list[dict[str, Any]]:
        measured.append(case)
        if measured == ["b", "c"]:
            raise RuntimeError("stopped")
        return [{"case": case, "n": n} for n in range(2)]

    result.write(file, [{"case": "a", "n": 0}, {"case": "gone", "n": 0}])
    with pytest.raises(RuntimeError, match="stopped"):
        collect(file, "cases", ["b", "c", "a"], lambda row: str(row["case"]), measure)
    assert [row["case"] for row in result.rows(file)] == ["b", "b", "a"]
    rows = collect(file, "cases", ["b", "c", "a"], lambda row: str(row["case"]), measure)
    assert [row["case"] for row in rows] == ["b", "b", "c", "c", "a"] and rows == result.rows(file)
    assert measured == ["b", "c", "c"]


BENCHMARK = """
import time

def test_nothing(benchmark):
    benchmark.extra_info["way"] = "none"
    benchmark(time.sleep, 0)
"""


def test_pytest_benchmark_writes_the_same_schema(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(BENCHMARK)
    (tmp_path / "conftest.py").write_text((ROOT / "bench" / "conftest.py").read_text())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "test_it.py",
        "--benchmark-json",
        "out.json",
        "-p",
        "no:cacheprovider",
    ]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    found = result.read(tmp_path / "out.json")
    assert found is not None
    (row,) = found["rows"]
    assert (row["test"], row["way"]) == ("test_nothing", "none")
    assert row["seconds"] == row["stats"]["median"] > 0 and "commit" in found
    assert found["command"].startswith("pytest -q test_it.py")


def test_a_table_aligns_numbers() -> None:
    table = Table(["what", "kind", "n"], left=(0, 1))
    table.add("a", "", "1.5")
    table.add("b", None, tables.bold("2.5"))
    assert table.markdown("below") == "| what | kind | n |\n|---|---|--:|\n| a |  | 1.5 |\n| b | | **2.5** |\n\nbelow"
    with pytest.raises(ValueError, match=r"expected 3 cells, as the head has, found \['c'\]"):
        Table(["what", "kind", "n"], [["c"]]).markdown()


def test_a_source_is_one_sentence() -> None:
    command = "`python -m bench.x --json FILE` on Processor"
    assert source(ABOUT, raw="x.json") == f"{command}, 2 threads, GPU: none; torch 2.11 ([raw](x.json))."
    assert source(ABOUT, ran="one thread a run", more="2 trees") == f"{command}, one thread a run; torch 2.11; 2 trees."
    assert source(ABOUT | {"versions": {}}, ran="") == f"{command}."
    assert json.dumps(ABOUT)  # as it lies in a file
