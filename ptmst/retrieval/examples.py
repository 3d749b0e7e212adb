"""A few captions and pictures of a split, and what students find for them: recall, to be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmst.data import Pairs
from ptmst.data.sampling import random_subset
from ptmst.evaluation.scorer import RetrievalScorer
from ptmst.retrieval.trained_student import TrainedStudent

COUNT, PICTURES, CAPTIONS = 3, 5, 3
"""Examples, pictures that are found for a caption, and captions that are found for its picture."""


@dataclass(frozen=True)
class Example:
    """A real pair that no student learned from, and what each student finds for its halves, by the student's name."""

    caption: str
    picture: Tensor
    """uint8 [3, H, W]"""
    pictures: dict[str, list[tuple[Tensor, bool]]]
    """For the caption: pictures, the best first, and whether it is the right one."""
    captions: dict[str, list[tuple[str, bool]]]
    """For the picture: captions, the best first, and whether it is one of its own."""


def examples(students: Mapping[str, TrainedStudent], pairs: Pairs, seed: int) -> list[Example]:
    """Of random pairs of a split, the same for all students."""
    chosen = random_subset(pairs, seed, min(COUNT, len(pairs.image_names))).tolist()
    image_of_text = pairs.image_of_text.tolist()
    own = pairs.pixels(torch.tensor([image_of_text[text] for text in chosen]))
    found = [Example(pairs.captions[text], picture, {}, {}) for text, picture in zip(chosen, own, strict=True)]
    for name, student in students.items():
        scorer = RetrievalScorer(pairs, student.texts, student.student.device)
        images, texts = (embedded.cpu() for embedded in scorer.embed(student.student, student.theta))
        for example, text in zip(found, chosen, strict=True):
            image = image_of_text[text]
            best = _best(images @ texts[text], PICTURES)
            pictures = pairs.pixels(torch.tensor(best))
            example.pictures[name] = [(one, number == image) for one, number in zip(pictures, best, strict=True)]
            best = _best(texts @ images[image], CAPTIONS)
            example.captions[name] = [(pairs.captions[number], image_of_text[number] == image) for number in best]
    return found


def _best(cosines: Tensor, count: int) -> list[int]:
    order: list[int] = torch.sort(cosines, descending=True, stable=True).indices[:count].tolist()
    return order
