"""What is made of a mutant, and whether that is right."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fuzz import readers
from fuzz.samples import FILES, NAMES, samples
from ptmst.data.annotations import ImageBytes
from ptmst.data.check import check
from ptmst.data.images import decode
from ptmst.data.pairs import load_pairs
from ptmst.data.sources import source_of
from ptmst.errors import InputError

HARMLESS = ("refused", "alike")
"""What may become of a mutant."""
_PLACEHOLDERS = {"nan", "none", "null", "<na>", "n/a"}


Pairs = list[tuple[str | bytes, str]]
"""Path or bytes of an image, and a caption."""


class Verdict(NamedTuple):
    """What became of a mutant."""

    outcome: str
    detail: str
    seconds: float


class _Fault(Exception):
    """Outcome and detail of what must not be."""


def judge(form: str, content: bytes, root: Path) -> Verdict:
    """Read a mutant under `root`, which holds the images that samples name, and compare."""
    began = time.perf_counter()
    try:
        # A warning of a library would be another line.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = _picture(content, root) if form == "picture" else _pairs(form, content, root)
        outcome, detail = _compared_pictures(ours, content) if form == "picture" else _compared(ours, form, content)
    except InputError as error:
        outcome, detail = "refused" if _is_one_line(str(error)) else "not one line", repr(str(error))
    except _Fault as fault:
        outcome, detail = fault.args
    except Exception as error:  # what is looked for
        outcome, detail = "traceback", f"{type(error).__name__}: {error}"
    return Verdict(outcome, detail, time.perf_counter() - began)


def _is_one_line(message: str) -> bool:
    return message.isprintable() and len(message) < 2000


def _pairs(form: str, content: bytes, root: Path) -> Pairs:
    (root / NAMES[form]).write_bytes(content)
    problems = check(FILES[form], root).problems
    if bad := [line for line in problems if not _is_one_line(line)]:
        raise _Fault("not one line", repr(bad[0]))
    found = source_of(FILES[form]).read(root, "train")
    try:
        loaded = load_pairs(FILES[form], root, image_size=4)
        loaded.pixels(torch.arange(len(loaded.image_names)))
    except InputError as error:
        if not problems:
            raise _Fault("unseen by the check", str(error)) from error
    images = [
        place.read() if place.file.name == NAMES[form] else name
        for place, name in zip(found.places, found.image_names, strict=True)
    ]
    return [(images[image], caption) for image, caption in zip(found.image_of_text, found.captions, strict=True)]


def _compared(ours: Any, form: str, content: bytes) -> tuple[str, str]:
    try:
        theirs = readers.pairs(form, content)
    except Exception as error:
        return "read alone", f"{type(error).__name__}: {error}"
    told = [(pair.image, pair.caption.replace("\ufeff", "")) for pair in theirs if _says(pair.caption)]
    if ours == told:
        return "alike", ""
    return "other pairs", next((repr(both) for both in zip(ours, told, strict=False) if both[0] != both[1]), "fewer")


def _says(caption: str) -> bool:
    """Whether it has a letter, digit or sign, and is no placeholder; others are left out."""
    plain = caption.strip(' \n.!"()*#:;~').lower() not in _PLACEHOLDERS
    return plain and any(c.isalnum() or (ord(c) > 0x2000 and not c.isspace() and c.isprintable()) for c in caption)


def _picture(content: bytes, root: Path) -> np.ndarray:
    file = root / "picture"
    file.write_bytes(content)
    return np.asarray(decode(ImageBytes(file), file).upright, dtype=np.float64)


def _compared_pictures(ours: Any, content: bytes) -> tuple[str, str]:
    try:
        theirs = readers.picture(content)
    except Exception as error:
        return "read alone", f"{type(error).__name__}: {error}"
    if theirs is None:
        # OpenCV also refuses whole pixels for what is broken around them: then they are those of a whole file.
        whole = [readers.picture(sample) for sample in samples("picture")]
        alike = any(one is not None and _are_alike(ours, one) for one in whole)
        return ("alike", "") if alike else ("read alone", content[:4].hex())
    return ("alike" if _are_alike(ours, theirs) else "other pixels"), f"{ours.shape} for {theirs.shape}"


def _are_alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Decoders of one format differ by rounding."""
    if ours.shape != theirs.shape:
        return False
    apart = np.abs(ours - theirs)
    return bool(apart.mean() <= 2 and (apart > 16).mean() <= 0.01)
