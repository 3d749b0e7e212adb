"""Features of a frozen tower: computed once for all images of a split, and kept in the cache folder.

A file of the cache is a function of all that decides it, which its name is a hash of: the images' bytes, how they are
prepared, the tower with its weights and what it makes of two images of noise, the kind of device. It is memory-mapped,
so that processes share it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import PIL
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptmst.data import Pairs, image_batches
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.students.student import Student
from ptmst.support import devices, files, folders, parts, progress

_LOG = logging.getLogger(__name__)
_VERSION = 2
"""To be raised where the same images and tower give other features than before."""
_NAME, _HASH = "features", "content_sha256"
PATTERN = "features-*.safetensors"
"""Files of the cache."""
MOST_BYTES = 20 << 30
"""What the cache keeps; beyond it, what was not used for longest is removed."""


def kept_features(student: Student, pairs: Pairs, device: torch.device) -> Tensor:
    """What the frozen tower sees in each image of a split: float32 [I, Z] on the CPU, in float32 arithmetic.

    Computed on `device` where the cache lacks them; where the cache cannot be written, which is told, they are held in
    memory. Raises InputError for an image that cannot be read.
    """
    prepared = [pairs.content_hash(), pairs.image_size, pairs.mean, pairs.std]
    key = _key(student, prepared, pairs.image_size, device)
    return _kept(key, len(pairs.image_names), lambda: _computed(student, pairs, device))


def kept_features_of(student: Student, images: Tensor) -> Tensor:
    """`kept_features` of images [N, 3, H, W] that are tensors, such as synthetic ones, on the device of these."""
    prepared = [files.sha256(images.detach().cpu().contiguous().numpy().tobytes()), list(images.shape)]
    key = _key(student, prepared, images.shape[-1], images.device)

    def computed() -> Iterator[Tensor]:
        with torch.no_grad(), devices.arithmetic("fp32"):
            for some in images.split(IMAGES_AT_ONCE):
                yield student.features(some).float().cpu()

    return _kept(key, len(images), computed)


def _kept(key: str, images: int, computed: Callable[[], Iterator[Tensor]]) -> Tensor:
    path = folders.cache_folder() / f"features-{key[:32]}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    batches = computed()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with parts.file(path) as part:
            _write(part, images, batches)
    except OSError as error:
        _LOG.warning("cache of features: %s cannot be written (%s); going on without it", path.parent, error.strerror)
        return torch.cat(list(computed()))
    _remove_oldest(path)
    found = _read(path)
    # Gone where another process made room meanwhile.
    return torch.cat(list(computed())) if found is None else found


def feature_batches(features: Tensor, indices: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Rows [B, Z] of features on a device, for each of several image indices int64 [B]."""
    return (devices.sent(features.index_select(0, index), device) for index in indices)


def _key(student: Student, images: list[Any], size: int, device: torch.device) -> str:
    assert student.frozen is not None
    parts_of_it = {
        "version": _VERSION,
        "pillow": PIL.__version__,
        "images": images,
        "tower": student.frozen.identity(size),
        # Results do not depend on what another kind of device left here.
        "arithmetic": ["fp32", device.type],
    }
    return files.sha256(json.dumps(parts_of_it).encode())


@torch.no_grad()
def _computed(student: Student, pairs: Pairs, device: torch.device) -> Iterator[Tensor]:
    indices = torch.arange(len(pairs.image_names)).split(IMAGES_AT_ONCE)
    with progress.bar("features", len(pairs.image_names)) as bar:
        for index, images in zip(indices, image_batches(pairs, indices, device), strict=True):
            with devices.arithmetic("fp32"):
                features = student.features(images).float().cpu()
            yield features
            bar.advance(steps=len(index))


def _write(part: BinaryIO, images: int, batches: Iterator[Tensor]) -> None:
    """One tensor as safetensors, batch by batch; the hash in its head is filled in at the end."""
    first = next(batches)
    shape = [images, *first.shape[1:]]
    size = 4 * images * first[0].numel()

    def head(digest: str) -> bytes:
        about = {"__metadata__": {_HASH: digest}, _NAME: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
        text = json.dumps(about).encode()
        return len(text + b" " * (-len(text) % 8)).to_bytes(8, "little") + text + b" " * (-len(text) % 8)

    part.write(head("0" * 64))
    digest = hashlib.sha256()
    for features in chain([first], batches):
        content = features.contiguous().numpy().tobytes()
        digest.update(content)
        part.write(content)
    part.seek(0)
    part.write(head(digest.hexdigest()))


def _read(path: Path) -> Tensor | None:
    """Features of the cache, mapped; None where they are not there, or damaged, which removes them."""
    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor(_NAME)
            if hashlib.sha256(features.numpy().data).hexdigest() == file.metadata()[_HASH]:
                with suppress(OSError):  # of a cache that is only read
                    os.utime(path)
                return features
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, KeyError, TypeError):
        pass
    with suppress(OSError):
        path.unlink()
    return None


def _remove_oldest(but: Path) -> None:
    """Keep the cache within its bound."""
    with suppress(OSError):
        kept = sorted(but.parent.glob(PATTERN), key=lambda path: path.stat().st_mtime, reverse=True)
        room = MOST_BYTES
        for path in kept:
            room -= path.stat().st_size
            if room < 0 and path != but:
                path.unlink()
