"""Results with the names that they had before there was one schema, for bench/readme.py alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import result
from bench.tables import NOT_YET

__all__ = ["NOT_YET", "read"]


def read(results: Path, name: str) -> dict[str, Any] | None:
    """What was measured under that name, or None if it was not."""
    found = result.read(results / f"{name}.json")
    if found is None:
        return None
    versions, machine = found["versions"], found["machine"]
    environment = {"command": found["command"], **versions, **machine}
    before: dict[str, Any] = {"environment": environment, "kernels": found["rows"]}
    before |= {key: versions[key] for key in ("torch", "triton") if key in versions}
    before |= {key: machine[key] for key in ("threads", "target") if key in machine}
    before["benchmarks"] = [
        {"extra_info": {**row, "environment": environment, "machine": machine}, "stats": row["stats"]}
        for row in found["rows"]
        if "stats" in row
    ]
    return before | found
