"""Pictures of packages that a user installs: what is there, and what it looks like once drawn."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from PIL import Image

from ptmst.data.drawn import alike, drawn, is_plain, on_white
from ptmst.data.images import DECODERS
from ptmst.data.things import joined, thing
from ptmst.data.written import Advance, Sample
from ptmst.errors import InputError
from ptmst.support import parallel

VERSION = 1
"""Raised whenever the same packages would give other data."""
SIZE = 64
"""Height and width of the pictures, pixels."""
_RENDERER = "resvg-py"
_ALIKE = 0.99
"""Correlation of two small gray pictures from which on they show one drawing."""


@dataclass(frozen=True)
class Package:
    """A package of Debian, and the folder of its pictures."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Found:
    """A picture of a package."""

    name: str
    """Of the PNG that it becomes, below the data set's images."""
    file: Path
    captions: tuple[str, ...]


def refuse_missing(data: str, *packages: Package) -> None:
    """Raise InputError where what the data set is made of is not installed."""
    debian = [package.name for package in packages if not listed(package.folder, ".svg", ".png")]
    missing = [*debian, *([] if _installed(_RENDERER) else [_RENDERER])]
    if missing:
        remedies = [f"apt-get install {' '.join(debian)}"] if debian else []
        remedies += ["pip install 'ptmst[drawings]'"] if _RENDERER in missing else []
        wanted = ", ".join([*(package.name for package in packages), _RENDERER])
        raise InputError(f"{data}: expected {wanted}, found no {' or '.join(missing)}; {' and '.join(remedies)}")


def made_with(*packages: Package) -> dict[str, str]:
    """What decides a data set: hashes of the packages' files, and versions of what draws and sorts them."""
    hashes = {package.name: _hash(package.folder) for package in packages}
    return {**hashes, _RENDERER: version(_RENDERER), "pillow": version("pillow"), "rules": str(VERSION)}


def drawn_pictures(pictures: Sequence[Found], advance: Advance) -> dict[str, bytes]:
    """PNG of each picture, by its name, in their order; without those that show nothing, or what an earlier one does.

    `advance` is called for each. Processes draw them: as many as there are cores.
    """
    content: dict[str, bytes | None] = {}
    for name, png in parallel.completed(_png, pictures, workers=DECODERS):
        content[name] = png
        advance()
    kept, seen = dict[str, bytes](), set[bytes]()
    for picture in pictures:
        png = content[picture.name]
        if png is not None and png not in seen:
            seen.add(png)
            kept[picture.name] = png
    return kept


def groups(pictures: Sequence[Found], pngs: Mapping[str, bytes]) -> dict[str, str]:
    """The group of each picture, by name: of one thing by their first captions, or alike but for their color."""
    things = [thing(picture.captions[0]) for picture in pictures]
    found = joined(things, alike([pngs[picture.name] for picture in pictures], _ALIKE))
    return {picture.name: group for picture, group in zip(pictures, found, strict=True)}


def asked_once(
    pictures: Sequence[Found], pngs: Mapping[str, bytes], group_of: Mapping[str, str], split_of: Mapping[str, str]
) -> Iterator[Sample]:
    """The samples of pictures, in the splits of their groups; where students are scored, one of each group."""
    asked = set[str]()
    for picture in pictures:
        split, group = split_of[group_of[picture.name]], group_of[picture.name]
        if split == "train" or group not in asked:
            asked.add(group)
            yield split, picture.name, pngs[picture.name], picture.captions


def _png(picture: Found) -> tuple[str, bytes | None]:
    try:
        image = _image(picture.file)
    except (OSError, ValueError):  # no picture, or none that can be drawn: there are a few in every package
        return picture.name, None
    if is_plain(image):
        return picture.name, None
    content = io.BytesIO()
    image.save(content, "png")
    return picture.name, content.getvalue()


def _image(file: Path) -> Image.Image:
    if file.suffix == ".svg":
        return drawn(file.read_text("utf-8", errors="replace"), SIZE)
    with Image.open(file) as image:
        return on_white(image, SIZE)


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _hash(folder: Path) -> str:
    """SHA-256 of the names and bytes of all texts and pictures of a folder."""
    found = hashlib.sha256()
    for path in listed(folder, ".svg", ".png", ".txt"):
        found.update(f"{path.relative_to(folder).as_posix()}\0".encode("utf-8", "surrogateescape"))
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def listed(folder: Path, *suffixes: str) -> list[Path]:
    """The files of a folder and those below, sorted; links, which show a picture again, are left out."""
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes and not path.is_symlink())
