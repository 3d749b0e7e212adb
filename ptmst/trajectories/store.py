"""The trajectory store: a folder of safetensors and one JSON file (format: docs/formats.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ptmst.config import Coding, Places
from ptmst.errors import InputError, said_of
from ptmst.recipe import TOWER, Recipe
from ptmst.students.heads import drawn_head
from ptmst.students.layers import LayerTable
from ptmst.students.student import Student
from ptmst.support import files, folders
from ptmst.trajectories import coding
from ptmst.trajectories.shortcut import Expert

VERSION = 3
READABLE = (1, 2, 3)
"""Version 1 knew no coding but fp16, version 2 no starts that are drawn again."""
SeedKey = tuple[int | str, ...]
KIND = "trajectory store"
INDEX = "store.json"
FOLDER = folders.Kind("a trajectory store", (INDEX,), beside=("score file",))


def base_files(bases: Mapping[str, Any]) -> set[str]:
    """The files among the starts of an expert's groups; the others are drawn."""
    return {start for start in bases.values() if isinstance(start, str)}


@dataclass(frozen=True)
class Written:
    """The files of an expert that a process wrote, for whoever keeps the index."""

    entry: dict[str, Any]
    """The expert's in the index."""
    hashes: dict[str, str]
    """SHA-256 of its files."""


