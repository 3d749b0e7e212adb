"""An expert's displacements and step norms, recorded as its training goes (docs/method.md §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ptmst.students.layers import LayerTable
from ptmst.trajectories.shortcut import Displacement, Expert


class Recorder:
    """Keeps of a trajectory only what its shortcuts need, as it happens."""

    def __init__(self, layers: LayerTable, endpoints: tuple[int, ...]) -> None:
        self._layers, self._endpoints = layers, endpoints
        self._points: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._displacements: dict[int, Displacement] = {}

    def record(self, theta: Tensor) -> None:
        """Take the next epoch's θ [P]; the first call takes θ⁰."""
        theta = theta.detach().cpu().clone()
        if self._points:
            base, before = self._points[0], self._points[-1]
            self._norms.append(self._layers.layer_norms(theta - before))
            if len(self._norms) in self._endpoints:
                self._displacements[len(self._norms)] = Displacement.encode(theta - base, self._layers)
            self._points = [base, theta]
        else:
            self._points = [theta]

    def expert(self) -> Expert:
        return Expert(self._layers, self._points[0], self._displacements, torch.stack(self._norms))
