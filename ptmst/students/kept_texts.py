"""Embeddings of the captions of a data set that ship with it, so that nobody needs the text tower that made them.

A safetensors file holds `texts` float16 [C, D], `keys` int64 [C], ascending, which tell whose they are, and one entry
of metadata, `about`: JSON that names the tower and has hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as st
from torch import Tensor

from ptmst.data.shipped import shipped
from ptmst.errors import InputError
from ptmst.support import files

SHIPPED = shipped() / "texts.safetensors"
_ABOUT = "about"


@dataclass(frozen=True)
class KeptTexts:
    """Embeddings of a tower."""

    tower: str
    """The tower as a setting names it, `pypi:NAME`."""
    fingerprint: str
    """Of the tower."""
    folder_sha256: str
    """Of the tower's folder in its package, by `folder_hash`."""
    keys: Tensor
    """Of the captions, by `key_of`: int64 [C], ascending."""
    texts: Tensor
    """float16 [C, D]."""

    def of(self, captions: Sequence[str]) -> Tensor | None:
        """T captions → float32 [T, D]; None where one of them is not kept."""
        wanted = torch.tensor([key_of(caption) for caption in captions], dtype=torch.int64)
        found = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return self.texts[found].float() if torch.equal(self.keys[found], wanted) else None


def key_of(caption: str) -> int:
    """The first eight bytes of the SHA-256 of a caption, as a signed integer."""
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big", signed=True)


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of the files of a folder."""
    found = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return files.sha256("\n".join(f"{name}:{files.hash_of(path)}" for name, path in found).encode())


def shipped_texts() -> KeptTexts | None:
    """Those of this installation; None where it has none. Raises InputError for a damaged file."""
    return read_texts(SHIPPED) if SHIPPED.is_file() else None


def write_texts(
    path: Path, tower: str, fingerprint: str, folder_sha256: str, captions: Iterable[str], texts: Tensor
) -> None:
    """Write the embeddings texts [C, D] of C different captions, as they are `embed_captions` gets them.

    The same embeddings give the same bytes. Raises InputError where the file cannot be written.
    """
    keys = torch.tensor([key_of(caption) for caption in captions], dtype=torch.int64)
    keys, order = keys.sort()
    assert len(keys) == len(texts) and bool((keys.diff() > 0).all())
    tensors = {"keys": keys, "texts": texts[order].half()}
    about = {"fingerprint": fingerprint, "folder_sha256": folder_sha256, "sha256": _hash(tensors), "tower": tower}
    # A single entry: safetensors writes several in any order.
    files.write(path, st.save(tensors, {_ABOUT: json.dumps(about)}))


@cache
def read_texts(path: Path) -> KeptTexts:
    """What `write_texts` wrote. Raises InputError for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[_ABOUT])
            tensors = {name: file.get_tensor(name) for name in ("keys", "texts")}
        if about.pop("sha256") != _hash(tensors):
            raise ValueError("checksum mismatch")
        return KeptTexts(**about, **tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected kept embeddings, found a damaged file ({error}); install ptmst again"
        ) from None


def _hash(tensors: dict[str, Tensor]) -> str:
    content = (tensors[name].contiguous().numpy().tobytes() for name in ("keys", "texts"))
    return files.sha256(b"".join(content))
