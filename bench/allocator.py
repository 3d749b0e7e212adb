"""`python -m bench.allocator --json FILE`: kernels in a plain Python process, as a user of the drop-in modules has it.

Where the system's allocator is as it was, every result of 160 MB is memory that the system clears page by page. Three
ways: so, into a tensor of the caller's (`out=`), and after `ptmst.keep_freed_memory()`. Times are beside the speed of a
copy in the same process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench import result
from bench.cases import INTO, KEPT, OURS_KERNEL, PLAIN_PROCESS, Flat
from bench.command import bare_parser

PARAMETERS = 40_000_000
KERNELS = ("shortcut_point", "matching_residual", "vector_residual")
LOSS = "TrajectoryMatchingLoss and its gradient"
_ROUNDS, _WARM = 15, 3


def measure(kept: bool) -> list[dict[str, Any]]:
    """The rows of this process."""
    import ptmst

    if kept and not ptmst.keep_freed_memory():
        raise OSError("keep_freed_memory: expected glibc and none of its settings in the environment")
    import torch

    from bench.measure import copy_bandwidth
    from bench.providers import flat_call, vectors
    from ptmst import LayerTable, TrajectoryMatchingLoss

    cpu, rows = torch.device("cpu"), []
    for kernel in KERNELS:
        case = Flat(kernel, PARAMETERS)
        v = vectors(case, cpu)
        call: Callable[..., object] = flat_call(case, OURS_KERNEL, v)
        ways: dict[str, Callable[[], object]] = {KEPT if kept else PLAIN_PROCESS: call}
        if not kept:
            out = torch.empty(PARAMETERS)
            ways[INTO] = partial(call, out=out)
            ways[INTO]()
            first: Any = call()
            assert torch.equal(out, first[0] if isinstance(first, tuple) else first)
        rows += [_row(kernel, way, timed, case.bytes, copy_bandwidth(cpu)) for way, timed in ways.items()]
    sizes = case.layer_sizes()
    names, shapes = tuple(map(str, range(len(sizes)))), tuple((size,) for size in sizes)
    loss = TrajectoryMatchingLoss(LayerTable(names, shapes, (0,) * 50 + (1,) * (len(sizes) - 50)))
    theta, start, target = v["theta"].requires_grad_(), v["base"], v["grad"]

    def step() -> None:
        torch.autograd.grad(loss(theta, start, target).loss, theta)

    # The residual is written and read again; the gradient is written.
    rows.append(_row(LOSS, KEPT if kept else PLAIN_PROCESS, step, (16 + 8) * PARAMETERS, copy_bandwidth(cpu)))
    return rows


def _row(kernel: str, way: str, call: Callable[[], object], traffic: int, copied: float) -> dict[str, Any]:
    times = []
    for _ in range(_WARM + _ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[_WARM:])
    floor = {"bytes": traffic, "copied bytes/s": copied, "times the floor": seconds * copied / traffic}
    return {"kernel": kernel, "process": way, "parameters": PARAMETERS, "seconds": seconds, **floor}


def main() -> int:
    options = bare_parser("allocator", __doc__)
    options.add_argument("--child", choices=("plain", "kept"), help="measure in this process, and print the rows")
    asked = options.parse_args()
    if asked.child:
        print(json.dumps(measure(asked.child == "kept")))
        return 0
    rows: list[dict[str, Any]] = []
    for child in ("plain", "kept"):
        command = [sys.executable, "-m", "bench.allocator", "--json", "none", "--child", child]
        rows += json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    result.write(asked.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
