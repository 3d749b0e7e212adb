"""Decoded pictures in the cache folder: a split that is read more than once is decoded once, for all processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import PIL
import torch
from torch import Tensor

from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.data.pairs import Pairs
from ptmst.support import files, progress
from ptmst.support.kept import Shelf

_VERSION = 1
"""To be raised where the same files give other pixels than before."""
SHELF = Shelf("pixels", most_bytes=50 << 30)


def decoded_once(pairs: Pairs) -> Pairs:
    """The split with all its pixels mapped from a file, which is written where it is not there.

    As it was, where they would take more room than the cache has, or where it cannot be written, which is told. Raises
    InputError naming a file that is not a whole, readable image.
    """
    images, size = len(pairs.image_names), pairs.image_size
    if 3 * images * size * size > SHELF.most_bytes:
        return pairs
    key = {"version": _VERSION, "pillow": PIL.__version__, "images": pairs.content_hash(), "size": size}
    kept = SHELF.get(files.sha256(json.dumps(key).encode()), images, lambda: _decoded(pairs))
    return pairs if kept is None else replace(pairs, decoded=kept)


def _decoded(pairs: Pairs) -> Iterator[Tensor]:
    indices = torch.arange(len(pairs.image_names)).split(IMAGES_AT_ONCE)
    with progress.bar("images", len(pairs.image_names)) as bar:
        for index in indices:
            yield pairs.decode(index)
            bar.advance(steps=len(index))
