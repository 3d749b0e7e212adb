"""WebDataset shards, as open_clip reads them: tar files whose members of one key, image and caption, are a pair.

Captions of CLIP_benchmark's retrieval sets, one a line, are told by the marker file beside them.
"""

from __future__ import annotations

import glob
import math
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ptmst.data.annotations import (
    SPLITS,
    Annotations,
    Fault,
    ImageBytes,
    Item,
    counted,
    gather,
    inside,
    kind,
    texts_of,
    told,
)
from ptmst.data.contents import decoded, head_of, library, matches, parsed, path_shown, refuse_other, shown
from ptmst.errors import InputError
from ptmst.support import kinds

_IMAGES = ("jpg", "png", "jpeg", "webp")
_TAIL_BYTES = 1024**2
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")
_MOST_PATTERNS = 1_000_000
"""Files that braces may name."""
_HOPS = 8
"""Links to links that are followed."""
_MARKER, _COUNT = "dataset_type.txt", "nshards.txt"
"""What CLIP_benchmark writes: the kind of a set, in its folder; how many tar files a split has, in the split's."""
_AGAIN = "pack the sample again"


class _Member(NamedTuple):
    """A file in a tar file."""

    name: str
    content: tarfile.TarInfo | None
    """Where its bytes are; None for a link to what is not in the tar file."""


_Sample = Mapping[str, list[_Member]]
"""Members by suffix; more than one of a suffix are a mistake."""


@dataclass(frozen=True)
class Shards:
    """Tar files that a pattern names; {split} in it stands for the split's name, and without it all are train."""

    pattern: str
    """Path with * and {0..9}, relative to the root, or absolute but inside it."""
    splits: tuple[str, ...] = SPLITS

    def present(self, root: Path) -> tuple[str, ...]:
        splits = self.splits if "{split}" in self.pattern else ("train",)
        return tuple(split for split in splits if any(self._files(root, split).values()))

    def read(self, root: Path, split: str, fault: Fault | None = None) -> Annotations:
        """Only headers and captions are read: an image is read where its tar file holds it."""
        origin = path_shown(root / self.pattern.replace("{split}", split))
        if split != "train" and "{split}" not in self.pattern:
            raise InputError(f"{origin}: expected {{split}} in the pattern, for split {split}, found none; write it in")
        named = self._files(root, split)
        shards = sorted({file for files in named.values() for file in files})
        if not shards:
            raise InputError(f"{origin}: expected tar files of that name, found none; check the pattern and the root")
        if nothing := [pattern for pattern, files in named.items() if not files]:
            told(
                f"{origin}: expected files of {len(named):,} names, found none of {len(nothing):,} of them, the first "
                f"{shown(nothing[0])}; fetch what is missing, or name what there is",
                fault,
            )
        if others := [file for file in shards if file.suffix != ".tar" and not tarfile.is_tarfile(file)]:
            told(
                f"{origin}: expected tar files alone, found {counted(others, 'other file')} of that name, the first "
                f"{shown(str(others[0]))}; end the pattern with .tar",
                fault,
            )
        several_lines: list[str] = []

        def item_of(found: tuple[Path, bool, str, _Sample]) -> Item:
            shard, is_retrieval, key, sample = found
            where = f"{shard}: sample {shown(key)}"
            for members in sample.values():
                if len(members) > 1:
                    names = " and ".join(shown(member.name) for member in members)
                    raise InputError(f"{where}: expected one file of each kind, found {names}; pack each sample once")
            image = next((sample[suffix][0] for suffix in _IMAGES if suffix in sample), None)
            if image is None:
                raise InputError(f"{where}: expected one of {', '.join(_IMAGES)}, found {_suffixes(sample)}; add it")
            name = f"{inside(os.path.abspath(shard), root, where)}/{image.name}"
            place, captions = _place(shard, image, where), _captions(shard, sample, where)
            if "txt" in sample and len(captions) == 1:
                lines = [line for line in re.split(r"\r?\n", captions[0]) if line.strip()]
                if is_retrieval:
                    captions = [line.replace("\\n", "\n") for line in lines] or captions
                elif len(lines) > 1:
                    several_lines.append(name)
            return Item(name, captions, place)

        remarks: list[str] = []
        samples = _samples([file for file in shards if file not in others], root, fault, remarks)
        annotations = gather(samples, item_of, fault, origin=origin, remedy="fetch the tar files again")
        if not annotations.image_names:
            raise InputError(f"{origin}: expected at least one pair, found none in its tar files; check the pattern")
        if several_lines:
            remarks.append(
                f"{origin}: {counted(several_lines, 'txt')} of several lines, the first of {shown(several_lines[0])}, "
                f"{'is' if len(several_lines) == 1 else 'are'} read as one caption each; if every line is a caption, "
                f'write "retrieval" into {root / _MARKER}'
            )
        return replace(annotations, remarks=(*remarks, *_fewer_than_counted(shards)))

    def _files(self, root: Path, split: str) -> dict[str, list[Path]]:
        """The files of each pattern without braces, in the order of the patterns."""
        braceexpand = library("braceexpand", "wds", "wds").braceexpand
        if math.prod(abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(self.pattern)) > _MOST_PATTERNS:
            raise InputError(
                f"wds:{shown(self.pattern)}: expected braces that name at most {_MOST_PATTERNS:,} files, found more; "
                "use *"
            )
        above, pattern = glob.escape(str(root)), self.pattern.replace("{split}", split)
        try:
            patterns = list(dict.fromkeys(braceexpand(pattern)))
        except ValueError as error:
            raise InputError(
                f"wds:{shown(self.pattern)}: expected balanced braces, found unbalanced ones ({shown(str(error))}); "
                "fix it"
            ) from error
        except RecursionError:
            raise InputError(
                f"wds:{shown(self.pattern)}: expected a few braces, found {self.pattern.count('{'):,}; use *"
            ) from None
        found = {name: matches(os.path.join(above, name)) for name in patterns}
        return {name: [path for path in paths if path.is_file()] for name, paths in found.items()}


