"""What tests/test_null_device.py runs, each in a process of its own on the null device.

`python -m null_device.flows NAME FOLDER` writes what it found to FOLDER/NAME.json.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from null_device import counts

Found = dict[str, Any]
FLOWS: dict[str, Callable[[Path], Found]] = {}


def flow(function: Callable[[Path], Found]) -> Callable[[Path], Found]:
    FLOWS[function.__name__] = function
    return function


def counted(call: Callable[[], object]) -> dict[str, int]:
    """What a call does on the device, but for what it does not."""
    before = counts()
    call()
    return {name: value - before[name] for name, value in counts().items() if value != before[name]}


def captured(call: Callable[[], object], mode: str) -> str:
    """What becomes of a capture: the first line of its error, or nothing."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode=mode):
            call()
        graph.replay()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


@flow
def rules(folder: Path) -> Found:
    """The device itself: what it counts, and what it refuses."""
    x = torch.randn(256, 256, device="cuda")
    pinned = torch.ones(256).pin_memory()
    # Whose first time takes memory for good.
    x.sum().item(), x @ x

    def work() -> object:
        return ((x * 2) @ x).clone()

    def elsewhere(call: Callable[[], object]) -> str:
        """Runs it on a thread; the first line of its error, or nothing."""
        said = [""]

        def body() -> None:
            try:
                call()
            except RuntimeError as error:
                said[0] = str(error).splitlines()[0]

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        return said[0]

    captured(work, "global")
    recorded = counted(lambda: captured(work, "global"))
    refused = {}
    for number, mode in enumerate(("global", "thread_local", "relaxed")):
        others: list[str] = []
        # Of a size that no other has freed before, so that it is taken anew.
        fresh = torch.empty(1 << (20 + number))

        def with_another(fresh: torch.Tensor = fresh, others: list[str] = others) -> None:
            work()
            others.append(elsewhere(fresh.pin_memory))

        refused[mode] = {
            "capture": captured(with_another, mode),
            "thread": others,
            "synchronise": captured(torch.cuda.synchronize, mode),
            "item": captured(lambda: x.sum().item(), mode),
        }
    try:
        torch.empty(1 << 37, dtype=torch.uint8, device="cuda")
        full = ""
    except torch.OutOfMemoryError as error:
        full = type(error).__name__
    return {
        "item": counted(lambda: x.sum().item()),
        "to host": counted(x.cpu),
        "to device": counted(lambda: torch.ones(10).cuda()),
        "pinned": counted(lambda: pinned.to("cuda", non_blocking=True)),
        "clone": counted(x.clone),
        "product": counted(lambda: x @ x),
        "recorded": recorded,
        "refused": refused,
        "allocated": counted(lambda: torch.empty(1 << 30, dtype=torch.uint8, device="cuda")),
        "full": full,
    }


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    (folder / f"{name}.json").write_text(json.dumps(FLOWS[name](folder)))
