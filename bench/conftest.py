"""`--benchmark-json` writes results in the schema of bench/result.py."""

from __future__ import annotations

from typing import Any

from bench import result


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    converted = result.of_benchmarks(output_json)
    output_json.clear()
    output_json.update(converted)
