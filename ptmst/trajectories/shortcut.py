"""Expert trajectories: the epochs as they were, and the shortcut to an end point (docs/method.md §2, paper §3.3).

Everything is computed from θ⁰, the displacements δ at the kept end points and the table of step norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ptmst import kernels
from ptmst.errors import InputError
from ptmst.students.layers import LayerTable
from ptmst.support.devices import sent
from ptmst.trajectories.matching import refuse_still, squared_length
from ptmst.trajectories.spans import RawSpan, ShortcutSpan, Span


def shortcut_beta(step_norms: Tensor, endpoint: int) -> Tensor:
    """β [K+1, L] from step norms n [E, L], K = `endpoint`: β_ℓ(t) = Σ_{k<t} n_ℓ(k) / Σ_{k<K} n_ℓ(k).

    β(0) = 0 and β(K) = 1; a layer that never moves has β = 0 throughout. Summed in float64.
    """
    walked = torch.zeros(endpoint + 1, step_norms.shape[1], dtype=torch.float64)
    torch.cumsum(step_norms[:endpoint].double(), 0, out=walked[1:])
    total = walked[-1]
    return torch.where(total > 0, walked / total.where(total > 0, 1.0), 0.0).float()


@dataclass(frozen=True)
class Displacement:
    """δ = θ^K − θ⁰ [P] in half precision, with one power-of-two scale per layer: δ_ℓ = scale_ℓ · values_ℓ."""

    values: Tensor
    """float16 [P]."""
    scale: Tensor
    """float32 [L]."""
    norms: Tensor
    """float32 [L]: ‖δ_ℓ‖₂ of the decoded displacement."""

    @classmethod
    def encode(cls, delta: Tensor, layers: LayerTable) -> Displacement:
        """Half precision of a float32 displacement [P]; relative error about 2e-4 whatever its size."""
        largest = torch.stack([part.abs().max() for part in delta.split(layers.sizes)]).double()
        # The largest value of a layer lands in [2^14, 2^15): far from overflow, and as far as can be from underflow.
        exponent = torch.where(largest > 0, torch.floor(torch.log2(largest.where(largest > 0, 1.0))) - 14, 0.0)
        scale = torch.exp2(exponent.clamp(min=-126.0)).float()
        values = (delta / layers.expand_layers(scale)).half()
        norms = layers.layer_norms(values.float()) * scale
        return cls(values, scale, norms)

    def decode(self, layers: LayerTable) -> Tensor:
        """δ as float32 [P]."""
        return self.values.float() * layers.expand_layers(self.scale)


class Trajectory(Protocol):
    """The points that one expert offers to match."""

    def point(self, t: int) -> Tensor:
        """θ(t) as float32 [P]."""

    def span(self, s: int, t: int) -> Span:
        """From θ(s) to θ(t)."""


@dataclass(frozen=True)
class Expert:
    """One expert's record: θ⁰ [P], displacements by epoch, and the step norms [E, L] of all its epochs."""

    layers: LayerTable
    base: Tensor
    displacements: Mapping[int, Displacement]
    step_norms: Tensor

    def shortcut(self, endpoint: int) -> Shortcut:
        """The shortcut to an end point; raises InputError where its displacement was not kept."""
        return Shortcut(self.layers, self.base, self._kept(endpoint), shortcut_beta(self.step_norms, endpoint))

    def raw(self) -> RawTrajectory:
        return RawTrajectory(self)

    def to(self, device: torch.device | str) -> Expert:
        """The same record with its parameters on a device, whose copies nobody waits for; the step norms stay."""
        displacements = {
            k: Displacement(sent(d.values, device), sent(d.scale, device), d.norms)
            for k, d in self.displacements.items()
        }
        return Expert(self.layers, sent(self.base, device), displacements, self.step_norms)

    def _kept(self, epoch: int) -> Displacement:
        if epoch not in self.displacements:
            raise InputError(
                f"epoch {epoch}: expected one of the kept end points {', '.join(map(str, self.displacements))}; "
                "name one of them, or teach again with it among --endpoints (or all)"
            )
        return self.displacements[epoch]


@dataclass(frozen=True)
class Shortcut:
    """The shortcut θ_ℓ(t) = θ_ℓ⁰ + β_ℓ(t) δ_ℓ to one end point."""

    layers: LayerTable
    base: Tensor
    displacement: Displacement
    beta: Tensor
    """float32 [K+1, L]."""

    def point(self, t: int) -> Tensor:
        d = self.displacement
        return kernels.shortcut_point(
            self.base, d.values, d.scale, self.layers.offsets, sent(self.beta[t], d.scale.device)
        )

    def span(self, s: int, t: int) -> ShortcutSpan:
        """Raises InputError where a group does not move between s and t."""
        d, device = self.displacement, self.base.device
        # Σ_ℓ (Δβ_ℓ)² ‖δ_ℓ‖² per group: read from tables on the host, no parameter touched.
        lengths = (self.beta[t] - self.beta[s]).double() * d.norms.double()
        distance = torch.zeros(self.layers.num_groups, dtype=torch.float64)
        distance = distance.index_add(0, self.layers.groups, lengths.square()).float()
        return ShortcutSpan(
            layers=self.layers,
            start=self.point(s),
            base=self.base,
            displacement=d.values,
            scale=d.scale,
            beta_start=sent(self.beta[s], device),
            beta_target=sent(self.beta[t], device),
            distance=sent(refuse_still(distance, self.layers, f"{s} → {t}"), device),
        )


@dataclass(frozen=True)
class RawTrajectory:
    """The expert's own epochs, as far as their displacements were kept."""

    expert: Expert
    _distances: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of spans that were asked for before: to look at one is to wait for the device."""

    def point(self, t: int) -> Tensor:
        if t == 0:
            return self.expert.base
        return self.expert.base + self.expert._kept(t).decode(self.expert.layers)

    def span(self, s: int, t: int) -> RawSpan:
        """Raises InputError where a group does not move between s and t."""
        layers, start, target = self.expert.layers, self.point(s), self.point(t)
        if (s, t) not in self._distances:
            self._distances[s, t] = squared_length(start, target, layers, f"{s} → {t}")
        return RawSpan(layers, start, target, self._distances[s, t])
