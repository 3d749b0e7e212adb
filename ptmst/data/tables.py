"""Tables of pairs: CSV and TSV in open_clip's convention (columns filepath and title), and JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from ptmst.data.annotations import SPLITS, Annotations, Fault, ImageBytes, Item, gather, inside, kind, texts_of
from ptmst.errors import InputError

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_KEYS = ("filepath", "title")
_JSON_KEYS = ("image", "caption")
_IMAGES = "put the images there, or fix the paths"


@dataclass(frozen=True)
class Table:
    """A file of rows, each an image and its caption; an image may have several rows.

    CSV and TSV have a header that names the columns filepath and title; a JSONL row is an object with those keys, or
    with image and caption, where the caption may be a list. A row's `split` says which split it is of; one without
    is of the split that the file's name gives in place of {split}, or else of train.
    """

    form: Literal["csv", "tsv", "jsonl"]
    path: str
    """The file, relative to the root or absolute; {split} in it stands for the split's name."""
    splits: tuple[str, ...] = SPLITS

    def present(self, root: Path) -> tuple[str, ...]:
        if "{split}" in self.path:
            return tuple(split for split in self.splits if self._file(root, split).is_file())
        present = set()
        for where, row in self._rows(root, "train"):
            try:
                present.add(self._split(self._fields(row, where), "train", where))
            except InputError:  # `read` tells of it
                continue
        return tuple(split for split in self.splits if split in present)

    def read(self, root: Path, split: str, fault: Fault | None = None) -> Annotations:
        unmarked = split if "{split}" in self.path else "train"
        others: set[str] = set()

        def item_of(numbered: tuple[str, object]) -> Item | None:
            where, row = numbered
            fields = self._fields(row, where)
            if (of := self._split(fields, unmarked, where)) != split:
                others.add(of)
                return None
            return _item(fields, (_KEYS,) if self.form in _DELIMITERS else (_JSON_KEYS, _KEYS), root, where)

        file = self._file(root, split)
        annotations = gather(self._rows(root, split), item_of, fault, origin=str(file), remedy=_IMAGES)
        if not annotations.image_names and fault is None:
            raise InputError(
                f"{file}: expected rows of split {split}, found {' and '.join(sorted(others)) or 'no rows'}; "
                "name the split of each row in a column `split`, or have a file per split and write {split} in its name"
            )
        return annotations

    def _file(self, root: Path, split: str) -> Path:
        return root / self.path.replace("{split}", split)

    def _rows(self, root: Path, split: str) -> Iterator[tuple[str, object]]:
        """Rows and where each begins: a dict of cells, or a line of JSON as it is."""
        path = self._file(root, split)
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                if self.form in _DELIMITERS:
                    yield from _cells(file, self.form, path)
                else:
                    yield from ((f"{path}: line {i}", line) for i, line in enumerate(file, 1) if line.strip())
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: expected UTF-8, found other bytes ({error.reason}); save the file as UTF-8"
            ) from None
        except OSError as error:
            raise InputError(
                f"{path}: expected a {self.form.upper()} file, found none that can be read ({error.strerror}); "
                "check the path, which is relative to the root"
            ) from error

    def _fields(self, row: object, where: str) -> dict[str, object]:
        if isinstance(row, dict):
            surplus = row.get(None) or []
            short = sum(cell is None for cell in row.values())
            if surplus or short:
                columns = len(row) - bool(surplus)
                raise InputError(
                    f"{where}: expected {columns} cells, as in the header, found {columns - short + len(surplus)}; "
                    "put a cell that holds the separator in double quotes"
                )
            return row
        try:
            value = json.loads(str(row))
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: expected a JSON object, found {error.msg}; fix the line") from None
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected a JSON object, found {kind(value)}; fix the line")
        return value

    def _split(self, fields: dict[str, object], unmarked: str, where: str) -> str:
        split = fields.get("split", unmarked)
        if split not in self.splits:
            raise InputError(f"{where}: expected split to be {', '.join(self.splits)}, found {split!r}; rename it")
        return str(split)


_BETWEEN = {"csv": "commas", "tsv": "tabs"}
_OTHER = {"csv": "tsv", "tsv": "csv"}


def _cells(file: TextIO, form: str, path: Path) -> Iterator[tuple[str, object]]:
    rows = csv.DictReader(file, delimiter=_DELIMITERS[form], strict=True)
    try:
        header = list(rows.fieldnames or ())
        for column in (*_KEYS, "split"):
            if header.count(column) != 1 and (column in _KEYS or column in header):
                raise InputError(
                    f"{path}: line 1: expected a header with one column {column}, found {header}; name the columns "
                    f"{' and '.join(_KEYS)}, with {_BETWEEN[form]} between the cells, or write {_OTHER[form]}: for a "
                    f"file with {_BETWEEN[_OTHER[form]]}"
                )
        for row in rows:
            first = rows.line_num - sum(cell.count("\n") for cell in row.values() if isinstance(cell, str))
            yield f"{path}: line {first}", row
    except csv.Error as error:
        raise InputError(
            f"{path}: line {rows.line_num + 1}: expected a row of cells, found a mistake ({error}); "
            "write a quote inside a quoted cell twice"
        ) from None


def _item(fields: dict[str, object], forms: tuple[tuple[str, str], ...], root: Path, where: str) -> Item:
    keys = next((keys for keys in forms if all(key in fields for key in keys)), None)
    if keys is None:
        raise InputError(f"{where}: expected the keys image and caption, found {sorted(fields)}; add them")
    name, caption = fields[keys[0]], fields[keys[1]]
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: expected {keys[0]} to be a path, found {name!r}; fix it")
    name = inside(name, root, where)
    return Item(name, texts_of(caption, where), ImageBytes(root / name))
