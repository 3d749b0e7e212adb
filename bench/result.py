"""A file of results: `command`, `machine`, `versions` and `rows`, and what else belongs to all rows.

One function writes such files and one reads them. bench/README.md lists them. torch is imported where it is needed
only, so that a benchmark can set up the memory of its process first.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptmst.errors import InputError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
Row = dict[str, Any]
Rows = list[Row]
Result = dict[str, Any]
KEYS = ("command", "machine", "versions", "rows")


def write(file: Path, rows: Sequence[Row], *, command: str | None = None, **more: Any) -> None:
    """Write the rows with what ran them: this process's command, unless it is given, its machine and its versions."""
    from ptmst.support import files

    files.write_json(file, envelope(rows, command=command, **more))


def envelope(rows: Sequence[Row], *, command: str | None = None, **more: Any) -> Result:
    """A result as it is written. `more` replaces what it names."""
    about = provenance()
    return about | ({} if command is None else {"command": command}) | more | {"rows": list(rows)}


def read(file: Path) -> Result | None:
    """A result, or None if the file does not exist. Raises InputError for a file of another kind or a damaged one."""
    if not file.exists():
        return None
    try:
        result: Result = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file}: expected results in JSON, found a damaged file ({error}); restore it") from error
    if lacking := [key for key in KEYS if key not in result]:
        raise InputError(f"{file}: expected {', '.join(KEYS)}, found no {', '.join(lacking)}; choose another file")
    return result


def rows(file: Path) -> Rows:
    """The rows that a file already has."""
    result = read(file)
    return [] if result is None else list(result["rows"])


def provenance(cuda: bool = False) -> Result:
    """The command of this process, the machine and the versions; with `cuda` those of its libraries too."""
    from ptmst.support.provenance import machine, versions

    about: Result = {"command": command(), "machine": machine(), "versions": versions()}
    if cuda:
        import torch

        about["machine"] |= {"driver": driver()}
        about["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return about


def command() -> str:
    """How this process was started: `python -m bench.NAME …`, else `pytest …`."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec else ""
    program = ["python", "-m", module] if module.startswith("bench.") else ["pytest"]
    return shlex.join([*program, *sys.argv[1:]])


def driver() -> str:
    """Version of NVIDIA's driver; unknown where nvidia-smi is missing, as in some containers."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def of_benchmarks(report: Mapping[str, Any]) -> Result:
    """A report of pytest-benchmark as a result: a row is what a test recorded, its median seconds, all statistics."""
    measured = [
        {"test": one["name"], **one["extra_info"], "seconds": one["stats"]["median"], "stats": dict(one["stats"])}
        for one in report["benchmarks"]
    ]
    commit = {key: report["commit_info"].get(key) for key in ("id", "dirty")}
    return envelope(measured, commit=commit, datetime=report["datetime"])
