"""Files that are whole or absent: atomic writes, hashes, and tensors that are checked when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as st
from torch import Tensor

from ptmst.errors import InputError
from ptmst.support import parts

_CONTENT = "content_sha256"
_JSON_CONTENT = "sha256"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def hash_of(path: Path) -> str | None:
    """SHA-256 of a file, read piece by piece; None for one that cannot be read."""
    try:
        return _sha256_of(path)
    except OSError:
        return None


def known_hash(path: Path) -> str | None:
    """`hash_of`, read once in a process as long as size and time of change stay."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _known_hash(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@cache
def _known_hash(path: Path, *_: int) -> str | None:
    return hash_of(path)


def write(path: Path, content: bytes) -> str:
    """Write a file through a sibling temporary one, flushed and renamed; returns its SHA-256.

    Raises InputError where the folder cannot be written or the disk is full; a file that was at `path` is unharmed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with parts.file(path) as part:
            part.write(content)
    except OSError as error:
        raise cannot_write(path, error) from error
    return sha256(content)


def try_writing(path: Path) -> None:
    """Find out before the work whether a file can be written there; nothing is left of it.

    Raises InputError as `write` would, but for a disk that will be full only then.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> InputError:
    """What to tell where a file or folder cannot be written."""
    reason = error.strerror or str(error)
    return InputError(f"{path}: cannot be written ({reason}); free space or choose another output folder")


def write_json(path: Path, value: Mapping[str, Any]) -> str:
    """Write JSON of ours, with the SHA-256 of its content as the last key; returns the SHA-256 of the file."""
    checked = {**value, _JSON_CONTENT: _json_hash(value)}
    # What is no Unicode, as in the name of a folder in another encoding, becomes an escape of JSON.
    return write(path, (json.dumps(checked, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def read_json(path: Path, kind: str, versions: int | tuple[int, ...]) -> dict[str, Any]:
    """Read a JSON file of ours, whose keys `format` and `version` must be of `kind` and one of `versions`.

    Its checksum is verified; files of early releases have none.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a {kind}, found no such file; check the path") from error
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: expected a {kind} in JSON, found a damaged file ({error}); make it again") from error
    if not isinstance(value, dict) or value.get("format") != f"ptmst-{kind.replace(' ', '-')}":
        raise InputError(f"{path}: expected a {kind}, found something else; check the path")
    known = (versions,) if isinstance(versions, int) else versions
    if value.get("version") not in known:
        raise InputError(
            f"{path}: expected version {_either(known)} of the {kind} format, found "
            f"{value.get('version')}; use the ptmst release that wrote it"
        )
    inside = value.pop(_JSON_CONTENT, None)
    if inside is not None and inside != _json_hash(value):
        raise InputError(f"{path}: checksum mismatch: the file is damaged; restore it or make it again")
    return value


def _either(versions: tuple[int, ...]) -> str:
    *others, last = map(str, versions)
    return f"{', '.join(others)} or {last}" if others else last


def _json_hash(value: Mapping[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors, atomically; returns the file's SHA-256. Refuses non-finite values."""
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise InputError(f"{path}: tensor {name} holds NaN or infinity; nothing was written")
    # Copies, since safetensors refuses tensors that share memory, such as η and its average at step 0.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    # A single entry: safetensors writes several in any order, and the same tensors must give the same bytes.
    return write(path, st.save(copies, {_CONTENT: _content_hash(copies)}))


def read_tensors(
    path: Path, expected_sha256: str | None = None, into: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Read a safetensors file whole; refuses non-finite values.

    The file's hash is compared with the expected one. Without it, as for checkpoints and the cache, the hash of the
    tensors is compared with the one that a file of ours has inside. Tensors that have the dtype and shape of those in
    `into` are read into these.
    """
    # Its hash first, and piece by piece: a damaged file is not taken apart, and memory holds the tensors alone.
    try:
        if expected_sha256 is not None and (found := _sha256_of(path)) != expected_sha256:
            size = path.stat().st_size
            raise InputError(
                f"{path}: expected SHA-256 {expected_sha256[:12]}…, found {found[:12]}… ({size:,} bytes); "
                "the file is damaged: restore it or make it again"
            )
        tensors, metadata = _loaded(path, into or {})
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); restore the file or make it again") from error
    except InputError:
        raise
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path}: expected safetensors, found a damaged file ({error}); make it again") from error
    inside = metadata.get(_CONTENT)
    if expected_sha256 is None and inside is not None and _content_hash(tensors) != inside:
        raise InputError(f"{path}: checksum mismatch: the file is damaged; restore it or make it again")
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise InputError(f"{path}: tensor {name} holds NaN or infinity; make the file again")
    return tensors


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _loaded(path: Path, into: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, each tensor read into memory of its own, or of `into`."""
    tensors: dict[str, Tensor] = {}
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ValueError("it is empty")
        # The library maps the file and checks its header; what is mapped is not touched.
        with safe_open(path, framework="pt") as mapped:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
            for name in mapped.keys():  # noqa: SIM118 (it is no dictionary)
                first, _ = header[name]["data_offsets"]
                like, place = mapped.get_tensor(name), into.get(name)
                fits = place is not None and (place.dtype, place.shape) == (like.dtype, like.shape)
                tensors[name] = place if place is not None and fits else torch.empty_like(like)
                file.seek(8 + header_bytes + first)
                content = memoryview(_bytes(tensors[name]))
                if file.readinto(content) != len(content):
                    raise ValueError("it was cut while it was read")
    return tensors, header.get("__metadata__", {})


def _bytes(tensor: Tensor) -> Any:
    """The memory of a contiguous tensor, uint8."""
    return tensor.view(-1).view(torch.uint8).numpy()


def _finite(tensor: Tensor) -> bool:
    """Whether all values are: not a number is least and largest alike. Takes no memory, as `isfinite` would."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))


def read_some(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name, without the checks of `read_tensors`: it has been read before."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore the file or make it again") from error


def _content_hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor.contiguous()).data)
    return digest.hexdigest()
