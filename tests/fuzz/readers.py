"""Independent readers: what Python's csv, json and tarfile, pyarrow and OpenCV make of a file."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq

from fuzz.samples import NAMES


class Pair(NamedTuple):
    """A caption and its image, which is a path or bytes."""

    image: str | bytes
    caption: str


def pairs(form: str, content: bytes) -> list[Pair]:
    """Training pairs of a file in their order. Raises anything where it is none."""
    return list(_READERS[form](content))


def _text(content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return content.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "strict")


def _of_table(separator: str) -> Callable[[bytes], Iterator[Pair]]:
    def read(content: bytes) -> Iterator[Pair]:
        file = io.StringIO(_text(content), newline="")
        header, *rows = (row for row in csv.reader(file, delimiter=separator, strict=True) if row)
        for row in rows:
            yield from _of_entry(dict(zip((cell.strip() for cell in header), row, strict=True)))

    return read


def _of_lines(content: bytes) -> Iterator[Pair]:
    for line in re.split(r"[\r\n]+", _text(content)):
        if line.strip("\ufeff \t"):
            yield from _of_entry(json.loads(line.strip("\ufeff")))


def _of_entry(entry: dict[str, object]) -> Iterator[Pair]:
    if entry.get("split", "train") != "train":
        return
    image, caption = ("image", "caption") if {"image", "caption"} <= entry.keys() else ("filepath", "title")
    captions = entry[caption] if isinstance(entry[caption], list) else [entry[caption]]
    for text in captions:  # type: ignore[attr-defined]
        yield Pair(path(entry[image]), text)


def _of_list(content: bytes) -> Iterator[Pair]:
    for entry in json.loads(content):
        captions = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
        yield from (Pair(path(entry["image"]), text) for text in captions)


def _of_karpathy(content: bytes) -> Iterator[Pair]:
    for entry in json.loads(content)["images"]:
        if entry["split"] in ("train", "restval"):
            folder = entry.get("filepath", "Flicker8k_Dataset")
            for sentence in entry["sentences"]:
                yield Pair(path(f"{folder}/{entry['filename']}" if folder else entry["filename"]), sentence["raw"])


def path(name: object) -> str:
    """A relative path in its plain form; anything else raises."""
    assert isinstance(name, str) and name
    plain = PurePath(name)
    assert not plain.is_absolute() and ".." not in plain.parts
    return plain.as_posix()


def _of_tar(content: bytes) -> Iterator[Pair]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        opened = {member.name: tar.extractfile(member) for member in tar if member.isreg()}
        files = {name: file.read() for name, file in opened.items() if file}
    for name, image in files.items():
        stem, _, suffix = name.rpartition(".")
        if suffix.lower() not in ("png", "jpg", "jpeg", "webp"):
            continue
        if f"{stem}.txt" in files:
            yield Pair(image, files[f"{stem}.txt"].decode("utf-8-sig"))
        else:
            captions = json.loads(files[f"{stem}.json"])["caption"]
            yield from (Pair(image, text) for text in (captions if isinstance(captions, list) else [captions]))


def _of_parquet(content: bytes) -> Iterator[Pair]:
    for row in pq.read_table(io.BytesIO(content)).to_pylist():
        if row.get("split", "train") != "train":
            continue
        image, caption = row["image"], row["caption"] if "caption" in row else row["text"]
        if isinstance(image, dict):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        for text in caption if isinstance(caption, list) else [caption]:
            yield Pair(path(image) if isinstance(image, str) else image, text)


_READERS: dict[str, Callable[[bytes], Iterator[Pair]]] = {
    "csv": _of_table(","),
    "tsv": _of_table("\t"),
    "jsonl": _of_lines,
    "list": _of_list,
    "karpathy": _of_karpathy,
    "wds": _of_tar,
    "parquet": _of_parquet,
}
assert _READERS.keys() == NAMES.keys()


_ORIENTED = b"\x01\x12\0\x03\0\0\0\x01\0"
"""How EXIF, in the byte order of the samples, begins to tell an orientation; OpenCV takes any other type for it too."""


def picture(content: bytes) -> np.ndarray | None:
    """RGB as float64 [H, W, 3] in 0 … 255, upright, on white; None where there is no picture."""
    if content.startswith(b"GIF"):
        return gif(content)  # OpenCV refuses those whose code ends early
    encoded = np.frombuffer(content, np.uint8)
    found = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if len(encoded) else None
    if found is None:
        return None
    if found.ndim == 3 and found.shape[2] == 4:
        color, alpha = np.split(found / most(found), [3], axis=2)
        return np.asarray(255 * (color[..., ::-1] * alpha + 1 - alpha))
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    plain = cv2.imdecode(encoded, flags if _ORIENTED in content else flags | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if plain is None else plain[..., ::-1] * (255 / most(plain))


def most(image: np.ndarray) -> float:
    """White."""
    return 65535.0 if image.dtype == np.uint16 else 255.0


_MOST_PIXELS = 10**6


def gif(content: bytes) -> np.ndarray:
    """The first frame of a GIF without extensions, by hand, on white; a code that ends early leaves color 0."""
    width, height = struct.unpack_from("<HH", content, 6)
    palette, at = _palette(content, content[10], 13)
    left, top, across, down, flags = struct.unpack_from("<HHHHB", content, at + 1)
    if max(height, top + down) * max(width, left + across) > _MOST_PIXELS:
        raise ValueError("more pixels than can be drawn by hand")
    own, at = _palette(content, flags, at + 10)
    bits, at, code = content[at], at + 1, b""
    while at < len(content) and content[at]:
        code += content[at + 1 : at + 1 + content[at]]
        at += content[at] + 1
    colors = np.zeros((256, 3))
    colors[: len(own if len(own) else palette)] = own if len(own) else palette
    values = np.array(_unpacked(code, bits, across * down)).reshape(down, across)
    if flags & 0x40:  # interlaced
        order = [row for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for row in range(first, down, step)]
        values[order] = values.copy()
    page = np.full((max(height, top + down), max(width, left + across), 3), 255.0)
    page[top : top + down, left : left + across] = colors[values]
    return page


def _palette(content: bytes, flags: int, at: int) -> tuple[np.ndarray, int]:
    """Colors [N, 3] of a table at `at`, if the flags say that there is one, and where it ends."""
    end = at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return np.frombuffer(content[at:end], np.uint8).reshape(-1, 3), end


def _unpacked(code: bytes, bits: int, count: int) -> list[int]:
    """LZW: `count` values of codes that begin with `bits` + 1 bits."""
    stream, held = int.from_bytes(code, "little"), 8 * len(code)
    table: list[list[int]] = []
    values: list[int] = []
    size, before = bits + 1, list[int]()
    while held >= size and len(values) < count:
        number, stream, held = stream & (1 << size) - 1, stream >> size, held - size
        if number == 1 << bits:
            table, size, before = [[i] for i in range(1 << bits)] + [[], []], bits + 1, []
            continue
        if number == (1 << bits) + 1:
            break
        own = table[number] if number < len(table) else [*before, before[0]]
        values += own
        if before and len(table) < 4096:
            table.append([*before, own[0]])
        if len(table) == 1 << size and size < 12:
            size += 1
        before = own
    return (values + [0] * count)[:count]
