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
from ptmst.data import images
from ptmst.data.annotations import ImageBytes
from ptmst.data.check import check
from ptmst.data.images import decode
from ptmst.data.pairs import load_pairs
from ptmst.data.sources import source_of
from ptmst.errors import InputError

REFUSED, OVERLY = "refused", "refused, others read"
HARMLESS = (REFUSED, OVERLY, "alike")
"""What may become of a mutant: others read what is broken in a way that they do not mind, or look for."""
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
    ours, refusal, fault = _read(form, content, root)
    seconds = time.perf_counter() - began
    if fault is not None:
        outcome, detail = fault.args
    elif refusal is not None:
        outcome, detail = _refused(form, content, str(refusal))
    else:
        outcome, detail = (_compared_pictures if form == "picture" else _compared)(ours, form, content)
    return Verdict(outcome, detail, seconds)


def _read(form: str, content: bytes, root: Path) -> tuple[Any, InputError | None, _Fault | None]:
    """What we make of a mutant: its picture or pairs, why it is refused, or what must not be."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        images.silence_pil()  # as in the program: what a test runner filters is not what a user sees
        ours, refusal, fault = None, None, None
        try:
            ours = _picture(content, root) if form == "picture" else _pairs(form, content, root)
        except InputError as error:
            refusal = error
        except _Fault as error:
            fault = error
        except Exception as error:  # what is looked for
            fault = _Fault("traceback", f"{type(error).__name__}: {error}")
    if told and fault is None:  # lines of a library's on the terminal, beside whatever we say
        fault = _Fault("warning", f"{told[0].filename}:{told[0].lineno}: {told[0].message}")
    return ours, refusal, fault


def _refused(form: str, content: bytes, message: str) -> tuple[str, str]:
    if not _is_one_line(message):
        return "not one line", repr(message)
    try:
        theirs = readers.picture(content) is not None if form == "picture" else bool(readers.pairs(form, content))
    except Exception:
        theirs = False
    return (OVERLY if theirs else REFUSED), repr(message)


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
    held = [
        place.read() if place.file.name == NAMES[form] else name
        for place, name in zip(found.places, found.image_names, strict=True)
    ]
    return [(held[image], caption) for image, caption in zip(found.image_of_text, found.captions, strict=True)]


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


def _compared_pictures(ours: Any, form: str, content: bytes) -> tuple[str, str]:
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
