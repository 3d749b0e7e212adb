"""Frozen text towers, the heads on both towers, and the student that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ptmst.config import EncoderConfig
from ptmst.students.frozen import frozen_tower
from ptmst.students.image_towers import image_tower
from ptmst.students.student import Student
from ptmst.support.devices import sent
from ptmst.support.seeds import uniform


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
        embedding = config.head_width or width
        heads = _drawn(width, embedding, (*seed_key, "image")), _drawn(text_width, embedding, (*seed_key, "text"))
        return Student.from_modules(*heads, tower=frozen)
    tower, width = image_tower(config, image_size, tower_weights)
    return Student.from_modules(tower, _drawn(text_width, width, (*seed_key, "text")))


def _drawn(width: int, out: int, key: tuple[int | str, ...]) -> ProjectionHead:
    with torch.random.fork_rng(devices=[]):  # of which torch's own draw takes
        head = ProjectionHead(width, out)
    named = dict(head.named_parameters())
    start = drawn_head([tuple(parameter.shape) for parameter in named.values()], key)
    assert start is not None
    with torch.no_grad():
        for parameter, part in zip(named.values(), start.split([p.numel() for p in named.values()]), strict=True):
            parameter.copy_(part.view_as(parameter))
    return head


def drawn_head(shapes: Sequence[tuple[int, ...]], key: tuple[int | str, ...]) -> Tensor | None:
    """The parameters [P] of a fresh projection head of these shapes, by their seed key: exact (`uniform` of seeds.py).

    Linear layers of D inputs are uniform in ±1/√D, weights and biases, as torch draws them; the norm is 1 and 0. None
    for shapes that are not those of a projection head.
    """
    if [len(shape) for shape in shapes] != [2, 1, 2, 1, 1, 1]:
        return None
    (out, width), square = shapes[0], shapes[2]
    if square != (out, out) or any(shape != (out,) for shape in (shapes[1], *shapes[3:])):
        return None
    numbers = uniform(out * width + out + out * out + out, "heads", *key)
    projection, fc = numbers.split([out * width + out, out * out + out])
    ones, zeros = torch.ones(out), torch.zeros(out)
    return torch.cat([(projection / sqrt(width)).float(), (fc / sqrt(out)).float(), ones, zeros])
