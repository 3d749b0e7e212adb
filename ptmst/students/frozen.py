"""A frozen image tower: the same for all students, and built only where something asks what it sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptmst.config import EncoderConfig
from ptmst.errors import InputError
from ptmst.students.folding import folded
from ptmst.students.image_towers import image_tower
from ptmst.students.packages import weights_file
from ptmst.students.weights import weights_hash
from ptmst.support import devices, files
from ptmst.support.remembered import remembered, surroundings
from ptmst.support.seeds import generator

_VERSION = 1
"""To be raised where the same settings make another tower than before."""


class Forms(NamedTuple):
    """A tower, and the same function in a form that is faster on a CPU, if there is one."""

    tower: nn.Module
    on_cpu: nn.Module


class FrozenTower:
    """Images [B, 3, H, W] → features [B, Z] by a module that nothing trains.

    `build` makes it when it is first needed; `identity` names it before that, where it is known.
    """

    def __init__(self, build: Callable[[], Forms], identity: str | None = None) -> None:
        self._build, self._identity = build, identity
        self._forms: Forms | None = None
        self._channels_last = False
        self._device: torch.device | str | None = None

    @classmethod
    def of(cls, tower: nn.Module, on_cpu: nn.Module | None = None) -> FrozenTower:
        """A module that is there already."""
        frozen = cls(lambda: Forms(tower, on_cpu or tower))
        frozen.built()
        return frozen

    def built(self) -> Forms:
        """The tower's forms, on the device that it was sent to."""
        if self._forms is None:
            self._forms = self._build()
            # On a CPU a depthwise convolution is 1.6 times as fast so, and equal but for rounding.
            self._channels_last = any(map(_is_depthwise, self._forms.tower.modules()))
            for form in self._forms:
                form.requires_grad_(False)
            if self._device is not None:
                self._forms.tower.to(self._device)
        return self._forms

    def to(self, device: torch.device | str) -> None:
        """Move it, in place, now or when it is built. Its form for a CPU stays where it is."""
        self._device = device
        if self._forms is not None:
            self._forms.tower.to(device)

    def __call__(self, images: Tensor, plain: bool = False) -> Tensor:
        """Features of images; `plain` by the tower as it was given, on every device."""
        tower, on_cpu = self.built()
        if images.device.type == "cpu":
            tower = tower if plain else on_cpu
            images = images.contiguous(memory_format=torch.channels_last) if self._channels_last else images
        features: Tensor = tower(images)
        return features

    @torch.no_grad()
    def identity(self, image_size: int) -> str:
        """SHA-256 over the tower's layers, its weights, and what it makes of two images of noise, which tells what
        neither weights nor names of layers do."""
        if self._identity is None:
            tower, _ = self.built()
            noise = torch.randn(2, 3, image_size, image_size, generator=generator("features"))
            parameter = next(tower.parameters(), None)
            with devices.arithmetic("fp32"):
                seen = self(noise if parameter is None else noise.to(parameter)).float().cpu().contiguous()
            self._identity = files.sha256(f"{_made_of(tower)}\n{files.sha256(seen.numpy().tobytes())}".encode())
        return self._identity


def frozen_tower(
    config: EncoderConfig, image_size: int, weights: Mapping[str, Tensor] | None = None
) -> tuple[FrozenTower, int]:
    """The frozen image tower and its feature width. It is not built where both are known from an earlier time.

    Raises InputError as `image_tower` does.
    """
    file = None if config.image_weights is None else weights_file(config.image_weights)
    at_once: list[FrozenTower] = []

    def build() -> Forms:
        tower, _ = image_tower(config, image_size, weights)
        if _made_of(tower) != made_of:
            raise InputError(
                f"image_tower {config.image_tower}: expected the tower that the cache remembers, found another of that "
                "name; run `ptmst cache --clear facts`"
            )
        return Forms(tower, folded(tower, image_size))

    def found() -> tuple[int, str, str]:
        tower, width = image_tower(config, image_size, weights)
        at_once.append(FrozenTower.of(tower, folded(tower, image_size)))
        return width, at_once[0].identity(image_size), _made_of(tower)

    key = {
        "what": "frozen tower",
        "version": _VERSION,
        "tower": [config.image_tower, config.image_width, image_size],
        "weights": None if file is None else files.known_hash(file) or "unreadable",
        "warmed up": None if weights is None else weights_hash(weights),
        **surroundings("timm", "open_clip_torch"),
    }
    width, identity, made_of = remembered(key, found)
    return at_once[0] if at_once else FrozenTower(build, identity), width


def _made_of(tower: nn.Module) -> str:
    return files.sha256(f"{tower}\n{weights_hash(tower.state_dict())}".encode())


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
