"""Bytes of live tensors: by hand, and beside torch's own record of its allocator."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from bench.measure import peak_memory
from ptmst.support.live import LiveTensors


def test_tensors_count_while_they_are_there() -> None:
    before = torch.ones(100)
    with LiveTensors() as live:
        a = before + 1
        assert (live.now, live.most) == (400, 400)
        view = a.view(10, 10)[3]
        assert live.now == 400
        b = a.double()
        assert (live.now, live.most) == (1200, 1200)
        del a
        assert live.now == 1200
        del view
        assert (live.now, live.most) == (800, 1200)
        del b
        assert (live.now, live.most) == (0, 1200)
        before.mul_(2)
        assert (live.now, live.most) == (0, 1200)
    before + 1
    assert (live.now, live.most) == (0, 1200)


@pytest.mark.slow
def test_the_most_is_that_of_the_allocator() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Flatten(), nn.Linear(14400, 32))
    images = torch.randn(8, 3, 32, 32)

    def step() -> None:
        torch.autograd.grad(model(images).square().sum(), list(model.parameters()))

    step()
    gc.collect()
    with LiveTensors() as live:
        step()
    # Workspaces of convolutions are the allocator's alone.
    assert live.now == 0 and 0.7 <= live.most / peak_memory(torch.device("cpu"), step) <= 1.05
