"""The data set "stamps": photographs and drawings of Tux Paint, with a sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ptmst.data.credits import Credits
from ptmst.data.drawn import dealt, words
from ptmst.data.installed import Found, Package, asked_once, drawn_pictures, groups, listed, made_with, refuse_missing
from ptmst.data.written import Advance, PictureSet, Sample

PACKAGE = Package("tuxpaint-stamps-default", Path("/usr/share/tuxpaint/stamps"))
LICENSE = "GPL-2.0-or-later"
CREDIT = f"Tux Paint stamps, by Bill Kendrick and contributors, {LICENSE}, https://tuxpaint.org"
VAL, TEST = 0.1, 0.8
"""Shares of the things: it is a set to score on."""


def stamps() -> PictureSet:
    """Raises InputError where the packages that it is made of are missing."""
    refuse_missing("stamps", PACKAGE)
    pictures = found(PACKAGE.folder)

    def samples(advance: Advance) -> Iterator[Sample]:
        pngs = drawn_pictures(pictures, advance)
        kept = [picture for picture in pictures if picture.name in pngs]
        group_of = groups(kept, pngs)
        return asked_once(kept, pngs, group_of, dealt(group_of.values(), VAL, TEST))

    return PictureSet(
        name="stamps",
        made_of=made_with(PACKAGE),
        credits=Credits(LICENSE, (CREDIT,)),
        samples=samples,
        count=len(pictures),
    )


def found(folder: Path) -> list[Found]:
    """The stamps of a folder: each has a text beside it, whose first line is a sentence in English."""
    # Where there are both, the PNG is as its authors saw it, with their fonts.
    pictures = {path.with_suffix(""): path for suffix in (".svg", ".png") for path in listed(folder, suffix)}
    texts = {text.with_suffix(""): text.read_text("utf-8", errors="replace") for text in listed(folder, ".txt")}
    return [
        Found(f"{stem.relative_to(folder).as_posix()}.png", pictures[stem], (sentence,))
        for stem, text in texts.items()
        if stem in pictures and words(sentence := " ".join(text.partition("\n")[0].split()))
    ]
