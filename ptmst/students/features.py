"""Features of a frozen tower: computed once for all images of a split, and kept in the cache folder.

They are a function of the images' bytes, how they are prepared, the tower with its weights and what it makes of two
images of noise, and the kind of device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import PIL
import torch
from torch import Tensor

from ptmst.data import Pairs, image_batches
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.students.student import Student
from ptmst.support import devices, files, progress
from ptmst.support.kept import Shelf

_VERSION = 2
"""To be raised where the same images and tower give other features than before."""
SHELF = Shelf("features", most_bytes=20 << 30)


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
        for some in images.split(IMAGES_AT_ONCE):
            yield _seen(student, some)

    return _kept(key, len(images), computed)


def feature_batches(features: Tensor, indices: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Rows [B, Z] of features on a device, for each of several image indices int64 [B]."""
    return (devices.sent(features.index_select(0, index), device) for index in indices)


def _kept(key: str, images: int, computed: Callable[[], Iterator[Tensor]]) -> Tensor:
    found = SHELF.get(key, images, computed)
    return torch.cat(list(computed())) if found is None else found


def _key(student: Student, images: list[Any], size: int, device: torch.device) -> str:
    assert student.frozen is not None
    parts_of_it = {
        "version": _VERSION,
        "pillow": PIL.__version__,
        "images": images,
        "tower": student.frozen.identity(size),
        # Results do not depend on what another kind of device left here.
        "arithmetic": ["fp32", *_kind(device)],
    }
    return files.sha256(json.dumps(parts_of_it).encode())


def _kind(device: torch.device) -> list[str]:
    return (
        [device.type] if device.type == "cpu" else [device.type, torch.cuda.get_device_name(device), torch.__version__]
    )


def _computed(student: Student, pairs: Pairs, device: torch.device) -> Iterator[Tensor]:
    indices = torch.arange(len(pairs.image_names)).split(IMAGES_AT_ONCE)
    with progress.bar("features", len(pairs.image_names)) as bar:
        for index, images in zip(indices, image_batches(pairs, indices, device), strict=True):
            yield _seen(student, images)
            bar.advance(steps=len(index))


@torch.no_grad()
def _seen(student: Student, images: Tensor) -> Tensor:
    with devices.arithmetic("fp32"):
        return student.features(images).float().cpu()
