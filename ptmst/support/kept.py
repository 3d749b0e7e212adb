"""Large tensors that take long to make, in the cache folder: made once, checked, and mapped by whoever needs them.

The name of a file is a hash of all that decides its content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptmst.support import folders, parts

_LOG = logging.getLogger(__name__)
_HASH = "content_sha256"
_TYPES = {torch.float32: "F32", torch.uint8: "U8"}


@dataclass
class Shelf:
    """A kind of tensors, each a file."""

    name: str
    """The kind, as messages have it, and how its files' names begin."""
    most_bytes: int
    """What is kept; beyond it, what was not used for longest is removed."""

    @property
    def pattern(self) -> str:
        """Of its files, for glob."""
        return f"{self.name}-*.safetensors"

    def get(self, key: str, rows: int, computed: Callable[[], Iterator[Tensor]]) -> Tensor | None:
        """The tensor [rows, …] of a key, mapped from its file; `computed`, which yields it some rows at a time, makes
        it where it is not there or damaged.

        None where it cannot be written, which is told, or where another process made room meanwhile.
        """
        path = folders.cache_folder() / f"{self.name}-{key[:32]}.safetensors"
        found = self._read(path)
        if found is not None:
            return found
        batches = computed()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with parts.file(path) as part:
                _write(part, self.name, rows, batches)
        except OSError as error:
            _LOG.warning(
                "cache of %s: %s cannot be written (%s); going on without it", self.name, path.parent, error.strerror
            )
            return None
        self._remove_oldest(path)
        return self._read(path)

    def _read(self, path: Path) -> Tensor | None:
        """None where it is not there, or damaged, which removes it."""
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(self.name)
                if hashlib.sha256(tensor.numpy().data).hexdigest() == file.metadata()[_HASH]:
                    with suppress(OSError):  # of a cache that is only read
                        os.utime(path)
                    return tensor
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError):
            pass
        with suppress(OSError):
            path.unlink()
        return None

    def _remove_oldest(self, but: Path) -> None:
        """Keep within the bound."""
        with suppress(OSError):
            parts.sweep(but.parent)  # of processes that were killed
            kept = sorted(but.parent.glob(self.pattern), key=lambda path: path.stat().st_mtime, reverse=True)
            room = self.most_bytes
            for path in kept:
                room -= path.stat().st_size
                if room < 0 and path != but:
                    path.unlink()


def _write(part: BinaryIO, name: str, rows: int, batches: Iterator[Tensor]) -> None:
    """One tensor as safetensors, batch by batch; the hash in its head is filled in at the end."""
    first = next(batches)
    shape = [rows, *first.shape[1:]]
    size = first.element_size() * rows * first[0].numel()

    def head(digest: str) -> bytes:
        tensor = {"dtype": _TYPES[first.dtype], "shape": shape, "data_offsets": [0, size]}
        text = json.dumps({"__metadata__": {_HASH: digest}, name: tensor}).encode()
        return len(text + b" " * (-len(text) % 8)).to_bytes(8, "little") + text + b" " * (-len(text) % 8)

    part.write(head("0" * 64))
    digest = hashlib.sha256()
    for batch in chain([first], batches):
        content = batch.contiguous().numpy().tobytes()
        digest.update(content)
        part.write(content)
    part.seek(0)
    part.write(head(digest.hexdigest()))
