"""The data set "drawings": emoji, clip art and stamps as one, for measuring; no thing is in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from ptmst.data import clipart, stamps
from ptmst.data.credits import Credits
from ptmst.data.drawn import dealt
from ptmst.data.installed import Found, asked_once, drawn_pictures, groups, made_with, refuse_missing
from ptmst.data.shipped import emoji
from ptmst.data.things import thing
from ptmst.data.written import Advance, PictureSet, Sample

LICENSE = "Apache-2.0 AND CC-BY-4.0 AND CC-PDDC AND GPL-2.0-or-later AND MIT AND Unicode-3.0"
VAL, TEST = 0.06, 0.14
"""Shares of the things that are no emoji."""


def drawings() -> PictureSet:
    """Raises InputError where the packages that it is made of are missing."""
    refuse_missing("drawings", clipart.PACKAGE, stamps.PACKAGE)
    shipped = emoji()
    pictures = [
        replace(picture, name=f"{folder}/{picture.name}")
        for folder, found in (
            ("clipart", clipart.found(clipart.PACKAGE.folder)),
            ("stamps", stamps.found(stamps.PACKAGE.folder)),
        )
        for picture in found
    ]

    def samples(advance: Advance) -> Iterator[Sample]:
        split_of = dict[str, str]()
        for split, name, content, captions in shipped.samples(advance):
            split_of[thing(captions[0])] = split
            yield split, f"emoji/{name}", content, captions
        pngs = drawn_pictures(pictures, advance)
        yield from sorted_out([picture for picture in pictures if picture.name in pngs], pngs, split_of)

    return PictureSet(
        name="drawings",
        made_of={**shipped.made_of, **made_with(clipart.PACKAGE, stamps.PACKAGE)},
        credits=Credits(LICENSE, (*shipped.credits.credits, clipart.CREDIT, stamps.CREDIT)),
        samples=samples,
        count=shipped.count + len(pictures),
        licenses=f"{clipart.CREDIT}\n{stamps.CREDIT}\n\n{shipped.licenses}",
    )


def sorted_out(pictures: Sequence[Found], pngs: Mapping[str, bytes], split_of: Mapping[str, str]) -> Iterator[Sample]:
    """The pictures as samples, where `split_of` things is settled.

    A picture goes where the things are that its captions name, and all pictures of its group with it. Those that are
    torn between two splits are left out.
    """
    words_of = {known: frozenset(known.split()) for known in split_of}
    wanted = {one.name: {split_of[known] for known in named(one.captions, words_of)} for one in pictures}
    pictures = [one for one in pictures if len(wanted[one.name]) <= 1]
    group_of = groups(pictures, pngs)
    wanted_by = defaultdict[str, set[str]](set)
    for name, group in group_of.items():
        wanted_by[group] |= wanted[name]
    settled = {
        **dealt((group for group, splits in wanted_by.items() if not splits), VAL, TEST),
        **{group: next(iter(splits)) for group, splits in wanted_by.items() if len(splits) == 1},
    }
    whole = [one for one in pictures if group_of[one.name] in settled]
    yield from asked_once(whole, pngs, group_of, settled)


def named(captions: Collection[str], words_of: Mapping[str, frozenset[str]]) -> set[str]:
    """The things that captions name: all words of each are among theirs, and are not part of another such thing."""
    parts = (part for caption in captions for part in caption.split(", "))
    words = frozenset(word for part in parts for word in thing(part).split())
    found = [known for known, own in words_of.items() if own <= words]
    return {known for known in found if not any(words_of[known] < words_of[other] for other in found)}
