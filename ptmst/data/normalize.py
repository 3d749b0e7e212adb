"""Images between uint8 and normalized, by mean and standard deviation of the channels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ptmst.config import Channels

MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
STD: Channels = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, which the published code normalizes with whatever the tower."""
_WHITE: Channels = (255.0, 255.0, 255.0)


def normalize(pixels: Tensor, mean: Channels = MEAN, std: Channels = STD) -> Tensor:
    """float32 images [..., 3, H, W] of zero mean and unit deviation, from uint8 pixels of that shape."""
    mean_of, std_of, white = (_channels(values, pixels.device) for values in (mean, std, _WHITE))
    # By a number of the host's CUDA does not divide, it multiplies by 1/255, which rounds otherwise.
    return (pixels.float() / white - mean_of) / std_of


def denormalize(images: Tensor, mean: Channels = MEAN, std: Channels = STD) -> Tensor:
    """uint8 pixels [..., 3, H, W] from normalized images of that shape, rounded and clamped."""
    values = images.detach().float() * _channels(std, images.device) + _channels(mean, images.device)
    return (values * 255).round().clamp(0, 255).to(torch.uint8)


def renormalize(images: Tensor, before: tuple[Channels, Channels], after: tuple[Channels, Channels]) -> Tensor:
    """The same pictures [..., 3, H, W], normalized with another mean and standard deviation; not clamped."""
    if before == after:
        return images
    (mean, std), (new_mean, new_std) = ([_channels(values, images.device) for values in one] for one in (before, after))
    return (images * std + mean - new_mean) / new_std


@lru_cache(32)
def _channels(values: Channels, device: torch.device) -> Tensor:
    """float32 [3, 1, 1]; kept, since a copy of numbers to a device waits for all that it has to do."""
    return torch.tensor(values, device=device).view(3, 1, 1)
