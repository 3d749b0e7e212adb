"""Memory of this process, as the system counts it."""

from __future__ import annotations

import sys

import pytest
import torch

from ptmst.support.memory import peak_memory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_a_peak_is_that_of_its_block_alone() -> None:
    torch.ones(2 * 10**8).sum()
    with peak_memory() as little:
        torch.ones(10**6).sum()
    with peak_memory() as much:
        torch.ones(10**8).sum()
    (low,), (high,) = little, much
    assert 3.5e8 < high - low < 4.5e8
