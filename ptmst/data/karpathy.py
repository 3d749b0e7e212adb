"""Karpathy annotation files: one JSON list per split, its entries naming an image and its caption or captions.

Where a split has no file of its own, the file that Karpathy published, with all splits in it, serves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ptmst.data.annotations import Annotations, Fault, ImageBytes, Item, gather, inside, kind, texts_of
from ptmst.data.contents import head_of, parsed, refuse_other, shown
from ptmst.errors import InputError
from ptmst.support import files

_SPLITS = ("train", "restval", "val", "test")
"""As Karpathy's own files name them."""


@dataclass(frozen=True)
class KarpathyFile:
    """The file of all splits: {"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}."""

    file: str
    folder: str = ""
    """Folder of images that have no filepath."""


@dataclass(frozen=True)
class Karpathy:
    """A data set whose annotations are JSON files in the root folder."""

    file: str
    """File of a split, with {split} in its name."""
    splits: tuple[str, ...]
    advice: str
    """How a user comes by the set; {file} and {root} are filled in."""
    whole: KarpathyFile | None = None
    most: int | None = None
    """Entries of val and of test that count, from the first on; none = all."""
    published: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Images and captions of every split, where the set has been published with so many."""

    def present(self, root: Path) -> tuple[str, ...]:
        if self.whole is not None and (root / self.whole.file).is_file():
            return self.splits
        return tuple(split for split in self.splits if (root / self.file.format(split=split)).is_file())

    def read(self, root: Path, split: str, fault: Fault | None = None) -> Annotations:
        """In any split a caption may be a string or a list."""
        file = self.file.format(split=split)
        path, remedy = root / file, self.advice.format(root=root, file=file)
        if self.whole is not None and not path.is_file() and (root / self.whole.file).is_file():
            return _read_whole(root / self.whole.file, self.whole.folder, root, split, fault, remedy)
        if not path.is_file():
            raise InputError(f"{path}: expected an annotation file, found {_instead(root)}; {remedy}")
        entries = _read_json(path)
        if not isinstance(entries, list):
            raise InputError(f"{path}: expected a list of entries, found {_kind(entries)}; {remedy}")
        if not entries:
            raise InputError(f"{path}: expected at least one entry, found an empty list; {remedy}")
        if split != "train":
            entries = entries[: self.most]

        def item_of(numbered: tuple[int, object]) -> Item:
            where = f"{path}: entry {numbered[0]} of {len(entries)}"
            name, captions = _read_entry(numbered[1], root, where)
            return Item(name, captions, ImageBytes(root / name))

        return gather(enumerate(entries, 1), item_of, fault, origin=str(path), remedy=remedy)


def write_annotations(path: Path, images: Iterable[tuple[str, Sequence[str]]], *, entry_per_caption: bool) -> None:
    """Write (image name, captions) items: an entry per caption, as train splits have it, or one per image."""
    entries: list[dict[str, object]] = []
    for i, (name, captions) in enumerate(images):
        for caption in captions if entry_per_caption else [list(captions)]:
            entries.append({"image": name, "caption": caption, "image_id": i})
    files.write(path, json.dumps(entries, indent=0, ensure_ascii=False).encode())


def _read_whole(path: Path, folder: str, root: Path, split: str, fault: Fault | None, remedy: str) -> Annotations:
    value = _read_json(path)
    images = value.get("images") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(images, list) or "annotations" in value:
        raise InputError(f'{path}: expected {{"images": [entries]}}, found {_kind(value)}; {remedy}')

    def item_of(numbered: tuple[int, object]) -> Item | None:
        where, entry = f"{path}: image {numbered[0]} of {len(images)}", numbered[1]
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected an object, found {kind(entry)}; fix the entry")
        for key in ("filename", "split", "sentences"):
            if key not in entry:
                raise InputError(f'{where}: expected the key "{key}", found {shown(sorted(entry))}; add it')
        if entry["split"] not in _SPLITS:
            raise InputError(
                f"{where}: expected split to be {', '.join(_SPLITS)}, found {shown(repr(entry['split']))}; rename it"
            )
        # COCO's val images that are not in its val and test splits are trained on.
        if ("train" if entry["split"] == "restval" else entry["split"]) != split:
            return None
        sentences, above = entry["sentences"], entry.get("filepath", folder)
        if not isinstance(entry["filename"], str) or not isinstance(above, str):
            raise InputError(f"{where}: expected filename and filepath to be paths, found other values; fix the entry")
        if not isinstance(sentences, list) or not all(isinstance(s, dict) and "raw" in s for s in sentences):
            raise InputError(f'{where}: expected a list of {{"raw": text}} as sentences, found other values; fix them')
        name = f"{above}/{entry['filename']}" if above else entry["filename"]
        name, captions = _read_entry(
            {"image": name, "caption": [sentence["raw"] for sentence in sentences]}, root, where
        )
        return Item(name, captions, ImageBytes(root / name))

    annotations = gather(enumerate(images, 1), item_of, fault, origin=str(path), remedy=remedy)
    if not annotations.image_names:
        raise InputError(f"{path}: expected images of split {split}, found none; {remedy}")
    return annotations


def _kind(value: object) -> str:
    """What a file holds in place of what was expected."""
    if isinstance(value, dict) and isinstance(value.get("images"), list) and "annotations" not in value:
        return "Karpathy's file of all splits"
    if isinstance(value, list) and value and isinstance(value[0], dict) and "caption" in value[0]:
        return "a list, as of one split"
    return kind(value)


def _instead(root: Path) -> str:
    """What there is in place of annotations that are not: often COCO's own."""
    own = [*sorted(root.glob("captions_*.json")), *sorted(root.glob("annotations/captions_*.json"))]
    return f"COCO's own {own[0].name}, which does not have these splits" if own else "none"


def _read_json(path: Path) -> object:
    """Raises InputError for a file that cannot be read, or is of another kind."""
    refuse_other(head_of(path), str(path), "JSON")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights and its disk") from error
    return parsed(content, str(path), "fix the file or fetch it again")


def _read_entry(entry: object, root: Path, where: str) -> tuple[str, list[str]]:
    if not isinstance(entry, dict):
        raise InputError(f'{where}: expected {{"image": …, "caption": …}}, found {kind(entry)}; fix the entry')
    for key in ("image", "caption"):
        if key not in entry:
            raise InputError(f'{where}: expected the key "{key}", found {shown(sorted(entry))}; add it')
    name = entry["image"]
    if not isinstance(name, str):
        raise InputError(f"{where}: expected image to be a path, found {kind(name)}; fix the entry")
    return inside(name, root, where), texts_of(entry["caption"], where)
