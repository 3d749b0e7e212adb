"""The data set "emoji", which ships with ptmst: drawings of things by seven teams, with the names people gave them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from ptmst.data.credits import Credits, read_credits
from ptmst.data.generated import Progress
from ptmst.data.written import LICENSES, Advance, PictureSet, Sample, write_set
from ptmst.support import files

_INDEX, _KIND, _VERSION = "emoji.json", "shipped", 1


def shipped() -> Path:
    """The folder of its archives (WebDataset's form), licenses and caption embeddings."""
    return Path(str(resources.files("ptmst.data").joinpath("emoji")))


def write_emoji(root: Path | str, *, progress: Progress | None = None) -> bool:
    """Write the data set "emoji" under `root` as image files; False if it was there already.

    Pictures are 64 × 64 pixels. Val and test show things that training does not, each in one drawing. Whose they are
    is in `credits.json` and LICENSES.txt. Raises InputError for a root that holds something else or cannot be written.
    """
    return write_set(Path(root), emoji(), progress)


def emoji() -> PictureSet:
    """The data set as it ships."""
    folder = shipped()
    index, credits = files.read_json(folder / _INDEX, _KIND, _VERSION), read_credits(folder)
    assert credits is not None
    return PictureSet(
        name="emoji",
        made_of={"archives": index["archives"]},
        credits=credits,
        samples=_samples,
        count=sum(index["images"].values()),
        licenses=(folder / LICENSES).read_text("utf-8"),
    )


def license_texts(credits: Credits) -> str | None:
    """All texts of the licenses of the data set that ships; None for credits of other data."""
    folder = shipped()
    return (folder / LICENSES).read_text("utf-8") if read_credits(folder) == credits else None


def _samples(advance: Advance) -> Iterator[Sample]:
    for split in ("train", "val", "test"):
        with tarfile.open(shipped() / f"emoji-{split}.tar") as archive:
            # KEY.json comes before KEY.webp.
            captions: list[str] = []
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                if member.name.endswith(".json"):
                    captions = json.load(file)["caption"]
                else:
                    yield split, member.name, file.read(), captions
                    advance()
