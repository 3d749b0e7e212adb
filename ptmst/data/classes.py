"""Classes of images, for zero-shot classification: a file `classes.json` in a data set's folder.

It holds {"prompts": {class: [texts]}, "images": {image: class}}; images are named by their paths below the folder, and
those it does not name have no class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from torch import Tensor

from ptmst.data.annotations import composed, inside, kind
from ptmst.data.captions import clean_caption
from ptmst.errors import InputError
from ptmst.support import files

FILE = "classes.json"
_KIND, _VERSION = "classes", 1
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """C classes, told by prompts, and the class of each of I images."""

    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    """Texts that tell each class, cleaned as captions are, [C]."""
    labels: Tensor
    """Class of each image, int64 [I]; -1 where it has none."""


def write_classes(root: Path, prompts: Mapping[str, Sequence[str]], images: Mapping[str, str]) -> None:
    """Write `classes.json` in `root`: texts by class, class by image."""
    told = {name: list(texts) for name, texts in prompts.items()}
    files.write_json(root / FILE, {"format": "ptmst-classes", "version": _VERSION, "prompts": told, "images": images})


def read_classes(root: Path, image_names: Sequence[str], what: str = "images") -> Classes | None:
    """The classes of these images; none where the folder has no `classes.json`, or it names none of them.

    Warns where it does not name all of `what`. Raises InputError for a file with other content.
    """
    path = root / FILE
    if not path.exists():
        return None
    value = files.read_json(path, _KIND, _VERSION)
    prompts, images = value.get("prompts"), value.get("images")
    if not isinstance(prompts, dict) or not prompts or not isinstance(images, dict):
        raise InputError(
            f'{path}: expected {{"prompts": {{class: [texts]}}, "images": {{image: class}}}}, found other keys; fix it'
        )
    for name, texts in prompts.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path}: expected a list of texts as prompts of {name}, found {kind(texts)}; fix it")
    names = tuple(prompts)
    class_of: dict[str, str] = {}
    for image, name in images.items():
        if not isinstance(name, str) or name not in prompts:
            raise InputError(f"{path}: expected a class with prompts for {image}, found {name!r}; add its prompts")
        if class_of.setdefault(composed(inside(image, root, f"{path}: images")), name) != name:
            raise InputError(
                f"{path}: expected one class of {image}, found a second one under another spelling; keep one"
            )
    # In a tar file the name of a member may have a ./ too.
    class_names = [class_of.get(composed(PurePath(image).as_posix())) for image in image_names]
    labels = torch.tensor([-1 if name is None else names.index(name) for name in class_names])
    unnamed = [image for image, label in zip(image_names, labels.tolist(), strict=True) if label < 0]
    if unnamed:
        named, count = len(image_names) - len(unnamed), len(image_names)
        _LOG.warning("%s: %d of %d %s have a class; %s is one without", path, named, count, what, unnamed[0])
    if len(unnamed) == len(image_names):
        return None
    return Classes(names, tuple(tuple(clean_caption(t) for t in prompts[name]) for name in names), labels)
