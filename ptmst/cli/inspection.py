"""What a file or folder is: a store, a set, a run, tensors, or something published by others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptmst.data.credits import Credits
from ptmst.distillation.checkpoints import run_record
from ptmst.distillation.choosing import Choice
from ptmst.errors import InputError
from ptmst.schema import from_json, phase_text
from ptmst.students.layers import LayerTable
from ptmst.support import files
from ptmst.support.published import load_published
from ptmst.synthetic import distilled_set
from ptmst.synthetic.distilled_set import RUN, DistilledSet
from ptmst.synthetic.soft_labels import FullSimilarity
from ptmst.trajectories.store import INDEX, TrajectoryStore

Line = tuple[str, str]


def inspect(path: Path, verify: bool = False) -> list[Line]:
    """(what, finding) lines: kind, sizes, layers, end points, norms, hashes, provenance.

    `verify` recomputes every hash in an index. Raises InputError for files that are damaged or of another kind.
    """
    if not path.exists():
        raise InputError(f"{path}: expected a file or folder, found none; check the path")
    if path.is_dir():
        if (path / INDEX).exists():
            return list(_store(TrajectoryStore.open(path), verify))
        if (path / distilled_set.INDEX).exists():
            return list(_set(path, verify))
        if (path / RUN).exists():
            return list(_run(path))
        raise InputError(
            f"{path}: expected a store ({INDEX}), a distilled set ({distilled_set.INDEX}) or a run ({RUN}), found none"
        )
    if path.suffix == ".safetensors":
        return list(_tensors_file(path, verify))
    return list(_published(path))


def _store(store: TrajectoryStore, verify: bool) -> Iterator[Line]:
    yield "kind", f"trajectory store, {store.coding}"
    yield "size", f"{store.bytes / 1e6:,.1f} MB in {len(store.hashes) + 1} files"
    yield "experts", ", ".join(map(str, sorted(store.experts))) or "none"
    yield "epochs", f"{store.epochs}, end points stored: {', '.join(map(str, store.endpoints))}"
    yield from _layers(store.layers)
    yield from _settings(store.settings)
    for number in sorted(store.experts):
        expert = store.expert(number, ())
        walked = store.layers.group_norms(expert.step_norms.sum(0)).tolist()
        yield f"expert {number}", f"sum of step norms by group: {', '.join(f'{v:.3g}' for v in walked)}"
    yield "sha256", store.fingerprint
    if verify:
        yield from _verified(store.path, store.hashes)


def _set(path: Path, verify: bool) -> Iterator[Line]:
    distilled = DistilledSet.load(path)  # compares every hash
    yield "kind", "distilled set"
    yield "size", f"{sum(file.stat().st_size for file in path.iterdir() if file.is_file()) / 1e6:,.1f} MB"
    yield "pairs", f"{distilled.num_pairs} in {len(distilled)} phases"
    for number, phase in enumerate(distilled.phases, start=1):
        pairs = phase.pairs
        form = "full" if isinstance(pairs.similarity, FullSimilarity) else "low-rank"
        images, texts = "×".join(map(str, pairs.images.shape[1:])), pairs.texts.shape[1]
        rates = ", ".join(f"{rate:.4g}" for rate in pairs.lr.tolist())
        what = "images" if pairs.in_pixels else "features"
        yield f"phase {number}", f"{len(pairs)} pairs, {what} {images}, texts {texts}, {form} soft labels, η {rates}"
    yield from _settings(distilled.settings)
    yield "method", str(distilled.provenance.get("method", "unknown"))
    if "choice" in distilled.provenance:
        choice = from_json(Choice, distilled.provenance["choice"])
        tried = f", of {len(choice.trials)} short runs" if choice.trials else ""
        yield "phases", f"{choice.asked} chose {' '.join(map(phase_text, choice.phases))}{tried}"
    for name in ("store_sha256", "versions"):
        if name in distilled.provenance:
            yield name, _short(distilled.provenance[name])
    if verify:
        index = files.read_json(path / distilled_set.INDEX, distilled_set.KIND, distilled_set.VERSIONS)
        yield from _verified(path, index["hashes"])


def _run(path: Path) -> Iterator[Line]:
    record = run_record(path)
    yield "kind", "unfinished distillation"
    yield "store_sha256", str(record["store_sha256"])
    yield "phases", _short(record["config"].get("phases"))
    yield "outer steps", f"{record['config'].get('steps')} a phase"
    for file in sorted(path.glob("checkpoint-*.safetensors")):
        yield "checkpoint", f"{file.name}, {file.stat().st_size / 1e6:,.1f} MB"


def _tensors_file(path: Path, verify: bool) -> Iterator[Line]:
    try:
        with safe_open(path, framework="pt") as file:
            shown = [(name, file.get_slice(name)) for name in sorted(file.keys())]
            lines = [(name, f"{part.get_dtype()} {_shape(part.get_shape())}") for name, part in shown]
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected safetensors, found a damaged file ({error})") from error
    yield "kind", "safetensors"
    yield "size", f"{path.stat().st_size / 1e6:,.1f} MB"
    yield from lines
    if verify:
        files.read_tensors(path)
        yield "verified", "the checksum, if there is one, matches, and all values are finite"


def _published(path: Path) -> Iterator[Line]:
    content = load_published(path)
    size = f"{path.stat().st_size / 1e6:,.1f} MB"
    if isinstance(content, Mapping) and "image" in content and "text" in content:
        yield "kind", "published distilled set"
        yield "size", size
        for key, value in content.items():
            yield str(key), _described(value)
        return
    if isinstance(content, list) and content and all(isinstance(trajectory, list) for trajectory in content):
        stamp = content[0][0] if content[0] else []
        if isinstance(stamp, list | tuple) and stamp and all(isinstance(tensor, Tensor) for tensor in stamp):
            parameters = sum(tensor.numel() for tensor in stamp)
            yield "kind", "published replay buffer"
            yield "size", size
            yield "trajectories", str(len(content))
            yield "timestamps", ", ".join(str(len(trajectory)) for trajectory in content)
            yield "network", f"{len(stamp)} tensors, {parameters:,} parameters"
            yield "first tensors", "; ".join(_shape(tensor.shape) for tensor in stamp[:6])
            return
    raise InputError(f"{path}: expected a replay buffer or a distilled set of torch.save, found {_described(content)}")


def _layers(layers: LayerTable) -> Iterator[Line]:
    yield "parameters", f"{layers.num_params:,} in {layers.num_layers} layers"
    for number, (group, size) in enumerate(zip(layers.group_names, layers.group_sizes, strict=True)):
        count = layers.group_of_layer.count(number)
        yield f"group {group}", f"{size:,} parameters in {count} layers"


def _settings(settings: Mapping[str, Any]) -> Iterator[Line]:
    encoder, data = settings.get("encoder"), settings.get("data")
    if encoder:
        yield "encoder", f"{encoder.get('image_tower')} + {encoder.get('text_tower')}"
    if data:
        yield "data", f"{data.get('name')}, {data.get('image_size')} px"
    if "data_fingerprint" in settings:
        yield "data fingerprint", str(settings["data_fingerprint"])
    if "credits" in settings:
        yield "credits", Credits.from_json(settings["credits"]).line


def _verified(folder: Path, hashes: Mapping[str, str]) -> Iterator[Line]:
    broken = []
    for name, expected in sorted(hashes.items()):
        found = files.hash_of(folder / name) or "no such file"
        if found != expected:
            broken.append(f"{name} ({found[:12]} instead of {expected[:12]})")
    if broken:
        raise InputError(f"{folder}: checksum mismatch: {', '.join(broken)}")
    yield "verified", f"{len(hashes)} files have the hashes of the index"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind} {_shape(value.shape)}" if value.dim() else f"{value.item():.6g}"
    if isinstance(value, list | tuple):
        return "; ".join(_described(item) for item in value[:4])
    return _short(value)


def _shape(shape: torch.Size | list[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:97]}…"
