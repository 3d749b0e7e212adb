"""Tables of pairs: CSV and TSV as open_clip (filepath, title) or Kaggle (image, caption) has them, and JSON lines."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from ptmst.data.annotations import SPLITS, Annotations, Fault, ImageBytes, Item, gather, inside, kind, texts_of
from ptmst.data.contents import check_length, encoding_of, head_of, is_whole, parsed, refuse_other, shown
from ptmst.errors import InputError

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BETWEEN = {"csv": "commas", "tsv": "tabs"}
_OTHER = {"csv": "tsv", "tsv": "csv"}
_NAMES = (("filepath", "title"), ("image", "caption"))
"""Columns of image and caption; JSON prefers the latter."""
_IMAGES = "put the images there, or fix the paths"
_SETTINGS = "--data.image-column and --data.caption-column"


class _Cells(NamedTuple):
    """A row of CSV or TSV."""

    header: list[str]
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """A file of rows, each an image and its caption; an image may have several rows.

    CSV and TSV have a header that names the columns; a JSONL row is an object with such keys, where the caption may be
    a list. A row's `split` says which split it is of; one without is of the split that the file's name gives in place
    of {split}, or else of train.
    """

    form: Literal["csv", "tsv", "jsonl"]
    path: str
    """The file, relative to the root or absolute; {split} in it stands for the split's name."""
    image_column: str | None = None
    """None = filepath or image."""
    caption_column: str | None = None
    """None = title or caption."""
    splits: tuple[str, ...] = SPLITS

    def present(self, root: Path) -> tuple[str, ...]:
        if "{split}" in self.path:
            return tuple(split for split in self.splits if os.path.isfile(self._file(root, split)))
        present = set()
        for where, row in self._rows(root, "train"):
            try:
                present.add(self._split(_fields(row, where), "train", where))
            except InputError:  # `read` tells of it
                continue
        return tuple(split for split in self.splits if split in present)

    def read(self, root: Path, split: str, fault: Fault | None = None) -> Annotations:
        unmarked = split if "{split}" in self.path else "train"
        others: set[str] = set()
        empty = True

        def item_of(numbered: tuple[str, str | _Cells]) -> Item | None:
            nonlocal empty
            empty = False
            where, row = numbered
            fields = _fields(row, where)
            if (of := self._split(fields, unmarked, where)) != split:
                others.add(of)
                return None
            return self._item(fields, root, where)

        file = self._file(root, split)
        annotations = gather(self._rows(root, split), item_of, fault, origin=str(file), remedy=_IMAGES)
        if not annotations.image_names:
            found = " and ".join(sorted(others)) or ("no rows" if empty else "none that can be used")
            raise InputError(
                f"{file}: expected rows of split {split}, found {found}; "
                "name the split of each row in a column `split`, or have a file per split and write {split} in its name"
            )
        return annotations

    def _file(self, root: Path, split: str) -> Path:
        path = self.path.replace("{split}", split)
        check_length(str(root / path), self.form)
        return root / path

    def _rows(self, root: Path, split: str) -> Iterator[tuple[str, str | _Cells]]:
        """Rows and where each begins: cells, or a line of JSON as it is."""
        path = self._file(root, split)
        encoding = _encoding(path, self.form)
        try:
            # Bytes that are no UTF-8 pass for surrogates, so that their rows can be told.
            with open(path, encoding=encoding, errors="surrogateescape", newline="") as file:
                if self.form in _DELIMITERS:
                    yield from self._cells(file, path)
                else:
                    lines = enumerate((line.strip("\ufeff \t\r\n") for line in file), 1)
                    yield from ((f"{path}: line {i}", line) for i, line in lines if line)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: expected {encoding.upper()}, as its byte order mark says, found other bytes "
                f"({error.reason}); save the file as UTF-8"
            ) from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights and its disk") from error

    def _cells(self, file: TextIO, path: Path) -> Iterator[tuple[str, _Cells]]:
        rows = csv.reader(file, delimiter=_DELIMITERS[self.form], strict=True)
        header: list[str] = []
        first, number = 1, 0
        try:
            for cells in rows:
                if cells and header:
                    number += 1
                    yield f"{path}: line {first}", _Cells(header, cells)
                elif cells:
                    header = self._checked([cell.strip() for cell in cells], f"{path}: line {first}")
                first = rows.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path}: line {first}: expected a row of cells, found a mistake in row {number + bool(header)} "
                f"({shown(str(error))}), perhaps a quote that is never closed; write a quote inside a quoted cell twice"
            ) from None
        if not header:
            self._checked([], f"{path}: line 1")

    def _checked(self, header: list[str], where: str) -> list[str]:
        """A header that has each column that is needed once."""
        candidates = self._candidates(_NAMES)
        names = next((names for names in candidates if all(name in header for name in names)), None)
        if names is not None and all(header.count(name) == 1 for name in names) and header.count("split") < 2:
            return header
        wanted = " or ".join(" and ".join(map(shown, names)) for names in candidates)
        other = _OTHER[self.form]
        raise InputError(
            f"{where}: expected a header with one column each of {wanted}, and at most one split, found "
            f"{shown(header)}; name the columns with {_SETTINGS}; cells have {_BETWEEN[self.form]} between them, and "
            f"a file with {_BETWEEN[other]} is {other}:"
        )

    def _candidates(self, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Columns of image and caption that will do, the first that are there."""
        chosen = [(self.image_column or image, self.caption_column or caption) for image, caption in names]
        return list(dict.fromkeys(chosen))

    def _item(self, fields: Mapping[str, object], root: Path, where: str) -> Item:
        candidates = self._candidates(_NAMES if self.form in _DELIMITERS else _NAMES[::-1])
        names = next((names for names in candidates if all(name in fields for name in names)), None)
        if names is None:
            wanted, found = " and ".join(map(shown, candidates[0])), shown(sorted(fields))
            found = f"{kind(fields)} with {found}" if "annotations" in fields else found
            raise InputError(f"{where}: expected the keys {wanted}, found {found}; add them, or set {_SETTINGS}")
        image, caption = (fields[name] for name in names)
        if not isinstance(image, str) or not image:
            raise InputError(f"{where}: expected {shown(names[0])} to be a path, found {shown(repr(image))}; fix it")
        image = inside(image, root, where)
        return Item(image, texts_of(caption, where), ImageBytes(root / image))

    def _split(self, fields: Mapping[str, object], unmarked: str, where: str) -> str:
        split = fields.get("split", unmarked)
        if split not in self.splits:
            raise InputError(
                f"{where}: expected split to be {', '.join(self.splits)}, found {shown(repr(split))}; rename it"
            )
        return str(split)


def _encoding(path: Path, form: str) -> str:
    """Raises InputError for what is no file, or a file of another kind."""
    if not os.path.isfile(path):  # a named pipe would never end
        found = "a folder" if os.path.isdir(path) else "no such file"
        raise InputError(
            f"{shown(str(path))}: expected a {form.upper()} file, found {found}; check the path, which is relative to "
            "the root"
        )
    head = head_of(path)
    refuse_other(head, str(path), f"a {form.upper()} file")
    encoding = encoding_of(head)
    if encoding == "utf-8" and head.count(b"\0") > len(head) // 4:
        raise InputError(
            f"{path}: expected text in UTF-8, found zero bytes, as in UTF-16 without a byte order mark; save the file "
            "as UTF-8"
        )
    return encoding


def _fields(row: str | _Cells, where: str) -> Mapping[str, object]:
    """What a row has, by column."""
    text = row if isinstance(row, str) else "".join(row.cells)
    if not is_whole(text):
        raise InputError(f"{where}: expected UTF-8, found other bytes in {shown(text)}; save the file as UTF-8")
    if isinstance(row, _Cells):
        if len(row.cells) != len(row.header):
            raise InputError(
                f"{where}: expected {len(row.header)} cells, as in the header, found {len(row.cells)}; "
                "put a cell that holds the separator in double quotes"
            )
        return dict(zip(row.header, row.cells, strict=True))
    value = parsed(row, where, "write one object a line")
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {kind(value)}; write one object a line")
    return value
