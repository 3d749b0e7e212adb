"""Image towers: the built-in one, timm's and open_clip's, their start weights, and how their images are prepared."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from math import gcd
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ptmst.config import Channels, DataConfig, EncoderConfig
from ptmst.data import MEAN, STD
from ptmst.errors import InputError
from ptmst.schema import nearest
from ptmst.support import files
from ptmst.support.published import load_published
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
            tower = _timm_tower(name)
        elif kind == "open_clip":
            tower = OpenClipImages(name)
        else:
            raise _no_tower(config.image_tower)
    if weights is not None:
        load_weights(tower, weights, "warmed-up tower")
    elif config.image_weights is not None:
        load_weights(tower, _read_weights(config.image_weights), config.image_weights)
    # Norms with running statistics stay frozen: with batch statistics the loss would be no function of θ alone.
    tower.eval()
    try:
        with torch.no_grad():
            features = tower(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"image_tower {config.image_tower}: does not take images of {image_size}×{image_size} "
            f"({str(error).splitlines()[0]}); choose one that does, or teach at its own data.image_size"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else f"{len(features)} outputs"
        raise InputError(f"image_tower {config.image_tower}: expected features [B, H], found {found}; choose another")
    return tower, features.shape[1]


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
    kind, _, name = tower.partition(":")
    if kind == "timm":
        import timm

        _refuse_unknown_timm(name)
        own = timm.get_pretrained_cfg(name)
        return (own.input_size[-1], _channels(own.mean), _channels(own.std)) if own is not None else (224, MEAN, STD)
    if kind == "open_clip":
        import open_clip

        refuse_unknown_open_clip("image", name)
        vision, tags = open_clip.get_model_config(name)["vision_cfg"], open_clip.list_pretrained_tags_by_model(name)
        published = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
        # Which weights will be loaded is not known: theirs, where all agree.
        preparations = {(_channels(one.get("mean") or MEAN), _channels(one.get("std") or STD)) for one in published}
        return (vision["image_size"], *(preparations.pop() if len(preparations) == 1 else (MEAN, STD)))
    return 32, MEAN, STD


def _channels(values: Sequence[float]) -> Channels:
    red, green, blue = values
    return red, green, blue


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Load a state dict; layers of a classifier that the module lacks are passed over, missing ones refused."""
    known = module.state_dict()
    wrong = [k for k, v in known.items() if k not in weights or weights[k].shape != v.shape]
    if wrong:
        found = tuple(weights[wrong[0]].shape) if wrong[0] in weights else "nothing"
        raise InputError(
            f"{source}: expected weights of this tower, found {found} for {wrong[0]} {tuple(known[wrong[0]].shape)} "
            f"({len(wrong)} such layers); name the tower these weights belong to"
        )
    module.load_state_dict({k: weights[k] for k in known})


def _timm_tower(name: str) -> nn.Module:
    import timm

    _refuse_unknown_timm(name)
    _plain_timm_attention()
    tower: nn.Module = timm.create_model(name, num_classes=0)
    return tower


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


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: expected weights of the image tower, found no such file; check the path")
    loaded = files.read_tensors(path) if path.suffix == ".safetensors" else load_published(path)
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return {k: v for k, v in weights.items() if isinstance(v, Tensor)} if isinstance(weights, dict) else {}
