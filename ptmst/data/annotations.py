"""What annotations say, in whatever form they are written: images, captions, and where each image's bytes are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol, TypeVar

from ptmst.errors import InputError

T = TypeVar("T")
SPLITS = ("train", "val", "test", "warmup")
Fault = Callable[[str], None]
"""Callback for a broken entry, which is skipped: it takes what is wrong, in one line."""


class ImageBytes(NamedTuple):
    """Bytes of an image: a file of its own, or a stretch of a tar file."""

    file: Path
    offset: int = 0
    size: int = -1
    """Bytes from `offset` on; -1 = to the end."""

    def read(self) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Place(Protocol):
    """Where the bytes of an image are."""

    @property
    def file(self) -> Path:
        """The file that they are in."""
        ...

    def read(self) -> bytes:
        """All of them."""
        ...


class Item(NamedTuple):
    """An image, by the name that tells it from the others, and captions of it as written."""

    name: str
    captions: list[str]
    place: Place


@dataclass(frozen=True)
class Annotations:
    """One split: I distinct images in order of appearance, T captions in their order."""

    origin: str
    """File or files they were read from, to begin a message with."""
    remedy: str
    """What to do about missing images, to end one with."""
    image_names: tuple[str, ...]
    """Images as paths relative to the root, [I]; one in a tar file is TAR/MEMBER."""
    places: tuple[Place, ...]
    """Where the bytes of each image are, [I]."""
    captions: tuple[str, ...]
    """Captions as written, [T]."""
    image_of_text: tuple[int, ...]
    """Image of each caption, [T], in 0 … I-1."""

    def missing(self) -> list[int]:
        """Images whose file does not exist."""
        # One listing per folder: a look-up per image takes minutes on a network disk.
        listings: dict[str, set[str]] = {}
        absent = []
        for i, place in enumerate(self.places):
            folder, file = os.path.split(place.file)
            if folder not in listings:
                listings[folder] = _files(folder)
            if file not in listings[folder]:
                absent.append(i)
        return absent


class Source(Protocol):
    """A form in which data sets are written."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that can be asked for."""
        ...

    def present(self, root: Path) -> tuple[str, ...]:
        """Splits of which there is something under `root`."""
        ...

    def read(self, root: Path, split: str, fault: Fault | None = None) -> Annotations:
        """Annotations of a split, one of `splits`, whose images are under `root`; no image is looked up.

        Raises InputError where they are missing or broken as a whole. For a broken entry `fault` is called;
        without one it raises InputError too.
        """
        ...


def gather(
    entries: Iterable[T], item_of: Callable[[T], Item | None], fault: Fault | None, *, origin: str, remedy: str
) -> Annotations:
    """Annotations of the entries: `item_of` returns None to skip one, and raises InputError if it is broken."""
    index: dict[str, int] = {}
    places: list[Place] = []
    captions: list[str] = []
    image_of_text: list[int] = []
    for entry in entries:
        try:
            item = item_of(entry)
        except InputError as error:
            if fault is None:
                raise
            fault(str(error))
            continue
        if item is None:
            continue
        image = index.setdefault(item.name, len(index))
        if image == len(places):
            places.append(item.place)
        captions += item.captions
        image_of_text += [image] * len(item.captions)
    return Annotations(origin, remedy, tuple(index), tuple(places), tuple(captions), tuple(image_of_text))


def texts_of(caption: object, where: str) -> list[str]:
    """The captions of an entry, which are a string or a list of them. Raises InputError."""
    captions = caption if isinstance(caption, list) else [caption]
    if not captions:
        raise InputError(f"{where}: expected at least one caption, found an empty list; add one or drop the entry")
    for text in captions:
        if not isinstance(text, str):
            raise InputError(f"{where}: expected caption to be text or a list of texts, found {kind(text)}; fix it")
    return list(map(str, captions))


def inside(name: str, root: Path, where: str) -> str:
    """`name` relative to `root`, whether or not it was absolute. Raises InputError if it leaves `root`."""
    path, base = PurePath(name), os.path.abspath(root)
    if path.is_relative_to(base):
        path = path.relative_to(base)
    if path.anchor or ".." in path.parts:
        raise InputError(f"{where}: expected an image inside the root folder, found {name}; write a relative path")
    return path.as_posix()


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")


def _files(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:  # absent, no folder, or closed to us: none of its files can be had
        return set()