@dataclass
class TrajectoryStore:
    """Experts on disk. Parameters at epoch 0 are stored once per content, one file a group.

    `settings` is the record of its `recipe`, as JSON values; it is empty where only the layers' shapes are known.
    """

    path: Path
    layers: LayerTable
    epochs: int
    endpoints: tuple[int, ...]
    settings: dict[str, Any]
    coding: Coding = "fp16"
    """Storage type of displacements."""
    experts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By number: the expert's file, where its groups start, and the training losses of its epochs."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file."""
    _bases: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False)
    """θ⁰ by the files, or hashes, of its groups: one tensor for all experts that start alike."""
    _checked: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Files whose hash was compared, with their size and time of change then."""

    @classmethod
    def open(cls, path: str | Path) -> TrajectoryStore:
        """Open a store by its index; the tensors are read, and their hashes compared, when an expert is asked for.

        Raises InputError for a folder that is not a store, a damaged index, and a format of a later release.
        """
        path = Path(path)
        if not (path / INDEX).exists():
            raise InputError(f"{path}: expected a trajectory store, found no {INDEX}; make one with `ptmst teach`")
        index = files.read_json(path / INDEX, KIND, READABLE)
        coding = index.get("coding", "fp16")
        if coding not in get_args(Coding):
            raise InputError(
                f"{path / INDEX}: expected coding {', '.join(get_args(Coding))}, found {coding}; use the ptmst "
                "release that wrote it"
            )
        try:
            store = cls(
                path=path,
                layers=LayerTable.from_json(index["layers"]),
                epochs=index["epochs"],
                endpoints=tuple(index["endpoints"]),
                settings=index["settings"],
                coding=coding,
                experts={int(number): entry for number, entry in index["experts"].items()},
                hashes=index["hashes"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{path / INDEX}: expected a whole index, found a damaged one ({error}); run `ptmst teach` again"
            ) from error
        if store.settings:
            with said_of(path / INDEX):
                store.recipe  # noqa: B018
        return store

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all files and of all starts that are drawn: names the store's content."""
        lines = [f"{name}:{self.hashes[name]}\n" for name in sorted(self.hashes)]
        for number in sorted(self.experts):
            starts = self.experts[number].get("bases", {})
            drawn = {group: start.get("sha256") for group, start in starts.items() if isinstance(start, dict)}
            lines += [f"{number} {group}:{drawn[group]}\n" for group in sorted(drawn)]
        return files.sha256("".join(lines).encode())

    @property
    def bytes(self) -> int:
        """Size of all files on disk."""
        return sum((self.path / name).stat().st_size for name in [*self.hashes, INDEX])

    @cached_property
    def recipe(self) -> Recipe:
        """How the experts were made. Raises InputError where the store records no data and encoder."""
        return Recipe.from_json(self.settings)

    def at(self, places: Places) -> TrajectoryStore:
        """The store with data and towers at other places, in memory. Raises InputError as `Recipe.at` does."""
        there = self.recipe.at(places)
        return self if there == self.recipe else replace(self, settings=there.to_json())

    @cached_property
    def tower(self) -> dict[str, Tensor] | None:
        """The experts' initial image tower, where it was warmed up; None where it comes from a file or a seed."""
        return self.read_file(TOWER) if TOWER in self.hashes else None

    def student(self, draw: tuple[int | str, ...]) -> Student:
        """A fresh student like the experts, with random parts drawn by the seed key `draw`.

        Raises InputError where the encoder no longer has the layers of the experts.
        """
        student, encoder = self.recipe.student(draw, self.tower), self.recipe.encoder
        if student.layers != self.layers:
            raise InputError(
                f"{self.path}: expected the layers of {encoder.image_tower} + {encoder.text_tower} "
                f"({student.layers.num_params:,} parameters), found {self.layers.num_params:,}; the store was made "
                "with another encoder (or release of it): run `ptmst teach` again"
            )
        return student

    def expert(self, number: int, endpoints: Collection[int] | None = None) -> Expert:
        """Read one expert, with all its end points or those asked for.

        Its files' hashes are compared at the first time; after that only what is asked for is read. Raises InputError
        for a damaged or missing file.
        """
        if number not in self.experts:
            raise InputError(f"{self.path}: expected experts {sorted(self.experts)}, found none numbered {number}")
        stored_epochs = self.endpoints if endpoints is None else tuple(k for k in self.endpoints if k in endpoints)
        try:
            entry = self.experts[number]
            base = self._base([entry["bases"][group] for group in self.layers.group_names])
            needed = coding.needed(self.coding, self.endpoints, stored_epochs)
            wanted = [f"{name}.{k}" for k in needed for name in coding.names(self.coding)]
            tensors = self._read(entry["file"], ["step_norms", *wanted])
            norms = tensors.pop("step_norms")
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{self.path / INDEX}: expected a whole index, found a damaged one ({error}); run `ptmst teach` again"
            ) from error
        try:
            if norms.shape != (self.epochs, self.layers.num_layers):
                raise ValueError("the layers are others")
            displacements = coding.unpacked(tensors, self.layers, self.coding, self.endpoints, stored_epochs)
        except ValueError as error:
            raise InputError(
                f"{self.path / entry['file']}: expected the layers of {INDEX}, found different ones ({error}); "
                "run `ptmst teach` again"
            ) from error
        return Expert(self.layers, base, displacements, norms)

    def add(self, number: int, expert: Expert, record: Mapping[str, Any], drawn: SeedKey | None = None) -> None:
        """Write one expert, then the index that names it: a store is whole at every moment."""
        self.adopt(number, self.write_expert(number, expert, record, drawn))

    def adopt(self, number: int, written: Written) -> None:
        """Name an expert, whose files somebody wrote here, in the index."""
        self.experts[number] = written.entry
        self.hashes |= written.hashes
        self.save_index()

    def write_expert(
        self, number: int, expert: Expert, record: Mapping[str, Any], drawn: SeedKey | None = None
    ) -> Written:
        """The files of one expert; on disk the store is as it was until `save_index` or `adopt` names it.

        Groups that start as the seed key `drawn` draws heads are not written: they are drawn again.
        """
        bases = self.write_base(expert.base, drawn)
        tensors = {"step_norms": expert.step_norms}
        tensors |= coding.packed(expert.displacements, self.layers, self.coding)
        name = f"expert-{number:03d}.safetensors"
        self.hashes[name] = files.write_tensors(self.path / name, tensors)
        self.experts[number] = {"file": name, "bases": bases, **record}
        return Written(self.experts[number], {file: self.hashes[file] for file in (name, *base_files(bases))})

    def write_base(self, base: Tensor, drawn: SeedKey | None = None) -> dict[str, Any]:
        """Where θ⁰ [P] starts, by group: a file, of which those that are there stay, or how it is drawn."""
        bases: dict[str, Any] = {}
        for group, part in zip(self.layers.group_names, base.split(self.layers.group_sizes), strict=True):
            content = files.sha256(part.cpu().numpy().tobytes())
            if drawn is not None and self._drawn(group, key := (*drawn, group))[1] == content:
                bases[group] = {"drawn": list(key), "sha256": content}
                continue
            name = f"base-{group}-{content[:12]}.safetensors"
            if name not in self.hashes:
                self.hashes[name] = files.write_tensors(self.path / name, {"base": part})
            bases[group] = name
        return bases

    def add_file(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors that belong to the experts, such as the warmed-up tower they share."""
        self.hashes[name] = files.write_tensors(self.path / name, tensors)

    def read_file(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file of the store, by name. Raises InputError for a damaged file and one without a hash."""
        return self._read(name)

    def damaged(self) -> set[str]:
        """Names of the files that are missing, or whose content is not what the index says; all are read."""
        return {name for name, expected in self.hashes.items() if files.hash_of(self.path / name) != expected}

    def without(self, names: Collection[str]) -> TrajectoryStore:
        """The store less some of its files, and the experts that these are; on disk nothing changes."""
        return replace(
            self,
            experts={number: entry for number, entry in self.experts.items() if entry["file"] not in names},
            hashes={name: value for name, value in self.hashes.items() if name not in names},
            _bases={},
            _checked={},
        )

    def discard(self) -> None:
        """Remove all files of the store."""
        for name in (INDEX, *self.hashes):
            (self.path / name).unlink(missing_ok=True)

    def save_index(self) -> None:
        """Write the index, which names every file of the store and its hash."""
        files.write_json(
            self.path / INDEX,
            {
                "format": "ptmst-trajectory-store",
                "version": VERSION,
                "layers": self.layers.to_json(),
                "epochs": self.epochs,
                "endpoints": list(self.endpoints),
                "coding": self.coding,
                "settings": self.settings,
                "experts": {str(number): self.experts[number] for number in sorted(self.experts)},
                "hashes": dict(sorted(self.hashes.items())),
            },
        )

    def _base(self, starts: list[Any]) -> Tensor:
        names = tuple(start if isinstance(start, str) else start["sha256"] for start in starts)
        if names not in self._bases:
            base = torch.empty(self.layers.num_params)
            parts = zip(starts, self.layers.group_names, base.split(self.layers.group_sizes), strict=True)
            for start, group, part in parts:
                if isinstance(start, str):
                    self._read_base(start, part)
                else:
                    part.copy_(self._drawn_again(group, start))
            self._bases[names] = base
        return self._bases[names]

    def _read_base(self, name: str, part: Tensor) -> None:
        read = self._read(name, ["base"], {"base": part})["base"]
        if read.shape != part.shape:
            raise InputError(
                f"{self.path / name}: expected the layers of {INDEX}, found different ones ({len(read)} "
                f"parameters instead of {len(part)}); run `ptmst teach` again"
            )
        if read is not part:
            part.copy_(read)

    def _drawn_again(self, group: str, start: Mapping[str, Any]) -> Tensor:
        drawn, found = self._drawn(group, tuple(start["drawn"]))
        if drawn is None or found != start["sha256"]:
            raise InputError(
                f"{self.path / INDEX}: expected the {group} group to start with SHA-256 {start['sha256'][:12]}…, drawn "
                f"by {start['drawn']}, found {found[:12] or 'no such head'}…; use the ptmst release that wrote it, or "
                "run `ptmst teach` again"
            )
        return drawn

    def _drawn(self, group: str, key: SeedKey) -> tuple[Tensor | None, str]:
        """A head's parameters as its seed key draws them, with their SHA-256; None where the group is no head."""
        first, end = self.layers.layers_of_group[self.layers.group_names.index(group)]
        drawn = drawn_head(self.layers.shapes[first:end], key)
        return drawn, "" if drawn is None else files.sha256(drawn.numpy().tobytes())

    def _read(
        self, name: str, wanted: Collection[str] | None = None, into: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """A file's tensors by name, read into those that fit. Raises KeyError for one that is not in it."""
        if name not in self.hashes:
            raise InputError(f"{self.path / name}: expected a hash in {INDEX}, found none; run `ptmst teach` again")
        path = self.path / name
        try:
            now = (path.stat().st_size, path.stat().st_mtime_ns)
        except OSError:
            now = (0, 0)  # reading it says what is wrong
        if wanted is not None and self._checked.get(name) == now:
            return files.read_some(path, wanted)
        tensors = files.read_tensors(path, self.hashes[name], into)
        self._checked[name] = now
        return tensors if wanted is None else {name: tensors[name] for name in wanted}
