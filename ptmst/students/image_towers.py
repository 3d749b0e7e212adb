"""Image towers: the built-in one, timm's and open_clip's, their start weights, and how their images are prepared."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ptmst.config import Channels, DataConfig, EncoderConfig
from ptmst.data import MEAN, STD
from ptmst.errors import InputError
from ptmst.schema import nearest
from ptmst.students.packages import weights_file
from ptmst.students.weights import load_weights, named_as, weights_for
from ptmst.support.remembered import remembered, surroundings
from ptmst.support.seeds import seeded

_LOG = logging.getLogger(__name__)


class ConvNet(nn.Module):
    """Three blocks of convolution, group norm, SiLU and pooling: [B, 3, H, W] → [B, 4·width]. Quick on a CPU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (3, width // 4, width // 2, width)
        blocks: list[nn.Module] = []
        for before, after in pairwise(channels):
            blocks += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.AvgPool2d(2),
                nn.GroupNorm(gcd(after, max(1, after // 16)), after),
                nn.SiLU(),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pool(self.blocks(images))
        return features.flatten(1)


def image_tower(
    config: EncoderConfig, image_size: int, weights: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, int]:
    """The image tower with its start weights, and its feature width. Randomly initialized towers always start alike.

    `weights` (a warmed-up tower's, say) go before `config.image_weights`. Raises InputError for a name timm does not
    know, for weights that do not fit and for images of a size the tower does not take.
    """
    kind, _, name = config.image_tower.partition(":")
    with seeded(0, "tower"):
        if config.image_tower == "convnet":
            tower: nn.Module = ConvNet(config.image_width)
        elif kind == "timm":
            tower = _timm_tower(name, image_size)
        elif kind == "open_clip":
            tower = OpenClipImages(name)
        else:
            raise _no_tower(config.image_tower)
    # Norms with running statistics stay frozen: with batch statistics the loss would be no function of θ alone.
    tower.eval()
    try:
        with torch.no_grad():
            features = tower(torch.zeros(1, 3, image_size, image_size))
    except _REFUSALS as error:
        raise _does_not_take(config.image_tower, image_size, error) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else f"{len(features)} outputs"
        raise InputError(f"image_tower {config.image_tower}: expected features [B, H], found {found}; choose another")
    if image_size != _own_preparation(config.image_tower)[0] and (margin := _margin(tower, image_size)):
        raise InputError(
            f"image_tower {config.image_tower}: does not take images of {image_size}×{image_size} (the last {margin} "
            f"rows or columns would be left out); teach at data.image_size {image_size - margin}, or choose another"
        )
    if weights is not None:
        load_weights(tower, weights, "warmed-up tower")
    elif config.image_weights is not None:
        file = weights_file(config.image_weights)
        own = weights_for(tower, file, "the image tower", config.image_weights)
        if kind == "timm" and _img_size(name, image_size):
            own = _resampled(own, tower)
        load_weights(tower, own, config.image_weights)
    return tower, features.shape[1]


def _does_not_take(tower: str, size: int, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return InputError(
        f"image_tower {tower}: does not take images of {size}×{size} ({reason}); choose one that does, or teach at its "
        "own data.image_size"
    )


def _margin(tower: nn.Module, size: int) -> int:
    """How many of the last rows or columns of an image [3, size, size] no feature depends on: the greater number."""
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, size, size, generator=draw).requires_grad_()
    # Branches that start at zero would hide what they read.
    awake = {name: torch.full_like(value, 0.1) for name, value in tower.named_parameters() if not value.any()}
    with torch.enable_grad():
        features: Tensor = functional_call(tower, awake, (image,))
        (seen,) = torch.autograd.grad((features * torch.randn(features.shape, generator=draw)).sum(), image)
    lines = [seen.ne(0).any(dim) for dim in ((0, 1, 3), (0, 1, 2))]
    return max(size - 1 - int(line.nonzero().max()) if line.any() else 0 for line in lines)


def _no_tower(name: str) -> InputError:
    import open_clip
    import timm

    prefix = "timm" if timm.is_model(name) else "open_clip" if name in open_clip.list_models() else None
    advice = f"did you mean {prefix}:{name}?" if prefix else "check the name"
    return InputError(f"image_tower: expected convnet, timm:NAME or open_clip:NAME, found {name}; {advice}")


def prepared(data: DataConfig, encoder: EncoderConfig) -> DataConfig:
    """`data` with the image tower's own size, mean and standard deviation where it names none.

    Raises InputError for an unknown tower.
    """
    size, mean, std = _own_preparation(encoder.image_tower)
    return replace(data, image_size=data.image_size or size, mean=data.mean or mean, std=data.std or std)


def prepared_alike(data: DataConfig, before: EncoderConfig, encoder: EncoderConfig) -> DataConfig:
    """`data`, as it was `prepared` for one tower, for another: its own mean and deviation, or those that were set.

    The size stays, since distilled images have it. Raises InputError for an unknown tower.
    """
    _, mean, std = _own_preparation(before.image_tower)
    unset = replace(data, mean=data.mean if data.mean != mean else None, std=data.std if data.std != std else None)
    return prepared(unset, encoder)


def warn_of_random_weights(encoder: EncoderConfig, flag: str) -> None:
    """Warn where a published tower starts from random weights: `flag` names the setting that gives it others."""
    if ":" in encoder.image_tower and encoder.image_weights is None and not encoder.warmup_epochs:
        _LOG.warning(
            "image_tower %s: starts from random weights; give it trained ones with %s", encoder.image_tower, flag
        )


def _own_preparation(tower: str) -> tuple[int, Channels, Channels]:
    """Size, mean and standard deviation of a tower's images. Raises InputError for an unknown tower."""
    kind, _, name = tower.partition(":")
    if kind not in ("timm", "open_clip"):
        return 32, MEAN, STD
    key = {"what": "preparation", "tower": tower, **surroundings("timm", "open_clip_torch")}
    size, mean, std = remembered(key, lambda: _published_preparation(kind, name))
    return size, _channels(mean), _channels(std)


def _published_preparation(kind: str, name: str) -> tuple[int, Channels, Channels]:
    if kind == "timm":
        import timm

        _refuse_unknown_timm(name)
        own = timm.get_pretrained_cfg(name)
        return (own.input_size[-1], _channels(own.mean), _channels(own.std)) if own is not None else (224, MEAN, STD)
    import open_clip

    refuse_unknown_open_clip("image", name)
    vision, tags = open_clip.get_model_config(name)["vision_cfg"], open_clip.list_pretrained_tags_by_model(name)
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    # Which weights will be loaded is not known: theirs, where all agree.
    preparations = {(_channels(one.get("mean") or MEAN), _channels(one.get("std") or STD)) for one in published}
    return (vision["image_size"], *(preparations.pop() if len(preparations) == 1 else (MEAN, STD)))


def _channels(values: Sequence[float]) -> Channels:
    red, green, blue = values
    return red, green, blue


def _timm_tower(name: str, image_size: int) -> nn.Module:
    import timm

    _refuse_unknown_timm(name)
    _plain_timm_attention()
    tower: nn.Module = timm.create_model(name, num_classes=0, **_img_size(name, image_size))
    return tower


@cache
def _img_size(name: str, size: int) -> dict[str, Any]:
    """What tells a timm model that its images are of another size than its own; nothing where it need not know.

    Raises InputError where it takes no such images, told or not.
    """
    import timm

    own = timm.get_pretrained_cfg(name)
    if own is None or not own.fixed_input_size or own.input_size[1:] == (size, size):
        return {}
    told: dict[str, Any] = {"img_size": size}
    reason: Exception | None = None
    with seeded(0, "tower"), torch.no_grad():
        for settings in ({}, told):
            try:
                timm.create_model(name, num_classes=0, **settings).eval()(torch.zeros(1, 3, size, size))
                return settings
            except _REFUSALS as error:
                # Untold, it speaks of its own size; but one that cannot be told says no more than that.
                reason = reason if reason is not None and isinstance(error, TypeError) else error
    assert reason is not None
    raise _does_not_take(f"timm:{name}", size, reason) from reason


_REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ZeroDivisionError)
"""What towers raise for images of a size that they do not take."""


def _resampled(weights: Mapping[str, Tensor], tower: nn.Module) -> Mapping[str, Tensor]:
    """Weights of a timm model's own size for `tower`, which takes another, as timm itself resamples positions."""
    convert = getattr(sys.modules[type(tower).__module__], "checkpoint_filter_fn", None)
    named = named_as(tower.state_dict(), weights)
    return named if convert is None else convert(dict(named), tower)


def _refuse_unknown_timm(name: str) -> None:
    import timm

    if not timm.is_model(name):
        advice = nearest(name, timm.list_models(), "check the name")
        raise InputError(f"image_tower timm:{name}: timm knows no such model{advice}")


def refuse_unknown_open_clip(kind: str, name: str) -> None:
    import open_clip

    if name not in open_clip.list_models():
        advice = nearest(name, open_clip.list_models(), "check the name")
        raise InputError(f"{kind}_tower open_clip:{name}: unknown model{advice}")


class OpenClipImages(nn.Module):
    """The image tower of an open_clip model, randomly initialized, with its projection: [B, 3, H, W] → [B, H]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import open_clip

        refuse_unknown_open_clip("image", name)
        _plain_timm_attention()  # of towers that open_clip takes from timm
        with _no_warnings():
            self.visual: nn.Module = open_clip.create_model(name, load_weights=False, pretrained_text=False).visual

    def forward(self, images: Tensor) -> Tensor:
        # Fused attention has no forward-mode derivative; the plain form has.
        with sdpa_kernel(SDPBackend.MATH):
            features: Tensor = self.visual(images)
        return features


@contextmanager
def _no_warnings() -> Iterator[None]:
    """open_clip warns of random weights, where weights come later or are meant to be random."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _plain_timm_attention() -> None:
    """Fused attention has no forward-mode derivative; the plain form has."""
    import timm

    timm.layers.set_fused_attn(False)
