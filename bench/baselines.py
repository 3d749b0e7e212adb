"""The outer step as other systems compute it, written cleanly: the opponents of ptmst.

`double_backward` is the truncated gradient of LoRS, TESLA, RepBlend and PTM-ST: an inner loop whose parameters are
constants, then every step once more with a graph, and a backward pass through its gradient. `unrolled` is the exact
gradient of MTT: one backward pass through all inner steps. Both use one flat vector and the same loss as ptmst, without
needless work. `Waste` is what the published loop does in addition at every outer step: it copies the image tower, which
it keeps on the host like the text encoder, draws the heads and reads a replay buffer of whole parameter vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ptmst.students.layers import LayerTable
from ptmst.students.losses import StudentLoss
from ptmst.synthetic.pairs import SyntheticPairs

Gradients = dict[str, Tensor]


def double_backward(
    loss_of: StudentLoss, layers: LayerTable, start: Tensor, target: Tensor, pairs: SyntheticPairs, batches: Tensor
) -> Gradients:
    """The truncated gradient in every leaf, for θ_start and θ_target [P] and batches int64 [n, B]."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in pairs.leaves().items()}
    synthetic = pairs.replace(leaves)
    rate = layers.expand(pairs.lr)
    path = [start]
    for index in batches:
        theta = path[-1].detach().requires_grad_()
        with torch.no_grad():
            batch = _batch(pairs, index)
        (g,) = torch.autograd.grad(loss_of(theta, *batch), theta)
        path.append(path[-1] - rate * g)

    final = path[-1].detach().requires_grad_()
    (lam,) = torch.autograd.grad(_matching_loss(final, start, target, layers), final)
    direction = -rate * lam
    wanted = [leaf for name, leaf in leaves.items() if name != "lr"]
    sums = tuple(torch.zeros_like(leaf) for leaf in wanted)
    for theta, index in zip(path, batches, strict=False):
        parameters = theta.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss_of(parameters, *_batch(synthetic, index)), parameters, create_graph=True)
        parts = torch.autograd.grad(g @ direction, wanted)
        sums = tuple(total + part for total, part in zip(sums, parts, strict=True))
    gradients = dict(zip((name for name in leaves if name != "lr"), sums, strict=True))
    return gradients | {"lr": layers.dot(lam, path[-1] - start) / pairs.lr}


def unrolled(
    loss_of: StudentLoss, layers: LayerTable, start: Tensor, target: Tensor, pairs: SyntheticPairs, batches: Tensor
) -> Gradients:
    """The exact gradient in every leaf, by one backward pass through the whole inner loop."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in pairs.leaves().items()}
    synthetic = pairs.replace(leaves)
    rate = layers.expand(synthetic.lr)
    theta = start.detach().requires_grad_()
    for index in batches:
        (g,) = torch.autograd.grad(loss_of(theta, *_batch(synthetic, index)), theta, create_graph=True)
        theta = theta - rate * g
    gradients = torch.autograd.grad(_matching_loss(theta, start, target, layers), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


class Waste:
    """The additional work of the published loop: every call copies the tower, draws heads, reads `buffer`."""

    def __init__(
        self, tower: nn.Module, widths: Sequence[tuple[int, int]], buffer: Path, points: Sequence[Tensor]
    ) -> None:
        """`widths`: those of each head's input and output."""
        self._tower, self._widths, self._buffer = tower, widths, buffer
        torch.save([list(points)], buffer)

    def __call__(self, device: torch.device) -> None:
        for module in (copy.deepcopy(self._tower), *(nn.Linear(*width) for width in self._widths)):
            module.to(device)
        torch.load(self._buffer, weights_only=True)


def _batch(pairs: SyntheticPairs, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return pairs.images[index], pairs.texts[index], pairs.similarity.batch(index)


def _matching_loss(theta: Tensor, start: Tensor, target: Tensor, layers: LayerTable) -> Tensor:
    parts = (vector.split(layers.group_sizes) for vector in (theta, start, target))
    terms = [((t - g).square().sum() / (s - g).square().sum()) for t, s, g in zip(*parts, strict=True)]
    return torch.stack(terms).sum()