def _samples(
    shards: list[Path], root: Path, fault: Fault | None, remarks: list[str]
) -> Iterator[tuple[Path, bool, str, _Sample]]:
    """Of every tar file, whether each line of a txt is a caption, and its samples by their keys."""
    for shard in shards:
        try:
            members, ended = _members(shard)
        except InputError as error:
            told(str(error), fault)
            continue
        marker = next((member for member in members if posixpath.normpath(member.name) == _MARKER), None)
        samples = _grouped([member for member in members if member is not marker])
        if not samples:
            told(f"{shard}: expected samples, found an empty tar file; fetch it again or take it away", fault)
        if not ended:
            remarks.append(f"{shard}: has no mark at its end, and may have been cut off; compare its size")
        is_retrieval = _says_retrieval(_content(shard, marker, str(shard))) if marker else _is_retrieval(shard, root)
        yield from ((shard, is_retrieval, key, sample) for key, sample in samples.items())


def _members(shard: Path) -> tuple[list[_Member], bool]:
    """The files in a tar file, in their order, and whether it has the mark of its end.

    Links stand for what they point at. What macOS, Windows and WebDataset itself add is passed over.
    """
    refuse_other(head_of(shard), str(shard), "a whole, uncompressed tar file", kinds.TAR)
    try:
        with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            infos = []
            for info in tar:
                if info.size < 0:  # tarfile would go backwards
                    raise tarfile.ReadError(f"a size of {info.size} bytes")
                infos.append(info)
            # tarfile takes a broken header for the end; what truly ends a tar file is nothing but zeros.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            tail = tar.fileobj.read(_TAIL_BYTES)
            if any(tail):
                raise tarfile.ReadError(f"no header at byte {tar.offset}, and more after it")
    except (tarfile.TarError, OSError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise InputError(
            f"{shard}: expected a whole, uncompressed tar file, found a mistake ({error}); fetch it again"
        ) from error
    by_name = {posixpath.normpath(info.name): info for info in infos}
    files = (info for info in infos if (info.isreg() or info.islnk() or info.issym()) and not _is_extra(info.name))
    return [_Member(_unicode(info.name), _target(info, by_name)) for info in files], bool(tail)


def _is_extra(name: str) -> bool:
    parts = posixpath.normpath(name).split("/")
    return parts[-1].startswith(".") or "__MACOSX" in parts or re.fullmatch(r"__[^/]*__", parts[0]) is not None


def _target(info: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The member that a link points at, in the end."""
    for _ in range(_HOPS):
        if info.isreg():
            return info
        above = posixpath.dirname(info.name) if info.issym() else ""
        linked = by_name.get(posixpath.normpath(posixpath.join(above, info.linkname)))
        if linked is None:
            return None
        info = linked
    return None


def _unicode(name: str) -> str:
    """A member's name; one whose bytes are no UTF-8 is taken for Latin-1, in which all bytes mean something."""
    content = name.encode("utf-8", "surrogateescape")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _grouped(members: list[_Member]) -> dict[str, dict[str, list[_Member]]]:
    """Samples by key, adjacent or not: the key is what stands before the last dot.

    WebDataset itself takes the first dot, where 1.1.jpg and 1.2.jpg were one sample. What it means by that, such as
    KEY.mask.png beside KEY.jpg and KEY.txt, is no sample of its own but part of KEY's.
    """
    samples: dict[str, dict[str, list[_Member]]] = {}
    for member in members:
        key, suffix = posixpath.splitext(posixpath.normpath(member.name))
        if suffix:
            samples.setdefault(key, {}).setdefault(suffix[1:].lower(), []).append(member)
    for key in list(samples):
        if not _is_whole(samples[key]) and (shorter := _key_of_part(key, samples)):
            for suffix, parts in samples.pop(key).items():
                samples[shorter].setdefault(f"{key[len(shorter) + 1 :]}.{suffix}", []).extend(parts)
    return samples


def _is_whole(sample: _Sample) -> bool:
    return any(suffix in sample for suffix in _IMAGES) and ("txt" in sample or "json" in sample)


def _key_of_part(key: str, samples: Mapping[str, _Sample]) -> str | None:
    """The sample that KEY.mask.png is part of. Nobody names parts by numbers."""
    folder, slash, name = key.rpartition("/")
    while True:
        name, dot, part = name.rpartition(".")
        if not dot or part.isdigit():
            return None
        if (shorter := f"{folder}{slash}{name}") in samples:
            return shorter


def _captions(shard: Path, sample: _Sample, where: str) -> list[str]:
    """Of the member txt or, where there is none, the "caption" in json."""
    if "txt" in sample:
        return texts_of(decoded(_content(shard, sample["txt"][0], where), where, _AGAIN), where)
    if "json" not in sample:
        raise InputError(f"{where}: expected a caption in txt or json, found {_suffixes(sample)}; add it")
    value = parsed(_content(shard, sample["json"][0], where), where, _AGAIN)
    if not isinstance(value, dict) or "caption" not in value:
        raise InputError(f'{where}: expected "caption" in its json, found {kind(value)} without it; add it')
    return texts_of(value["caption"], where)


def _content(shard: Path, member: _Member, where: str) -> bytes:
    return _place(shard, member, where).read()


def _place(shard: Path, member: _Member, where: str) -> ImageBytes:
    if member.content is None:
        raise InputError(
            f"{where}: expected a file, found {shown(member.name)}, a link to what is not in the tar file; pack with "
            "tar --dereference"
        )
    if member.content.issparse():
        raise InputError(f"{where}: expected a whole file, found {shown(member.name)} sparse; pack without --sparse")
    return ImageBytes(shard, member.content.offset_data, member.content.size)


def _suffixes(sample: _Sample) -> str:
    return shown(" and ".join(sorted(sample)))


def _is_retrieval(shard: Path, root: Path) -> bool:
    """Whether a marker in the folder of a tar file, or above it up to the root, says that a line is a caption."""
    base = Path(os.path.abspath(root))
    for folder in Path(os.path.abspath(shard)).parents:
        if (folder / _MARKER).is_file():
            return _says_retrieval((folder / _MARKER).read_bytes())
        if folder == base:
            break
    return False


def _says_retrieval(content: bytes) -> bool:
    return content.decode("utf-8-sig", "replace").strip().lower() == "retrieval"


def _fewer_than_counted(shards: list[Path]) -> Iterator[str]:
    """A remark on each folder that has fewer tar files than CLIP_benchmark's count in it says."""
    for folder in dict.fromkeys(shard.parent for shard in shards):
        count = folder / _COUNT
        words = count.read_bytes()[:20].split() if count.is_file() else []
        there = len(list(folder.glob("*.tar")))
        if len(words) == 1 and words[0].isdigit() and int(words[0]) > there:
            yield f"{folder}: has {there:,} tar files of the {int(words[0]):,} that {_COUNT} counts; fetch the rest"
