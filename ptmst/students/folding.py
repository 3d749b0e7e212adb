"""Frozen BatchNorm as part of the convolution before it: the same function, with fewer passes over activations."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from ptmst.support.seeds import generator

_RELATIVE = 1e-4
"""Most that outputs may differ: rounding alone is far below, another function far above."""


@torch.no_grad()
def folded(tower: nn.Module, image_size: int) -> nn.Module:
    """The frozen tower with every BatchNorm inside the convolution that is registered just before it.

    That order of layers is the order of computation is a guess, so both towers see two images of noise. The tower
    itself, where it has nothing to fold or the outputs differ by more than rounding.
    """
    norms = [part for part in tower.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms or any(norm.training or norm.running_mean is None for norm in norms):
        return tower
    faster = deepcopy(tower).requires_grad_(False)
    for parent in list(faster.modules()):
        _fold_children(parent)
    noise = torch.randn(2, 3, image_size, image_size, generator=generator("folding")).to(norms[0].weight.dtype)
    expected, found = tower(noise), faster(noise)
    same = torch.linalg.vector_norm(found - expected) <= _RELATIVE * torch.linalg.vector_norm(expected)
    return faster if bool(same) else tower


def _fold_children(parent: nn.Module) -> None:
    before: tuple[str, nn.Module] | None = None
    for name, part in list(parent.named_children()):
        if before is not None and isinstance(part, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
            setattr(parent, before[0], fuse_conv_bn_eval(before[1], part).requires_grad_(False))
            setattr(parent, name, _rest(part))
        before = name, part


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What a norm does besides: timm's have an activation of their own."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()
