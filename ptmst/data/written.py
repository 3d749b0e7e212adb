"""Writing a data set of pictures to disk as files: once, and whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptmst.data.annotations import SPLITS
from ptmst.data.credits import FILE as CREDITS
from ptmst.data.credits import Credits, write_credits
from ptmst.data.generated import FOLDER, UNFINISHED, Progress
from ptmst.data.karpathy import write_annotations
from ptmst.errors import InputError
from ptmst.support import files, folders

LICENSES = "LICENSES.txt"
"""The texts of all licenses, in the root folder."""
_VERSION = 1

Sample = tuple[str, str, bytes, Sequence[str]]
"""Split, name of the image below `images`, its file's bytes, its captions."""
Advance = Callable[[], object]


@dataclass(frozen=True)
class PictureSet:
    """A data set that is there to be written."""

    name: str
    made_of: Mapping[str, Any]
    """What decides its bytes; JSON values."""
    credits: Credits
    samples: Callable[[Advance], Iterable[Sample]] = field(repr=False)
    """Makes them, and calls what it is given for each picture that it looks at."""
    count: int
    """Pictures that it looks at."""
    licenses: str = ""
    """The texts of the licenses."""


def write_set(root: Path, pictures: PictureSet, progress: Progress | None = None) -> bool:
    """Write `images/`, NAME_SPLIT.json, credits.json, LICENSES.txt, then NAME.json; False if all was there already.

    Raises InputError for a folder that holds something else or cannot be written.
    """
    record = root / f"{pictures.name}.json"
    annotations = {split: root / f"{pictures.name}_{split}.json" for split in SPLITS}
    content = {"format": f"ptmst-{pictures.name}", "version": _VERSION, **pictures.made_of}

    def is_finished() -> bool:
        if not record.exists():
            return False
        there = files.read_json(record, pictures.name, _VERSION)
        differing = [key for key, value in pictures.made_of.items() if there.get(key) != value]
        if differing:
            raise InputError(
                f"{record}: expected {pictures.name} made of what is installed here, found it made of other "
                f"{', '.join(differing)}; choose another root or delete that folder"
            )
        texts = [root / LICENSES] if pictures.licenses else []
        wanted = [root / CREDITS, *texts, *(annotations[split] for split in there.get("images", ()))]
        return UNFINISHED not in there and all(path.exists() for path in wanted)

    if is_finished():
        folders.tidy(root)
        return False
    with folders.claimed(root, FOLDER):
        if is_finished():
            return False
        if not record.exists() and any((root / "images").glob("*")):
            raise InputError(
                f"{root}: expected a new folder, or one that `ptmst data` has begun, found {root / 'images'}; "
                "choose another root or delete that folder"
            )
        # From here on the folder says whose it is, whenever the run is killed.
        files.write_json(record, {**content, UNFINISHED: True})
        for path in annotations.values():
            path.unlink(missing_ok=True)
        captioned = _write_images(root, pictures, progress)
        for split, images in captioned.items():
            write_annotations(annotations[split], images, entry_per_caption=split == "train")
        if pictures.licenses:
            files.write(root / LICENSES, pictures.licenses.encode())
        write_credits(root, pictures.credits)
        counts = {split: len(images) for split, images in captioned.items()}
        files.write_json(record, {**content, "images": counts})
    return True


def _write_images(
    root: Path, pictures: PictureSet, progress: Progress | None
) -> Mapping[str, Sequence[tuple[str, Sequence[str]]]]:
    """Names and captions of what was written, by split."""
    captioned: dict[str, list[tuple[str, Sequence[str]]]] = {}
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, pictures.count)

    for split, name, image, captions in pictures.samples(advance):
        path = root / "images" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        except OSError as error:
            raise files.cannot_write(path, error) from error
        captioned.setdefault(split, []).append((f"images/{name}", captions))
    return captioned
