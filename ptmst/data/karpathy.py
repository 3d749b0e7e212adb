"""Karpathy annotation files: one JSON list per split, its entries naming an image and its caption or captions."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ptmst import files
from ptmst.errors import InputError


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says: I distinct images in order of appearance, T captions in file order."""

    image_names: tuple[str, ...]
    """Image files relative to the root, [I]."""
    captions: tuple[str, ...]
    """Captions as written, [T]."""
    image_of_text: tuple[int, ...]
    """Image of each caption, [T], in 0 … I-1."""


def read_annotations(path: Path, root: Path, remedy: str) -> Annotations:
    """Read an annotation file whose images lie under `root`; in any split a caption may be a string or a list.

    Raises InputError for a file that is missing (ending in `remedy`, what to do about it) or broken, for a broken
    entry, and for images that leave `root` or do not exist.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected an annotation file, found none; {remedy}")
    entries = _read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of entries, found {_kind(entries)}; {remedy}")
    if not entries:
        raise InputError(f"{path}: expected at least one entry, found an empty list; {remedy}")
    index: dict[str, int] = {}
    captions: list[str] = []
    image_of_text: list[int] = []
    for i, entry in enumerate(entries, 1):
        where = f"{path}: entry {i} of {len(entries)}"
        name, texts = _read_entry(entry, where)
        if name not in index:
            _refuse_escape(name, where)
        image = index.setdefault(name, len(index))
        captions += texts
        image_of_text += [image] * len(texts)
    _refuse_missing(index, path, root, remedy)
    return Annotations(tuple(index), tuple(captions), tuple(image_of_text))


def write_annotations(path: Path, images: Iterable[tuple[str, Sequence[str]]], *, entry_per_caption: bool) -> None:
    """Write (image name, captions) items: an entry per caption, as train splits have it, or one per image."""
    entries: list[dict[str, object]] = []
    for i, (name, captions) in enumerate(images):
        for caption in captions if entry_per_caption else [list(captions)]:
            entries.append({"image": name, "caption": caption, "image_id": i})
    files.write(path, json.dumps(entries, indent=0, ensure_ascii=False).encode())


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        found = f"{error.msg} in line {error.lineno}"
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 at offset {error.start}"
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror})"
    raise InputError(f"{path}: expected JSON, found {found}; mend the file or fetch it again")


def _read_entry(entry: object, where: str) -> tuple[str, list[str]]:
    if not isinstance(entry, dict):
        raise InputError(f'{where}: expected {{"image": …, "caption": …}}, found {_kind(entry)}; mend the entry')
    for key in ("image", "caption"):
        if key not in entry:
            raise InputError(f'{where}: expected the key "{key}", found {sorted(entry)}; add it')
    name, caption = entry["image"], entry["caption"]
    if not isinstance(name, str):
        raise InputError(f"{where}: expected image to be a path, found {_kind(name)}; mend the entry")
    captions = caption if isinstance(caption, list) else [caption]
    if not captions:
        raise InputError(f"{where}: expected at least one caption, found an empty list; add one or drop the entry")
    for text in captions:
        if not isinstance(text, str):
            raise InputError(f"{where}: expected caption to be text or a list of texts, found {_kind(text)}; mend it")
    return name, captions


def _refuse_escape(name: str, where: str) -> None:
    path = PurePath(name)
    if path.anchor or ".." in path.parts:
        raise InputError(f"{where}: expected an image inside the root folder, found {name}; write a relative path")


def _refuse_missing(names: Iterable[str], path: Path, root: Path, remedy: str) -> None:
    # One listing per folder: a look-up per image takes minutes on a network disk.
    listings: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in listings:
            listings[folder] = _files(root / folder)
        if file not in listings[folder]:
            missing.append(name)
    if missing:
        raise InputError(
            f"{path}: expected every image it names under {root}, found {len(missing)} missing, "
            f"the first {missing[0]}; {remedy}"
        )


def _files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:  # absent, no folder, or closed to us: none of its files can be had
        return set()


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")
