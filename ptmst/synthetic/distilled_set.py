"""The distilled set: one SyntheticPairs per phase, with provenance; a folder on disk (format: docs/formats.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst.config import Channels, Places
from ptmst.data import MEAN, STD, denormalize, renormalize
from ptmst.errors import InputError, said_of
from ptmst.recipe import TOWER, Recipe
from ptmst.students.student import Student
from ptmst.support import files, folders
from ptmst.synthetic.pairs import PairBatch, SyntheticPairs
from ptmst.synthetic.soft_labels import LowRankSimilarity, similarity_from_leaves
from ptmst.synthetic.union import union

VERSIONS = 1, 2
"""What is read; sets of pictures are written as the first, which earlier releases read too."""
KIND = "distilled set"
INDEX, RUN = "distilled.json", "run.json"
_AT_END = "end."
FOLDER = folders.Kind("a distilled set", (INDEX, RUN), beside=("score file", "course"))


@dataclass(frozen=True)
class DistilledPhase:
    """What distillation leaves of one phase."""

    pairs: SyntheticPairs
    """The averaged leaves (docs/method.md §5)."""
    last_lr: Tensor
    """[G], η without averaging, of the same step, which the published evaluation uses."""
    captions: tuple[str, ...]
    """The real training caption nearest to each synthetic text."""
    history: Mapping[str, Tensor] = field(default_factory=dict)
    """By outer step: `loss` and `lr`, each [steps, G]; and `recall` on val by look, percent, where that was tracked."""
    at_end: SyntheticPairs | None = None
    """The averaged leaves after the last outer step, where those of the best look are kept."""


@dataclass(frozen=True)
class DistilledSet(Sequence[SyntheticPairs]):
    """A sequence of phases; each is a map-style dataset for `torch.utils.data.DataLoader`."""

    phases: tuple[DistilledPhase, ...]
    provenance: Mapping[str, Any]
    """How the set was made: method, configuration, seed, hash of the store, versions; JSON values."""
    settings: Mapping[str, Any]
    """The record of its `recipe`; JSON values."""
    tower: Mapping[str, Tensor] | None = None
    """The image tower's start where it was warmed up; none where it comes from a file or a seed."""

    def __len__(self) -> int:
        return len(self.phases)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [phase.pairs for phase in self.phases[index]]
        return self.phases[index].pairs

    def __iter__(self) -> Iterator[SyntheticPairs]:
        return (phase.pairs for phase in self.phases)

    @property
    def in_pixels(self) -> bool:
        """Whether its images are pictures, not the features of a frozen tower."""
        return all(pairs.in_pixels for pairs in self)

    def pixels(self, phase: int) -> Tensor:
        """The images of a phase as uint8 [N, 3, H, W]. Raises InputError where they are features of a tower."""
        self.refuse_features("pictures")
        return denormalize(self.phases[phase].pairs.images, *self.normalization)

    @property
    def normalization(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of red, green and blue that its images are normalized with."""
        data = self.recipe.data if self.settings else None
        return (MEAN, STD) if data is None else (data.mean or MEAN, data.std or STD)

    def refuse_features(self, expected: str) -> None:
        """Raises InputError, which names what is `expected`, where images are features of a frozen tower."""
        if not self.in_pixels:
            tower = f"of {self.recipe.encoder.image_tower} " if self.settings else ""
            raise InputError(
                f"images of the set: expected {expected}, found features {tower}in their place, which only heads on "
                "that tower learn from; distill with --image-leaves pixels"
            )

    @cached_property
    def recipe(self) -> Recipe:
        """How its students are made. Raises InputError where the set records no data and encoder."""
        return Recipe.from_json(self.settings)

    @property
    def is_progressive(self) -> bool:
        """Whether each phase builds on those before it: students learn from their union."""
        return bool(self.provenance.get("config", {}).get("progressive", False))

    @property
    def inner_batch(self) -> int | None:
        """Pairs of the inner steps that the set was matched in; None where it does not record them."""
        size: int | None = self.provenance.get("config", {}).get("batch_size")
        return size

    def at(self, places: Places) -> DistilledSet:
        """The set with data and towers at other places, in memory. Raises InputError as `Recipe.at` does."""
        there = self.recipe.at(places)
        return self if there == self.recipe else replace(self, settings=there.to_json())

    def student(self, draw: tuple[int | str, ...]) -> Student:
        """A fresh student for the set, with random parts drawn by the seed key `draw`.

        Raises InputError where the file of the image tower's weights has changed.
        """
        return self.recipe.student(draw, self.tower)

    def batches(
        self,
        batch_size: int | None,
        generator: torch.Generator,
        *,
        mean: Channels | None = None,
        std: Channels | None = None,
    ) -> Iterator[PairBatch]:
        """One epoch of each phase in their order: its pairs in a random order, in batches that hold `batch_size` of
        them at most; none = as many as the set was matched in.

        Images are normalized with the set's own mean and standard deviation, or for another model with those that are
        given. Of a progressive set a phase has the pairs of those before it, too.
        """
        own, phases = self.normalization, list(self)
        other = (mean or own[0], std or own[1])
        captions = [phase.captions or ("",) * len(phase.pairs) for phase in self.phases]
        for number, phase in enumerate(phases):
            pairs, words = phase, captions[number]
            if self.is_progressive:
                pairs, words = union(phases[: number + 1]), tuple(chain(*captions[: number + 1]))
            size = batch_size or self.inner_batch or len(pairs)
            for index in torch.randperm(len(pairs), generator=generator).split(size):
                images = pairs.images[index]
                yield PairBatch(
                    images=renormalize(images, own, other) if pairs.in_pixels else images,
                    texts=pairs.texts[index],
                    captions=tuple(words[i] for i in index.tolist()),
                    similarity=pairs.similarity.batch(index),
                    lr=pairs.lr,
                    phase=number,
                )

    @property
    def num_pairs(self) -> int:
        """Synthetic pairs of all phases together."""
        return sum(len(phase.pairs) for phase in self.phases)

    def save(self, path: str | Path) -> None:
        """Write the set as a folder; the index comes last, so a half-written folder is never taken for a set."""
        path = Path(path)
        hashes, entries = {}, []
        for number, phase in enumerate(self.phases, start=1):
            similarity = phase.pairs.similarity
            name = f"phase-{number}.safetensors"
            hashes[name] = save_phase(path / name, phase)
            entries.append(
                {
                    "file": name,
                    "pairs": len(phase.pairs),
                    "alpha": similarity.alpha if isinstance(similarity, LowRankSimilarity) else None,
                    "captions": list(phase.captions),
                }
            )
        if self.tower is not None:
            hashes[TOWER] = files.write_tensors(path / TOWER, self.tower)
        files.write_json(
            path / INDEX,
            {
                "format": "ptmst-distilled-set",
                "version": VERSIONS[0] if self.in_pixels else VERSIONS[1],
                "phases": entries,
                "provenance": dict(self.provenance),
                "settings": dict(self.settings),
                "hashes": hashes,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> DistilledSet:
        """Read a set and compare every hash. Raises InputError for a folder that is no set, or a damaged one."""
        path = Path(path)
        if not (path / INDEX).exists():
            raise InputError(f"{path}: expected a distilled set, found no {INDEX}; make one with `ptmst distill`")
        index = files.read_json(path / INDEX, KIND, VERSIONS)
        try:
            hashes = index["hashes"]
            phases = []
            for entry in index["phases"]:
                tensors = files.read_tensors(path / entry["file"], hashes[entry["file"]])
                alpha = 1.0 if entry["alpha"] is None else entry["alpha"]
                phases.append(load_phase(tensors, alpha, tuple(entry["captions"])))
            tower = files.read_tensors(path / TOWER, hashes[TOWER]) if TOWER in hashes else None
            distilled = cls(tuple(phases), index["provenance"], index["settings"], tower)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path / INDEX}: expected a whole index, found a damaged one ({error}); run `ptmst distill` again"
            ) from error
        if distilled.settings:
            with said_of(path / INDEX):
                distilled.recipe  # noqa: B018
        return distilled


def save_phase(path: Path, phase: DistilledPhase) -> str:
    """Write one phase's tensors; returns the file's SHA-256."""
    more = {f"history.{name}": value for name, value in phase.history.items()}
    if phase.at_end is not None:
        more |= {f"{_AT_END}{name}": leaf for name, leaf in phase.at_end.leaves().items()}
    return files.write_tensors(path, {**phase.pairs.leaves(), "last_lr": phase.last_lr, **more})


def load_phase(tensors: Mapping[str, Tensor], alpha: float, captions: tuple[str, ...]) -> DistilledPhase:
    history, end = (
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        for prefix in ("history.", _AT_END)
    )
    at_end = _pairs(end, alpha) if end else None
    return DistilledPhase(_pairs(tensors, alpha), tensors["last_lr"], captions, history, at_end)


def _pairs(leaves: Mapping[str, Tensor], alpha: float) -> SyntheticPairs:
    return SyntheticPairs(leaves["images"], leaves["texts"], similarity_from_leaves(leaves, alpha), leaves["lr"])
