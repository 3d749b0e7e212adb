"""What annotations say, in whatever form they are written: images, captions, and where each image's bytes are."""

from __future__ import annotations

import ast
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PureWindowsPath
from typing import NamedTuple, Protocol, TypeVar

from ptmst.data.captions import is_wordless
from ptmst.data.contents import is_whole, shown
from ptmst.errors import InputError

T = TypeVar("T")
SPLITS = ("train", "val", "test", "warmup")
NAMED = 10
"""Images or entries of a kind that are named; the others are counted."""
_ESCAPE = r"\\(?:[\\'\"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})"
_QUOTED = rf"""'(?:[^'\\\0\r\n]|{_ESCAPE})*'|"(?:[^"\\\0\r\n]|{_ESCAPE})*"|(?i:none|nan|null)"""
_WRITTEN = re.compile(_QUOTED)
_WRITTEN_LIST = re.compile(rf"\[\s*(?:{_QUOTED})(?:(?:\s*,\s*|\s+)(?:{_QUOTED}))*\s*,?\s*\]")
"""A list of strings as Python's repr writes it, or NumPy's, which puts no commas; strings may be missing."""
Fault = Callable[[str], None]
"""Callback for a broken entry, which is skipped: it takes what is wrong, in one line."""


class ImageBytes(NamedTuple):
    """Bytes of an image: a file of its own, or a stretch of a tar file."""

    file: Path
    offset: int = 0
    size: int = -1
    """Bytes from `offset` on; -1 = to the end."""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def read(self) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Place(Protocol):
    """Where the bytes of an image are."""

    @property
    def file(self) -> Path:
        """The file that they are in, or that names it."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide them."""
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
    wordless: tuple[str, ...] = ()
    """Image of each caption that was left out since it says nothing; one without any other is not among the images."""
    remarks: tuple[str, ...] = ()
    """What a user should know although nothing is wrong, one line each."""

    def left_out(self) -> str:
        """One line on the captions that say nothing."""
        whose = ", ".join(shown(name) for name in list(dict.fromkeys(self.wordless))[:NAMED])
        more = len(set(self.wordless)) - NAMED
        return (
            f"{self.origin}: {counted(self.wordless, 'caption')} without a word (empty, or such as nan or none) left "
            f"out, of {whose}{f' and {more} more' if more > 0 else ''}; write them, or leave out their rows"
        )

    def located(self, root: Path) -> tuple[Annotations, list[int]]:
        """These with every image where the disk has it, and the numbers of those whose file does not exist.

        A name that is not on the disk as it is written may be in another Unicode form, as macOS writes names, or a
        path of Windows. Names of one file are one image.
        """
        disk = _Disk()
        names, places, absent = list(self.image_names), list(self.places), list[int]()
        for i, place in enumerate(self.places):
            if disk.holds(place.file):
                continue
            name = PurePath(names[i].replace("\\", "/")).as_posix()
            file = disk.spelled(root, name) if isinstance(place, ImageBytes) else None
            if file is None:
                absent.append(i)
            else:
                names[i], places[i] = name, ImageBytes(file)
        found = replace(self, image_names=tuple(names), places=tuple(places))
        # Only where nothing is missing do the numbers still mean the same.
        return (found if absent or found == self else _merged(found)), absent


class _Disk:
    """What files there are. One listing per folder: a look-up per image takes minutes on a network disk."""

    def __init__(self) -> None:
        self._files: dict[str, set[str]] = {}
        self._composed: dict[str, dict[str, list[str]]] = {}

    def holds(self, path: Path) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._files:
            self._files[folder] = _names(folder, files_only=True)
        return name in self._files[folder]

    def spelled(self, root: Path, name: str) -> Path | None:
        """The one file whose path below the root is `name` but for the Unicode form of its parts."""
        path = root
        for part in PurePath(name).parts:
            folder = str(path)
            if folder not in self._composed:
                self._composed[folder] = {}
                for entry in _names(folder, files_only=False):
                    self._composed[folder].setdefault(composed(entry), []).append(entry)
            entries = self._composed[folder].get(composed(part), [])
            if part not in entries and len(entries) != 1:
                return None
            path = path / (part if part in entries else entries[0])
        return path if self.holds(path) else None


def _names(folder: str, files_only: bool) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if not files_only or entry.is_file()}
    except OSError:  # absent, no folder, or closed to us: none of its files can be had
        return set()


