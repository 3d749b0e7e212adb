"""Contrastive losses between a batch of images and texts with soft labels (docs/method.md §1, paper §2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmst import kernels
from ptmst.config import LossKind
from ptmst.errors import InputError
from ptmst.kernels.reference import LOSSES, LowRank
from ptmst.students.student import Student


@runtime_checkable
class Dense(Protocol):
    """Soft labels as one matrix, such as a `FullSimilarity`."""

    @property
    def matrix(self) -> Tensor:
        """[N, N]."""


StudentLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def contrastive_logits(image_embeds: Tensor, text_embeds: Tensor, temperature: float) -> Tensor:
    """Cosine similarities over the temperature: [N, H], [N, H] → [N, N], image i against text j."""
    return F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T / temperature


def contrastive_loss(kind: LossKind, logits: Tensor, similarity: Tensor) -> Tensor:
    """The loss of `kind` on logits [N, N] and soft labels [N, N] → scalar. Plain ATen: any transform goes through."""
    return LOSSES[kind](logits, similarity)


def student_loss(student: Student, kind: LossKind, temperature: float) -> StudentLoss:
    """ℓ(θ, x, y, S): the loss of a student on one batch, as a pure function of θ [P] and the batch.

    Raises InputError for a loss that there is not.
    """
    _refuse_unknown(kind)

    def loss(theta: Tensor, images: Tensor, texts: Tensor, similarity: Tensor) -> Tensor:
        embeds = student.embed(theta, images, texts)
        return contrastive_loss(kind, contrastive_logits(*embeds, temperature), similarity)

    return loss


def _refuse_unknown(kind: LossKind) -> None:
    if kind not in LOSSES:
        raise InputError(f"loss: expected {', '.join(LOSSES)}, found {kind!r}; check the name")


def hard_label_loss(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of real pairs: logits [N, N] → scalar."""
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class SoftContrastiveLoss(nn.Module):
    """Drop-in soft-label contrastive loss, in tiles: no matrix of all pairs is held but the labels' own.

    `forward(image_embeds [N, H], text_embeds [N, H], similarity=None) -> scalar`, similarity dense [N, N], a
    `LowRankSimilarity` that is never formed, or none: then the pairs are matched one to one (S = identity).
    Embeddings are float32 or bfloat16 and need not be normalized. `temperature` and `bias` may be set at each
    call (`forward(…, temperature=…, bias=…)`), as parameters that are learned are. Differentiable once; inside a
    torch.func transform use `ptmst.kernels.reference.soft_contrastive`, which is plain torch.

    Raises InputError for an unknown kind.
    """

    def __init__(self, kind: LossKind = "wbce", temperature: float = 0.07, bias: float = 0.0) -> None:
        super().__init__()
        _refuse_unknown(kind)
        self.kind: LossKind = kind
        self.temperature = temperature
        self.bias = bias

    def forward(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        similarity: Tensor | LowRank | Dense | None = None,
        *,
        temperature: float | Tensor | None = None,
        bias: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of N image and N text embeddings [N, H] under soft labels [N, N], a scalar.

        Raises ValueError for shapes that do not match.
        """
        return kernels.soft_contrastive(
            image_embeds,
            text_embeds,
            similarity.matrix if isinstance(similarity, Dense) else similarity,
            kind=self.kind,
            temperature=self.temperature if temperature is None else temperature,
            bias=self.bias if bias is None else bias,
        )
