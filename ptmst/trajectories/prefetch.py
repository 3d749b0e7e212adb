"""Expert trajectories in memory where they fit, else prefetched one outer step ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch

from ptmst.support import devices
from ptmst.trajectories.shortcut import Expert, Trajectory
from ptmst.trajectories.store import TrajectoryStore

_SHARE = 0.5
"""Of the free memory that experts may take."""


class ExpertCache:
    """Trajectories by the numbers of their experts; a context manager, since it may read on a thread.

    If all experts fit into half of the device's free memory, each is read once and stays there. If not, the next one is
    read in the background while the current one is used.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        make: Callable[[Expert], Trajectory],
        endpoints: tuple[int, ...],
        device: torch.device,
        room: int | None = None,
    ) -> None:
        self._store, self._make, self._endpoints, self.device = store, make, endpoints, device
        room = int(_SHARE * devices.free_bytes(device)) if room is None else room
        self.resident = len(store) * expert_bytes(store.layers.num_params, len(endpoints)) <= room
        """Whether all of them stay in memory."""
        self._kept: dict[int, Trajectory] = {}
        self._ahead: dict[int, Future[Trajectory]] = {}
        self._thread = ThreadPoolExecutor(1, "expert")
        # Of its own, so that copies need not wait for the outer step that runs meanwhile; and one for all, since memory
        # that was taken on one stream serves no other.
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def get(self, number: int, *, prefetch: int | None = None) -> Trajectory:
        """The trajectory of an expert; `prefetch` is the number of the next one.

        Raises InputError for a damaged or missing file.
        """
        trajectory = self._kept.get(number)
        if trajectory is None:
            ahead = self._ahead.pop(number, None)
            trajectory = self._read(number) if ahead is None else ahead.result()
            if not self.resident:
                self._kept.clear()
            self._kept[number] = trajectory
        if prefetch is not None and prefetch not in self._kept and prefetch not in self._ahead:
            self._ahead[prefetch] = self._thread.submit(self._read, prefetch)
        return trajectory

    def _read(self, number: int) -> Trajectory:
        expert = self._store.expert(number, self._endpoints)
        if self._copies is not None:
            using = torch.cuda.default_stream(self.device)
            with torch.cuda.stream(self._copies):
                expert = expert.to(self.device)
            self._copies.synchronize()
            for tensor in (expert.base, *(t for d in expert.displacements.values() for t in (d.values, d.scale))):
                tensor.record_stream(using)
        return self._make(expert)


def expert_bytes(parameters: int, endpoints: int) -> int:
    """In memory: θ⁰ in float32, and a displacement in half precision for each end point."""
    return (4 + 2 * endpoints) * parameters
