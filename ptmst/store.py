"""The trajectory store: a folder of safetensors and one JSON file (format: docs/formats.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst import files
from ptmst.errors import InputError
from ptmst.flat import LayerTable
from ptmst.shortcut import Displacement, Expert

VERSION = 1
KIND = "trajectory store"
INDEX = "store.json"


@dataclass
class TrajectoryStore:
    """Experts on disk. Parameters at epoch 0 are stored once per content, one file a group.

    `settings` holds the teaching configuration and the fingerprints of data and encoder, as JSON.
    """

    path: Path
    layers: LayerTable
    epochs: int
    endpoints: tuple[int, ...]
    settings: dict[str, Any]
    experts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By number: the expert's file, its base files by group, and the training losses of its epochs."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file."""
    _loaded: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> TrajectoryStore:
        """Open a store by its index; the tensors are read, and their hashes compared, when an expert is asked for."""
        path = Path(path)
        if not (path / INDEX).exists():
            raise InputError(f"{path}: expected a trajectory store, found no {INDEX}; make one with `ptmst teach`")
        index = files.read_json(path / INDEX, KIND, VERSION)
        try:
            return cls(
                path=path,
                layers=LayerTable.from_json(index["layers"]),
                epochs=index["epochs"],
                endpoints=tuple(index["endpoints"]),
                settings=index["settings"],
                experts={int(number): entry for number, entry in index["experts"].items()},
                hashes=index["hashes"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{path / INDEX}: expected a whole index, found a damaged one ({error}); teach anew"
            ) from error

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all files: names the store's content."""
        return files.sha256("".join(f"{name}:{self.hashes[name]}\n" for name in sorted(self.hashes)).encode())

    @property
    def bytes(self) -> int:
        """Size of all files on disk."""
        return sum((self.path / name).stat().st_size for name in [*self.hashes, INDEX])

    def expert(self, number: int) -> Expert:
        """Read one expert; it stays in memory. Raises InputError for a damaged or missing file."""
        if number not in self.experts:
            raise InputError(f"{self.path}: expected experts {sorted(self.experts)}, found none numbered {number}")
        entry = self.experts[number]
        try:
            base = self._base(tuple(entry["bases"][group] for group in self.layers.group_names))
            tensors = self._read(entry["file"])
            norms = tensors["step_norms"]
            displacements = {
                k: Displacement(tensors[f"values.{k}"], tensors[f"scale.{k}"], tensors[f"norms.{k}"])
                for k in self.endpoints
            }
        except KeyError as error:
            raise InputError(
                f"{self.path / INDEX}: expected a whole index, found a damaged one ({error}); teach anew"
            ) from error
        if base.shape != (self.layers.num_params,) or norms.shape != (self.epochs, self.layers.num_layers):
            raise InputError(f"{self.path / entry['file']}: expected the layers of {INDEX}, found others; teach anew")
        return Expert(self.layers, base, displacements, norms)

    def add(self, number: int, expert: Expert, record: Mapping[str, Any]) -> None:
        """Write one expert, then the index that names it: a store is whole at every moment."""
        bases = {}
        for group, part in zip(self.layers.group_names, expert.base.split(self.layers.group_sizes), strict=True):
            name = f"base-{group}-{files.sha256(part.cpu().numpy().tobytes())[:12]}.safetensors"
            if name not in self.hashes:
                self.hashes[name] = files.write_tensors(self.path / name, {"base": part})
            bases[group] = name
        tensors = {"step_norms": expert.step_norms}
        for k, d in expert.displacements.items():
            tensors |= {f"values.{k}": d.values, f"scale.{k}": d.scale, f"norms.{k}": d.norms}
        name = f"expert-{number:03d}.safetensors"
        self.hashes[name] = files.write_tensors(self.path / name, tensors)
        self.experts[number] = {"file": name, "bases": bases, **record}
        self.save_index()

    def add_file(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors that belong to the experts, such as the warmed-up tower they share."""
        self.hashes[name] = files.write_tensors(self.path / name, tensors)

    def read_file(self, name: str) -> dict[str, Tensor]:
        return self._read(name)

    def save_index(self) -> None:
        files.write_json(
            self.path / INDEX,
            {
                "format": "ptmst-trajectory-store",
                "version": VERSION,
                "layers": self.layers.to_json(),
                "epochs": self.epochs,
                "endpoints": list(self.endpoints),
                "settings": self.settings,
                "experts": {str(number): self.experts[number] for number in sorted(self.experts)},
                "hashes": dict(sorted(self.hashes.items())),
            },
        )

    def _base(self, names: tuple[str, ...]) -> Tensor:
        """θ⁰ [P] of its groups' files: one tensor for all experts that start alike."""
        whole = "+".join(names)
        if whole not in self._loaded:
            self._loaded[whole] = {"base": torch.cat([self._read(name)["base"] for name in names])}
        return self._loaded[whole]["base"]

    def _read(self, name: str) -> dict[str, Tensor]:
        if name not in self._loaded:
            if name not in self.hashes:
                raise InputError(f"{self.path / name}: expected a hash in {INDEX}, found none; teach anew")
            self._loaded[name] = files.read_tensors(self.path / name, self.hashes[name])
        return self._loaded[name]
