"""The leaves of distillation: x, y, S and η of one phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmst.errors import InputError
from ptmst.support.devices import sent
from ptmst.synthetic.soft_labels import Similarity


@dataclass(frozen=True)
class PairBatch:
    """What one step of training takes of a phase (`DistilledSet.batches`)."""

    images: Tensor
    """float32 [B, 3, H, W], normalized; features [B, Z] where the set has no pixels."""
    texts: Tensor
    """float32 [B, D], embeddings of the set's text tower."""
    captions: tuple[str, ...]
    """The real captions nearest to them, for a text tower of one's own."""
    similarity: Tensor
    """Soft labels [B, B]: how well each image fits each text."""
    lr: Tensor
    """Student learning rate η [G] of the phase: of the image side, then of the text side."""
    phase: int
    """From 0."""


@dataclass(frozen=True)
class SyntheticPairs:
    """N synthetic pairs: images [N, 3, H, W], texts [N, D], soft labels over [N, N], student learning rate [G].

    In place of images there may be what a frozen tower sees in them, features [N, Z].

    Raises InputError for leaves of different numbers of pairs.
    """

    images: Tensor
    texts: Tensor
    similarity: Similarity
    lr: Tensor

    def __post_init__(self) -> None:
        n = len(self.images)
        for name, leaf in self.leaves().items():
            if name != "lr" and len(leaf) != n:
                raise InputError(f"{name}: expected {n} pairs, as images has, found {len(leaf)}; cut them alike")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_pixels(self) -> bool:
        """Whether images are images, not the features of a frozen tower."""
        return self.images.ndim == 4

    def leaves(self) -> dict[str, Tensor]:
        """Every optimized tensor by name: images, texts, lr, and similarity, or diag, left and right."""
        return {"images": self.images, "texts": self.texts, "lr": self.lr, **self.similarity.leaves()}

    def replace(self, leaves: Mapping[str, Tensor]) -> SyntheticPairs:
        """The same pairs with other values."""
        return SyntheticPairs(leaves["images"], leaves["texts"], self.similarity.replace(leaves), leaves["lr"])

    def to(self, device: torch.device | str) -> SyntheticPairs:
        """The same pairs with their leaves on a device."""
        return self.replace({name: sent(leaf, device) for name, leaf in self.leaves().items()})

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """One pair for a DataLoader; `index` finds its rows in the soft labels (`similarity.batch`)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {"image": self.images[index], "text": self.texts[index], "index": index}
