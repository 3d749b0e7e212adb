"""The implementations of the kernels as test lanes: plain torch, native C++ by instruction set, and Triton.

Triton runs on a CUDA device where there is one, and in its interpreter elsewhere (conftest.py sees to that).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from ptmst.kernels import dispatch, native

NATIVE = ("portable", "avx2", "avx512")
LANES = ("reference", *NATIVE, "triton")


def device(lane: str) -> torch.device:
    return torch.device("cuda" if lane == "triton" and torch.cuda.is_available() else "cpu")


def interpreted(lane: str) -> bool:
    """Triton's interpreter takes a second for what others do in a millisecond."""
    return lane == "triton" and device(lane).type == "cpu"


@contextmanager
def running(lane: str) -> Iterator[torch.device]:
    """The public kernels are run by this implementation; skips the test where it cannot be had."""
    if lane in NATIVE and native.library() is None:
        pytest.skip("the native library was not built")
    if lane in NATIVE and not native.choose(lane):
        pytest.skip(f"this processor or library has no {lane}")
    if lane == "triton" and dispatch.lacks_triton():
        pytest.skip("Triton cannot run here")
    before = os.environ.get(dispatch.FORCE)
    os.environ[dispatch.FORCE] = "native" if lane in NATIVE else lane
    try:
        yield device(lane)
    finally:
        if before is None:
            del os.environ[dispatch.FORCE]
        else:
            os.environ[dispatch.FORCE] = before
        if lane in NATIVE:
            native.choose("best")


each_lane = pytest.mark.parametrize("lane", LANES)
