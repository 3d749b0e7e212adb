"""Pictures or captions that are searched, and what a trained student finds among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ptmst.errors import InputError
from ptmst.retrieval.trained_student import TrainedStudent

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".jp2", ".avif"})
"""Of pictures in a folder; what else lies there is passed over."""


@dataclass(frozen=True)
class Gallery:
    """What is searched: pictures, or captions."""

    root: Path
    """The folder or file that it was read from."""
    pictures: tuple[Path, ...] = ()
    captions: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Gallery:
        """All pictures in a folder and the folders in it, in order of their names; or a text file, a caption a line.

        Raises InputError where there are none.
        """
        if path.is_dir():
            found = tuple(sorted(one for one in path.rglob("*") if one.suffix.lower() in _SUFFIXES and one.is_file()))
            if not found:
                raise InputError(f"{path}: expected pictures in the folder, found none; check the path")
            return cls(path, pictures=found)
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except OSError as error:
            raise InputError(
                f"{path}: expected a folder of pictures, or a text file with a caption a line, found none "
                f"({error.strerror}); check the path"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: expected a folder of pictures, or captions in UTF-8, found another encoding; save it as UTF-8"
            ) from error
        captions = tuple(line.strip() for line in lines if line.strip())
        if not captions:
            raise InputError(f"{path}: expected a caption a line, found none; check the file")
        return cls(path, captions=captions)

    def __len__(self) -> int:
        return len(self.pictures or self.captions)

    def shown(self, item: int) -> str:
        """An item in words: a caption, or a picture's path in the folder."""
        return str(self.pictures[item].relative_to(self.root)) if self.pictures else self.captions[item]

    def embed(self, student: TrainedStudent) -> Tensor:
        """float32 [M, H] of unit length."""
        return student.embed_images(self.pictures) if self.pictures else student.embed_captions(self.captions)


@dataclass(frozen=True)
class Found:
    """What fits a query best, the best first."""

    query: str
    of_picture: bool
    """Whether the query is a picture, by its path."""
    items: tuple[int, ...]
    """Places in the gallery."""
    cosines: tuple[float, ...]


def find(student: TrainedStudent, gallery: Gallery, queries: Sequence[str], best: int) -> list[Found]:
    """The `best` of a gallery for each query, which is a picture where it is the path of a file, else a caption.

    By the cosine of embeddings; of equal ones the first. Raises InputError that names a picture that cannot be read.
    """
    embedded = gallery.embed(student)
    found = []
    for query in queries:
        of_picture = _is_file(query)
        wanted = student.embed_images([query]) if of_picture else student.embed_captions([query])
        cosines, items = torch.sort((embedded @ wanted[0]), descending=True, stable=True)
        shown = slice(min(best, len(gallery)))
        found.append(Found(query, of_picture, tuple(items[shown].tolist()), tuple(cosines[shown].tolist())))
    return found


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except OSError:  # a caption that is too long for a name
        return False
