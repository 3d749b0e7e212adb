"""A split that students are scored on: its images and captions, held between students."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmst.data import Pairs, image_batches
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.errors import Diverged, InputError
from ptmst.evaluation.metrics import ZERO_SHOT, retrieval_recall, zero_shot_accuracy
from ptmst.recipe import Recipe
from ptmst.students.features import feature_batches, kept_features
from ptmst.students.student import Student
from ptmst.students.text_towers import TextTower, embed_captions

CHOOSING = "val"
"""The split that everything is chosen on; on test nothing is."""
_HELD_BYTES = 4 << 30
"""Images of a split that may be held on the device."""


def scorer_to_choose_by(recipe: Recipe, device: torch.device, expected: str, advice: str = "") -> RetrievalScorer:
    """On val. Raises InputError for data without that split, which says what it is `expected` for and what to do."""
    try:
        held_out = recipe.pairs(CHOOSING)
    except InputError as error:
        raise InputError(f"{expected.format(CHOOSING)}, found none: {error}{advice}") from error
    return RetrievalScorer(held_out, recipe.text_tower(), device)


class RetrievalScorer:
    """A split with cached images and text embeddings, for students to be scored on.

    `equal_captions` says whether a caption that several images have is right for each of them.
    """

    def __init__(self, pairs: Pairs, tower: TextTower, device: torch.device, *, equal_captions: bool = False) -> None:
        self._pairs, self._device = pairs, device
        numbers: dict[str, int] = {}
        for caption in pairs.captions:
            numbers.setdefault(caption, len(numbers))
        self._which = torch.tensor([numbers[caption] for caption in pairs.captions], device=device)
        self._caption_of_text = self._which.cpu() if equal_captions else None
        # Each caption once: of equal ones students make the same then, to the bit.
        self._texts = embed_captions(tower, tuple(numbers), device).to(device)
        self._held: list[Tensor] | None = None
        classes = pairs.classes()
        if classes is not None:
            prompts = [prompt for one in classes.prompts for prompt in one]
            class_of_prompt = [number for number, one in enumerate(classes.prompts) for _ in one]
            self._prompts = embed_captions(tower, prompts, device).to(device)
            self._class_of_prompt = torch.tensor(class_of_prompt, device=device)
            self._labels = classes.labels.to(device)
        self._classified = classes is not None

    @torch.no_grad()
    def score(self, student: Student, theta: Tensor) -> dict[str, float]:
        """Recalls of a student with parameters θ [P], and its accuracy where images have classes.

        All students that are scored share one frozen tower, or none.
        """
        normal = self.embed(student, theta)
        if not bool(torch.isfinite(torch.cat(normal)).all()):
            raise Diverged("a student: its embeddings are not finite, though its θ is; the set's η is too large")
        recalls = retrieval_recall(*normal, self._pairs.image_of_text, self._caption_of_text)
        if not self._classified:
            return recalls
        prompts = F.normalize(student.embed_texts(theta, self._prompts), dim=-1)
        return recalls | {ZERO_SHOT: zero_shot_accuracy(normal[0], prompts, self._class_of_prompt, self._labels)}

    @torch.no_grad()
    def embed(self, student: Student, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Its images [I, H] and captions [T, H] as a student has them, of unit length."""
        heads = student.heads
        images = torch.cat([heads.embed_images(theta, some) for some in self._inputs(student)])
        texts = student.embed_texts(theta, self._texts)[self._which]
        return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)

    @torch.no_grad()
    def hold(self, student: Student) -> None:
        """Read the images now, if they can be held on the device, where students like this one are to be scored."""
        self._inputs(student)

    def _inputs(self, student: Student) -> Iterable[Tensor]:
        """What the heads see of the images, batch by batch; held on the device where it fits."""
        if self._held is not None:
            return self._held
        count = len(self._pairs.image_paths)
        indices = torch.arange(count).split(IMAGES_AT_ONCE)
        if student.frozen is None:
            inputs, numbers = image_batches(self._pairs, indices, self._device), 3 * count * self._pairs.image_size**2
        else:
            features = kept_features(student, self._pairs, self._device)
            inputs, numbers = feature_batches(features, indices, self._device), features.numel()
        if 4 * numbers > _HELD_BYTES:
            return inputs
        self._held = list(inputs)
        return self._held
