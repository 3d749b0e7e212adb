"""A look at a whole data set before anything is trained on it: every image decoded, every mistake named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ptmst.data.annotations import NAMED, Annotations, counted
from ptmst.data.captions import clean_caption, has_unseen, is_short, is_unspaced
from ptmst.data.ceilings import best_recalls, shared_captions
from ptmst.data.contents import check_length, shown
from ptmst.data.credits import read_credits
from ptmst.data.images import DECODERS, decode
from ptmst.data.karpathy import Karpathy
from ptmst.data.sources import source_of
from ptmst.errors import InputError
from ptmst.support import files
from ptmst.support.progress import bar

_GRAY = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}
_COLUMNS = (
    *("split", "images", "captions", "per image", "shared", "missing", "unreadable"),
    *("gray", "CMYK", "rotated", "sizes"),
)


@dataclass(frozen=True)
class SplitReport:
    """What one split holds."""

    split: str
    images: int
    captions: int
    per_image: tuple[int, float, int]
    """Fewest, mean and most captions of an image."""
    shared: int
    """Captions that another image has too."""
    empty: int
    """Captions that say nothing; they are left out, and not counted among the captions."""
    missing: int
    """Images without a file."""
    unreadable: int
    """Images whose bytes are not a whole image, or too large a one."""
    gray: int
    cmyk: int
    rotated: int
    """Images stored in another orientation than they are seen in; they are read upright."""
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    """Width and height, pixels, of the images with the fewest and the most pixels; none = there is no image."""


@dataclass(frozen=True)
class Report:
    """What a data set holds, and what is wrong with it."""

    name: str
    root: Path
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]
    """One line each; none = the set can be used as it is."""
    remarks: tuple[str, ...] = ()
    """What to know although nothing is wrong, one line each."""

    def rows(self) -> list[tuple[str, ...]]:
        """A table: the heads of its columns, then a row for each split."""
        return [_COLUMNS, *(_row(split) for split in self.splits)]


@dataclass(frozen=True)
class _Look:
    """What decoding one image showed."""

    digest: str
    mode: str
    rotated: bool
    size: tuple[int, int]
    color: float | tuple[int, ...] | None
    """The only color there is; none = there is something to see."""


def check(name: str, root: Path | str, image_column: str | None = None, caption_column: str | None = None) -> Report:
    """Read every annotation and decode every image of the splits that there are; progress goes to stderr.

    Names and columns are those of `load_pairs`. Nothing that is wrong with the data ends it. Raises InputError only for
    a name that is no data set's, a root that is no path, and columns where there are none.
    """
    source, root = source_of(name, image_column, caption_column), Path(root)
    check_length(str(root), "root")
    problems: list[str] = []
    remarks: list[str] = []
    splits: list[SplitReport] = []
    published: dict[str, tuple[int, int]] = {}
    """Images and captions of each split, with those that are left out."""
    splits_of: dict[str, list[str]] = {}
    """Of each image name."""
    images_of: dict[str, list[tuple[str, str]]] = {}
    """Split and name, of each SHA-256."""
    try:
        present = source.present(root) or source.splits[:1]
    except InputError as error:
        return Report(name, root, (), (str(error),))
    try:
        read_credits(root)
    except InputError as error:
        problems.append(str(error))
    for split in present:
        faults: list[str] = []
        try:
            annotations, absent = source.read(root, split, faults.append).located(root)
        except InputError as error:
            problems += [*_first(faults, f"{root}: {split}", "entries that cannot be used"), str(error)]
            continue
        names, origin = annotations.image_names, annotations.origin
        looks = _look(annotations, root, set(absent), f"check {split}")
        unreadable = [look for look in looks.values() if isinstance(look, str)]
        decoded = {i: look for i, look in looks.items() if isinstance(look, _Look)}
        problems += _first(faults, origin, "entries that cannot be used")
        if absent:
            lost = _some([names[i] for i in absent])
            problems.append(f"{origin}: {counted(absent, 'image')} missing under {root}: {lost}; {annotations.remedy}")
        problems += _first(unreadable, origin, "images that cannot be read")
        if annotations.wordless:
            problems.append(annotations.left_out())
        blank = [names[i] for i, look in decoded.items() if look.color is not None]
        if blank and len({look.color for look in decoded.values()}) == 1:
            problems.append(
                f"{origin}: expected images that show something, found {counted(blank, 'image')} of the same single "
                "color; what is transparent lies on white: save them on a background that they can be seen on"
            )
        elif blank:
            remarks.append(f"{origin}: {counted(blank, 'image')} of a single color, once on white: {_some(blank)}")
        remarks += [
            *annotations.remarks,
            *_remarks(annotations, split, {i: look.digest for i, look in decoded.items()}),
        ]
        for image in names:
            splits_of.setdefault(image, []).append(split)
        for i, look in decoded.items():
            images_of.setdefault(look.digest, []).append((split, names[i]))
        splits.append(_report(split, annotations, len(absent), len(unreadable), list(decoded.values())))
        images = len(set(names) | set(annotations.wordless))
        published[split] = images, len(annotations.captions) + len(annotations.wordless)
    problems += [*_in_several_splits(splits_of), *_identical(images_of.values())]
    if isinstance(source, Karpathy) and splits:
        problems += _other_than_published(name, source.published, published)
    # A file of all splits is read once for each of them.
    return Report(name, root, tuple(splits), tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(remarks)))


def _remarks(annotations: Annotations, split: str, digest_of: Mapping[int, str]) -> Iterator[str]:
    """What is as it is in many sets, and changes what numbers mean."""
    origin, names, captions = annotations.origin, annotations.image_names, annotations.captions
    unspaced = [i for i, text in enumerate(captions) if is_unspaced(text)]
    if unspaced:
        yield (
            f"{origin}: {counted(unspaced, 'caption')} in a script without spaces between words, the first "
            f"{shown(captions[unspaced[0]])}; the tower `hashed` takes its characters for words, and max_words counts "
            "spaces alone"
        )
    short = [i for i, text in enumerate(captions) if is_short(text)]
    if short:
        yield (
            f"{origin}: {counted(short, 'caption')} of single letters or signs, the first {shown(captions[short[0]])}; "
            "the tower `hashed`, which asks for words of two letters, embeds them alike"
        )
    unseen = [i for i, text in enumerate(captions) if has_unseen(text)]
    if unseen:
        yield (
            f"{origin}: {counted(unseen, 'caption')} with characters that cannot be seen, the first "
            f"{shown(captions[unseen[0]])}; they are read as they are"
        )
    cleaned = _cleaned(annotations)
    if shared := shared_captions(cleaned, annotations.image_of_text):
        best = best_recalls(cleaned, annotations.image_of_text)
        ir, tr = (", ".join(f"{best[f'{name}{k}']:.2f}" for k in (1, 5, 10)) for name in ("ir", "tr"))
        trained = "; in a batch they are negatives of one another" if split == "train" else ""
        yield (
            f"{origin}: {split} has {counted(shared, 'caption')} of {len(cleaned):,} that several images have, the "
            f"first {shown(shared[0])}; recall asks for one of these images, so it is at best IR@1/5/10 {ir}, "
            f"TR@1/5/10 {tr}, mean {best['mean']:.2f} (`ptmst evaluate --count-equal-captions` takes any of them)"
            f"{trained}"
        )
    alike: dict[str, list[str]] = {}
    for i, digest in digest_of.items():
        alike.setdefault(digest, []).append(names[i])
    twins = [" = ".join(group) for group in alike.values() if len(group) > 1]
    if twins:
        yield f"{origin}: {counted(twins, 'image')} under several names: {_some(twins)}; recall asks for one of them"


def _look(annotations: Annotations, root: Path, absent: set[int], label: str) -> dict[int, _Look | str]:
    """What each image that has a file shows, or what is wrong with it."""

    def look(index: int) -> _Look | str:
        place = annotations.places[index]
        try:
            picture = decode(place, root / annotations.image_names[index])
        except InputError as error:
            return str(error)
        colors = picture.upright.getcolors(1)  # none, where there are more
        color = colors[0][1] if colors else None
        return _Look(files.sha256(place.read()), picture.mode, picture.rotated, picture.upright.size, color)

    there = [i for i in range(len(annotations.places)) if i not in absent]
    looks: dict[int, _Look | str] = {}
    with bar(label, len(there)) as progress, ThreadPoolExecutor(DECODERS) as pool:
        for i, result in zip(there, pool.map(look, there), strict=True):
            looks[i] = result
            progress.advance()
    return looks


def _cleaned(annotations: Annotations) -> list[str]:
    return [clean_caption(caption) for caption in annotations.captions]


def _report(split: str, annotations: Annotations, missing: int, unreadable: int, looks: Sequence[_Look]) -> SplitReport:
    counts = Counter(annotations.image_of_text).values()
    sizes = sorted((look.size for look in looks), key=lambda size: (size[0] * size[1], size))
    return SplitReport(
        split=split,
        images=len(annotations.image_names),
        captions=len(annotations.captions),
        per_image=(min(counts), sum(counts) / len(counts), max(counts)) if counts else (0, 0.0, 0),
        shared=len(shared_captions(_cleaned(annotations), annotations.image_of_text)),
        empty=len(annotations.wordless),
        missing=missing,
        unreadable=unreadable,
        gray=sum(look.mode in _GRAY for look in looks),
        cmyk=sum(look.mode == "CMYK" for look in looks),
        rotated=sum(look.rotated for look in looks),
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
    )


def _other_than_published(
    name: str, published: Mapping[str, tuple[int, int]], sizes: Mapping[str, tuple[int, int]]
) -> Iterator[str]:
    """A download that is not whole, or of another version."""
    for split in ("train", "val", "test"):
        counts = published.get(split)
        what = f"{counts[0]:,} images with {counts[1]:,} captions" if counts else "annotations"
        expected = f"{name} {split}: expected {what}"
        if split not in sizes:
            yield f"{expected}, found no annotations; add them"
        elif counts and sizes[split] != counts:
            yield f"{expected}, found {sizes[split][0]:,} with {sizes[split][1]:,}; fetch the annotations again"


def _in_several_splits(splits_of: Mapping[str, Sequence[str]]) -> Iterator[str]:
    shared: dict[str, list[str]] = {}
    for image, splits in splits_of.items():
        if len(splits) > 1:
            shared.setdefault(" and ".join(splits), []).append(image)
    for in_splits, images in shared.items():
        yield f"{in_splits}: {counted(images, 'image')} in each of them: {_some(images)}; keep each in one"


def _identical(groups: Iterable[Sequence[tuple[str, str]]]) -> Iterator[str]:
    shared: dict[str, list[str]] = {}
    for group in groups:
        splits, names = (list(dict.fromkeys(column)) for column in zip(*group, strict=True))
        # Twice within a split is how data come; in two splits it is a leak.
        if len(names) > 1 and len(splits) > 1:
            shared.setdefault(" and ".join(splits), []).append(" = ".join(names))
    for in_splits, images in shared.items():
        yield f"{in_splits}: {counted(images, 'image')} of the same bytes: {_some(images)}; keep one of each"


def _first(lines: Sequence[str], origin: str, what: str) -> list[str]:
    more = len(lines) - NAMED
    return [*lines[:NAMED], *([f"{origin}: {more} more {what}"] if more > 0 else [])]


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(map(shown, names[:NAMED])) + (f" and {more} more" if more > 0 else "")


def _row(split: SplitReport) -> tuple[str, ...]:
    fewest, mean, most = split.per_image
    counts = (split.shared, split.missing, split.unreadable, split.gray, split.cmyk, split.rotated)
    sizes = [f"{size[0]}×{size[1]}" for size in (split.smallest, split.largest) if size]
    return (
        split.split,
        f"{split.images:,}",
        f"{split.captions:,}",
        f"{fewest} / {mean:.2f} / {most}",
        *(f"{count:,}" for count in counts),
        " … ".join(sizes),
    )
