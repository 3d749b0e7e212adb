"""Options of the benchmarks of the outer step; `python -m bench.outer` sets them."""

from __future__ import annotations

import time

import pytest
import torch

_BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ptmst")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where the outer step runs")
    group.addoption("--minutes", type=float, default=None, help="begin no case later than this")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    minutes = request.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - _BEGAN > 60 * minutes:
        pytest.skip(f"not begun: {minutes:g} minutes are over")
    return torch.device(request.config.getoption("--device"))
