"""Writing a data set of pictures to disk as files: once, and whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptmst.data.annotations import SPLITS
from ptmst.data.credits import FILE as CREDITS
from ptmst.data.credits import Credits, write_credits
from ptmst.data.generated import FOLDER, Progress
from ptmst.data.karpathy import write_annotations
from ptmst.errors import InputError
from ptmst.support import files, folders

LICENSES = "LICENSES.txt"
"""The texts of all licenses, in the root folder."""
_VERSION = 1
_UNFINISHED = "unfinished"

Sample = tuple[str, str, bytes, Sequence[str]]
"""Split, name of the image below `images`, its file's bytes, its captions."""


@dataclass(frozen=True)
class PictureSet:
    """A data set that is there to be written."""

    name: str
    made_of: Mapping[str, Any]
    """What decides its bytes; JSON values."""
    credits: Credits
    samples: Callable[[], Iterable[Sample]] = field(repr=False)
    count: int
    """Images of all splits."""
    licenses: str = ""
    """The texts of the licenses."""


def write_set(root: Path, pictures: PictureSet, progress: Progress | None = None) -> bool:
    """Write `images/`, NAME_SPLIT.json, credits.json, LICENSES.txt, then NAME.json; False if all was there already.

    Raises InputError for a folder that holds something else or cannot be written.
    """
    record = root / f"{pictures.name}.json"
    annotations = {split: root / f"{pictures.name}_{split}.json" for split in SPLITS}
    content = {"format": f"ptmst-{pictures.name}", "version": _VERSION, **pictures.made_of}

    def finished() -> bool:
        if not record.exists():
            return False
        there = files.read_json(record, pictures.name, _VERSION)
        if any(there.get(key) != value for key, value in pictures.made_of.items()):
            raise InputError(
                f"{record}: expected {pictures.name} of this release, found it made of other packages or settings; "
                "choose another root or delete that folder"
            )
        return _UNFINISHED not in there and (root / CREDITS).exists()

    if finished():
        folders.tidy(root)
        return False
    with folders.claimed(root, FOLDER):
        if finished():
            return False
        if not record.exists() and any((root / "images").glob("*")):
            raise InputError(
                f"{root}: expected a new folder, or one that `ptmst data` has begun, found {root / 'images'}; "
                "choose another root or delete that folder"
            )
        # From here on the folder says whose it is, whenever the run is killed.
        files.write_json(record, {**content, _UNFINISHED: True})
        captioned: dict[str, list[tuple[str, Sequence[str]]]] = {split: [] for split in SPLITS}
        try:
            for done, (split, name, image, captions) in enumerate(pictures.samples(), 1):
                path = root / "images" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image)
                captioned[split].append((f"images/{name}", captions))
                if progress:
                    progress(done, pictures.count)
        except OSError as error:
            raise InputError(f"{root}: expected a folder to write to, found {error}; choose another root") from error
        for split, path in annotations.items():
            with suppress(FileNotFoundError):
                path.unlink()
            if captioned[split]:
                write_annotations(path, captioned[split], entry_per_caption=split == "train")
        if pictures.licenses:
            files.write(root / LICENSES, pictures.licenses.encode())
        write_credits(root, pictures.credits)
        files.write_json(record, content)
    return True
