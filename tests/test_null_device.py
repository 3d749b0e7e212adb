"""The host's side of the CUDA path, on a device whose kernels do nothing (tests/null_device).

It shows that everything goes through: no crash, no tensor on the wrong device, no call that a capture forbids, no more
launches or memory than should be. It proves nothing about numbers, which are undefined there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import null_device
from bench import result
from null_device.flows import DISTILLATIONS, FROZEN, MORE, STEPS

_LACKING = null_device.lacking()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(_LACKING is not None, reason=_LACKING or "")]

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


RECORDED = {"experts that are not resident", *DISTILLATIONS, *(f"frozen, {name}" for name in FROZEN)} - {"eager"}


def test_all_of_the_way_goes_through(ran: Ran) -> None:
    """From real pairs to scores, in every setting; two phases, so two recordings, each repeated at every step."""
    found = ran("way")
    # With this seed no expert is read ahead of the first phase's second step.
    assert found.pop("met") == [False, True] and "forgetting" in found
    assert found.pop("arithmetic") == [["ieee", True]]
    for name, done in found.items():
        assert "refusals" not in done, name
        if name in RECORDED:
            assert done["recordings"] == 2, name
            how = DISTILLATIONS.get(name, {})
            assert done["replays"] == 2 * how.get("steps", STEPS) * how.get("spans_per_step", 1), name
    # The host waits for the device once a step, for all that it wants to know of it; and for an expert that is read.
    few, many = (_waits(found[name]) for name in ("captured", "captured, more steps"))
    assert many - few == 2 * MORE + 1


def _waits(done: Mapping[str, int]) -> int:
    return sum(number for name, number in done.items() if name.endswith("synchronisations"))


def test_experts_that_are_read_anew_take_the_memory_of_the_first(ran: Ran) -> None:
    found = ran("rotation")
    assert found["after 30"] == found["after 3"]


LAUNCHES = {"inner step": (155, 155), "its gradient": (788, 834), "outer step": (2940, 3090), "compiled": (303, 309)}
"""Kernels, fills and copies on the device that were reached: with torch 2.14 and newer, and with older ones."""


def test_launches_of_an_outer_step(ran: Ran) -> None:
    found = ran("launched")
    older = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
    launched = {
        name: done["launches"] + done.get("copies_on_device", 0) for name, done in found.items() if name in LAUNCHES
    }
    launched["compiled"] = found["replayed"]["replayed_nodes"]
    assert found["recorded"]["recordings"] == 1 and found["replayed"].keys().isdisjoint({"launches", "refusals"})
    for name, reached in LAUNCHES.items():
        assert 0 < launched[name] <= 1.02 * reached[older], name


@pytest.mark.exhaustive
def test_what_is_measured_of_one_tree_stays_beside_that_of_another(tmp_path: Path) -> None:
    file = tmp_path / "cuda-host.json"
    other = {"tree": "before", "part": "launches-small", "commit": "0", "of": "it", "what": "launches", "value": 1}
    result.write(file, [other, {**other, "tree": "now"}])
    command = [sys.executable, "-m", "bench.cuda_host", "--json", str(file), "--only", "launches-small"]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    kept, measured = json.loads(file.read_text())["rows"]
    assert kept == other
    assert (measured["tree"], measured["part"]) == ("now", "launches-small") and measured["value"] > 1000
