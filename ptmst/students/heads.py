"""Frozen text towers, the heads on both towers, and the student that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ptmst.config import EncoderConfig
from ptmst.students.frozen import frozen_tower
from ptmst.students.image_towers import image_tower
from ptmst.students.student import Student
from ptmst.support.devices import sent
from ptmst.support.seeds import seeded


class ProjectionHead(nn.Module):
    """projection → GELU → fc → + projection → LayerNorm: [B, D] → [B, H]. Without dropout, but within `dropout`."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, out)
        self.gelu = nn.GELU()
        self.fc = nn.Linear(out, out)
        self.norm = nn.LayerNorm(out)

    def forward(self, embeds: Tensor) -> Tensor:
        projected = self.projection(embeds)
        out: Tensor = self.norm(self.fc(self.gelu(projected)) + projected)
        return out


@contextmanager
def dropout(modules: Iterable[nn.Module], p: float, draws: torch.Generator) -> Iterator[None]:
    """Drop outputs of `fc` in each projection head among the modules with probability `p`, as the published do.

    For training only: every call draws other masks, on the host, so that they are the same on every device.
    """

    def dropped(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        kept = torch.rand(out.shape, generator=draws) >= p
        return out * sent(kept, out.device) / (1 - p)

    heads = [module for module in modules if isinstance(module, ProjectionHead)] if p else []
    hooks = [head.fc.register_forward_hook(dropped) for head in heads]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def make_student(
    config: EncoderConfig,
    image_size: int,
    text_width: int,
    seed_key: tuple[int | str, ...],
    tower_weights: Mapping[str, Tensor] | None = None,
) -> Student:
    """A fresh student: the image tower at the start all students share, and heads drawn by `seed_key` (seeds.py).

    With a trained tower θ is the tower and a text head; with a frozen one it is an image head and a text head
    (docs/method.md §1, a and b).
    """
    if config.freeze_tower:
        frozen, width = frozen_tower(config, image_size, tower_weights)
        with seeded("heads", *seed_key):
            embedding = config.head_width or width
            heads = ProjectionHead(width, embedding), ProjectionHead(text_width, embedding)
        return Student.from_modules(*heads, tower=frozen)
    tower, width = image_tower(config, image_size, tower_weights)
    with seeded("heads", *seed_key):
        return Student.from_modules(tower, ProjectionHead(text_width, width))
