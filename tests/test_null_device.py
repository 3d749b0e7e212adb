"""The host's side of the CUDA path, on a device whose kernels do nothing (tests/null_device).

It shows that everything goes through: no crash, no tensor on the wrong device, no call that a capture forbids, no more
launches or memory than should be. It proves nothing about numbers, which are undefined there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import null_device

_LACKING = null_device.lacking()
pytestmark = pytest.mark.skipif(_LACKING is not None, reason=_LACKING or "")

Found = dict[str, Any]
Ran = Callable[[str], Found]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Runs a flow on the device, and returns what it found."""
    folder = tmp_path_factory.mktemp("null")
    environment = os.environ | null_device.build(folder / "device") | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)

    def run(name: str) -> Found:
        command = [sys.executable, "-m", "null_device.flows", name, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: Found = json.loads((folder / f"{name}.json").read_text())
        return found

    return run


CALLS = ("item", "to host", "to device", "pinned", "clone", "product")


def test_the_device_counts_and_refuses(ran: Ran) -> None:
    found = ran("rules")
    done = {call: {name: n for name, n in found[call].items() if "alloc" not in name} for call in CALLS}
    waits = {"stream_synchronisations": 1}
    assert done["item"] == {"launches": 1, "copies_to_host": 1, "copied_to_host_bytes": 4} | waits
    pageable = {"copies_to_host": 1, "copied_to_host_bytes": 4 * 256 * 256, "pageable_copies_to_host": 1}
    assert done["to host"] == pageable | waits
    sent = {"copies_to_device": 1, "copied_to_device_bytes": 40}
    assert done["to device"] == sent | {"pageable_copies_to_device": 1} | waits
    assert done["pinned"] == {"copies_to_device": 1, "copied_to_device_bytes": 1024}
    assert done["clone"] == {"copies_on_device": 1, "copied_on_device_bytes": 4 * 256 * 256}
    assert done["product"] == {"launches": 1}
    recorded = {name: value for name, value in found["recorded"].items() if name.startswith(("recorded", "repl"))}
    assert recorded == {"recorded_launches": 2, "recorded_copies": 1, "replays": 1, "replayed_nodes": 3}
    assert found["allocated"]["allocated_bytes"] == 1 << 30 and found["full"] == "OutOfMemoryError"
    forbidden = "CUDA error: operation not permitted when stream is capturing"
    for mode, refused in found["refused"].items():
        # Another thread is minded in the global mode alone; the capturing one always, unless it asked for it.
        assert refused["thread"] == [forbidden if mode == "global" else ""], mode
        assert bool(refused["capture"]) == (mode == "global"), mode
        assert bool(refused["synchronise"]) == (mode != "relaxed"), mode
        assert refused["item"], mode
