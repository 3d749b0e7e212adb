"""WebDataset shards, as open_clip reads them: tar files whose members of one key, image and caption, are a pair."""

from __future__ import annotations

import glob
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ptmst.data.annotations import SPLITS, Annotations, Fault, ImageBytes, Item, gather, inside, kind, texts_of
from ptmst.errors import InputError

_IMAGES = ("jpg", "png", "jpeg", "webp")
_TAIL_BYTES = 1024**2


@dataclass(frozen=True)
class Shards:
    """Tar files that a pattern names; {split} in it stands for the split's name, and without it all are train."""

    pattern: str
    """Path with * and {0..9}, relative to the root, or absolute but inside it."""
    splits: tuple[str, ...] = SPLITS

    def present(self, root: Path) -> tuple[str, ...]:
        splits = self.splits if "{split}" in self.pattern else ("train",)
        return tuple(split for split in splits if self._files(root, split))

    def read(self, root: Path, split: str, fault: Fault | None = None) -> Annotations:
        """Only headers and captions are read: an image is read where its tar file holds it."""
        origin = str(root / self.pattern.replace("{split}", split))
        if split != "train" and "{split}" not in self.pattern:
            raise InputError(f"{origin}: expected {{split}} in the pattern, for split {split}, found none; write it in")
        shards = self._files(root, split)
        if not shards:
            raise InputError(f"{origin}: expected tar files of that name, found none; check the pattern and the root")

        def item_of(shard_and_sample: tuple[Path, dict[str, Any]]) -> Item:
            shard, sample = shard_and_sample
            where = f"{shard}: sample {sample['__key__']}"
            image = next((sample[suffix] for suffix in _IMAGES if suffix in sample), None)
            if image is None:
                raise InputError(f"{where}: expected one of {', '.join(_IMAGES)}, found {_suffixes(sample)}; add it")
            name = inside(os.path.abspath(shard), root, where)
            return Item(f"{name}/{image.name}", _captions(shard, sample, where), _place(shard, image))

        samples = ((shard, sample) for shard in shards for sample in _samples(shard))
        annotations = gather(samples, item_of, fault, origin=origin, remedy="fetch the tar files again")
        if not annotations.image_names and fault is None:
            raise InputError(f"{origin}: expected at least one pair, found empty tar files; check the pattern")
        return annotations

    def _files(self, root: Path, split: str) -> list[Path]:
        braceexpand = _library("braceexpand").braceexpand
        above, pattern = glob.escape(str(root)), self.pattern.replace("{split}", split)
        try:
            patterns = list(braceexpand(pattern))
        except ValueError as error:
            raise InputError(
                f"wds:{self.pattern}: expected balanced braces, found unbalanced ones ({error}); fix it"
            ) from error
        matches = (glob.glob(os.path.join(above, pattern), recursive=True) for pattern in patterns)
        return sorted({Path(file) for files in matches for file in files})


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    """Samples in their order: the tar members of each suffix, and the key as `__key__`."""
    group_by_keys = _library("webdataset.tariterators").group_by_keys
    try:
        with tarfile.open(shard, "r:") as tar:
            members = (
                {"fname": member.name, "data": member, "__url__": str(shard)} for member in tar if member.isreg()
            )
            yield from group_by_keys(members)
            # tarfile takes a broken header for the end; what truly ends a tar file is nothing but zeros.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if any(tar.fileobj.read(_TAIL_BYTES)):
                raise tarfile.ReadError(f"no header at byte {tar.offset}, and more after it")
    except (tarfile.TarError, OSError, ValueError) as error:
        found = error.args[0] if isinstance(error, ValueError) else error  # group_by_keys adds arguments of its own
        raise InputError(
            f"{shard}: expected a whole, uncompressed tar file, found a mistake ({found}); fetch it again"
        ) from error


def _captions(shard: Path, sample: dict[str, Any], where: str) -> list[str]:
    """Of the member txt or, where there is none, the "caption" in json."""
    member = sample.get("txt", sample.get("json"))
    if member is None:
        raise InputError(f"{where}: expected a caption in txt or json, found {_suffixes(sample)}; add it")
    content = _place(shard, member).read()
    try:
        if "txt" in sample:
            return [content.decode()]
        value = json.loads(content)
    except ValueError as error:
        form = "text in UTF-8" if "txt" in sample else "JSON"
        raise InputError(f"{where}: expected {form}, found other bytes ({error}); pack the sample again") from error
    if not isinstance(value, dict) or "caption" not in value:
        raise InputError(f'{where}: expected "caption" in its json, found {kind(value)} without it; add it')
    return texts_of(value["caption"], where)


def _place(shard: Path, member: tarfile.TarInfo) -> ImageBytes:
    return ImageBytes(shard, member.offset_data, member.size)


def _suffixes(sample: dict[str, Any]) -> str:
    return " and ".join(sorted(key for key in sample if not key.startswith("__")))


def _library(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f'wds: expected the package webdataset, found none ({error}); run pip install "ptmst[wds]"'
        ) from error
