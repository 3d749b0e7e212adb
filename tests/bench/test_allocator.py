"""The benchmark of memory runs every call in every process that it names."""

from __future__ import annotations

import pytest

from bench import allocator, measure
from bench.cases import INTO, KEPT, PLAIN_PROCESS
from ptmst.support import memory


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_every_call_is_timed(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    monkeypatch.setattr(allocator, "PARAMETERS", 100_000)
    monkeypatch.setattr(measure, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: True)  # not in the process of the tests
    monkeypatch.setattr("ptmst.keep_freed_memory", lambda: True, raising=False)
    rows = allocator.measure(kept)
    ways = [KEPT] if kept else [PLAIN_PROCESS, INTO]
    expected = [(kernel, way) for kernel in allocator.KERNELS for way in ways] + [(allocator.LOSS, ways[0])]
    assert [(row["kernel"], row["process"]) for row in rows] == expected
    for row in rows:
        assert row["seconds"] > 0 and row["times the floor"] == pytest.approx(1e9 * row["seconds"] / row["bytes"])
    assert rows[0]["bytes"] == 10 * 100_000
