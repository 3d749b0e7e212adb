"""A function of tensors as one CUDA graph: no launch overhead, no host synchronisation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Function = Callable[[Tensors], Tensors]
Record = Callable[[Callable[[], Tensors]], tuple[Callable[[], None], Tensors]]
"""Records a function without arguments; returns what repeats it, and the tensors that a repetition writes."""

_WARM_UP_CALLS = 3


def cuda_graph(function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
    """Record `function`, which may only launch work on the device, as a CUDA graph."""
    # Calls beforehand, on a side stream, do what a recording must not: compile, and set up library workspaces.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_CALLS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as the one that reads experts ahead, go on allocating and waiting meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function()
    return graph.replay, outputs


class Captured:
    """A function that is captured at its first call; later calls copy their inputs into static buffers and replay it.

    It returns static buffers as well: the next call overwrites them. The function is captured again when names,
    shapes, dtypes or devices of the inputs change, or `constants`, which are whatever else it depends on; the old graph
    and its memory are freed first.
    """

    def __init__(self, record: Record = cuda_graph) -> None:
        self._record = record
        self._constants: Hashable = None
        self._inputs: Tensors = {}
        self._outputs: Tensors = {}
        self._replay: Callable[[], None] | None = None

    def __call__(self, function: Function, inputs: Mapping[str, Tensor], constants: Hashable = None) -> Tensors:
        same = constants == self._constants and _signature(inputs) == _signature(self._inputs)
        if self._replay is None or not same:
            self._replay, self._outputs, self._constants = None, {}, constants
            self._inputs = {name: value.clone() for name, value in inputs.items()}
            self._replay, self._outputs = self._record(lambda: function(self._inputs))
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        self._replay()
        return self._outputs


def _signature(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype, torch.device]]:
    return {name: (value.shape, value.dtype, value.device) for name, value in tensors.items()}