def composed(name: str) -> str:
    """A name in the Unicode form in which a letter with its accent is one character (NFC)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _merged(annotations: Annotations) -> Annotations:
    """Images of one place are one."""
    number_of: dict[Place, int] = {}
    numbers = [number_of.setdefault(place, len(number_of)) for place in annotations.places]
    first = {number: i for i, number in reversed(list(enumerate(numbers)))}
    return replace(
        annotations,
        image_names=tuple(annotations.image_names[first[number]] for number in range(len(number_of))),
        places=tuple(number_of),
        image_of_text=tuple(numbers[image] for image in annotations.image_of_text),
    )


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
    """Annotations of the entries: `item_of` returns None to skip one, and raises InputError if it is broken.

    Captions that say nothing are left out. Raises InputError where all of them are.
    """
    index: dict[str, int] = {}
    places: list[Place] = []
    captions: list[str] = []
    image_of_text: list[int] = []
    wordless: list[str] = []
    for entry in entries:
        try:
            item = item_of(entry)
        except InputError as error:
            told(str(error), fault)
            continue
        if item is None:
            continue
        kept = [text for text in item.captions if not is_wordless(text)]
        wordless += [item.name] * (len(item.captions) - len(kept))
        if not kept:
            continue
        image = index.setdefault(item.name, len(index))
        if image == len(places):
            places.append(item.place)
        captions += kept
        image_of_text += [image] * len(kept)
    if wordless and not captions:
        raise InputError(f"{origin}: expected captions, found {counted(wordless, 'caption')} without a word; add words")
    return Annotations(
        origin, remedy, tuple(index), tuple(places), tuple(captions), tuple(image_of_text), tuple(wordless)
    )


def told(message: str, fault: Fault | None) -> None:
    """Call `fault` with what is wrong. Raises InputError where there is none."""
    if fault is None:
        raise InputError(message)
    fault(message)


def texts_of(caption: object, where: str) -> list[str]:
    """The captions of an entry, which are a string or a list of them; byte order marks in them are left out.

    A string may hold a list of strings as JSON, Python or NumPy write it. Raises InputError.
    """
    if isinstance(caption, str):
        caption = _written_list(caption) or [caption]
    captions = caption if isinstance(caption, list) else [caption]
    if not captions:
        raise InputError(f"{where}: expected at least one caption, found an empty list; add one or drop the entry")
    for text in captions:
        if not isinstance(text, str):
            raise InputError(f"{where}: expected caption to be text or a list of texts, found {kind(text)}; fix it")
        if not is_whole(text):
            raise InputError(
                f"{where}: expected a caption in Unicode, found half of a character (a surrogate) in {shown(text)}; "
                "write the whole character"
            )
    return [text.replace("\ufeff", "") for text in map(str, captions)]


def _written_list(text: str) -> list[str] | None:
    """The strings of a list that a text holds whole; of what is missing among them its placeholder."""
    text = text.strip("\ufeff \t\r\n")
    if not (text.startswith("[") and text.endswith("]") and is_whole(text)):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value
    if _WRITTEN_LIST.fullmatch(text) is None:
        return None
    return [ast.literal_eval(item) if item[0] in "'\"" else item for item in _WRITTEN.findall(text)]


def inside(name: str, root: Path, where: str) -> str:
    """`name` relative to `root`, whether or not it was absolute.

    Raises InputError for a name that leaves `root`, even as a path of Windows, or is none.
    """
    if "\0" in name or not is_whole(name):
        raise InputError(f"{where}: expected the path of an image, found characters of no path ({shown(name)}); fix it")
    path, windows = PurePath(name), PureWindowsPath(name)
    if path.is_absolute():
        path = _below(path, root)
    foreign = "\\" in name and (windows.anchor or ".." in windows.parts)
    if path.anchor or ".." in path.parts or foreign:
        raise InputError(
            f"{where}: expected an image inside the root folder, found {shown(name)}; write a relative path"
        )
    if not path.parts:
        raise InputError(f"{where}: expected the path of an image, found {name!r}; fix it")
    return path.as_posix()


def _below(path: PurePath, root: Path) -> PurePath:
    """An absolute path relative to the root if it is inside, even where either goes through symbolic links."""
    base = os.path.abspath(root)
    if not path.is_relative_to(base):
        base, path = os.path.realpath(root), PurePath(os.path.realpath(path.parent), path.name)
    return path.relative_to(base) if path.is_relative_to(base) else path


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, dict) and "images" in value and "annotations" in value:
        return "COCO's own annotations"
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")


def counted(things: Sequence[object], noun: str) -> str:
    """`3 images`."""
    return f"{len(things):,} {noun}{'s' * (len(things) != 1)}"
