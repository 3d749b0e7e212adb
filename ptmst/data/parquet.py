"""Parquet files as Hugging Face's data sets are published: a row holds an image, or its path, and its captions."""

from __future__ import annotations

import glob
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ptmst.data.annotations import SPLITS, Annotations, Fault, ImageBytes, Item, gather, inside, texts_of, told
from ptmst.data.contents import head_of, library, matches, path_shown, refuse_other, shown
from ptmst.errors import InputError
from ptmst.support import devices, kinds
from ptmst.support.files import sha256

_IMAGE, _CAPTION, _SPLIT = ("image",), ("caption", "text"), ("split",)
"""Names of columns."""
_ALIASES = {"validation": "val"}
"""What Hugging Face calls our splits."""
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.parquet")
_SHARE = 0.25
"""Of the host's free memory that the images of a row group may take; two are held at a time."""


class Field(NamedTuple):
    """A column, or a field of a column of structs."""

    column: str
    name: str | None = None

    @property
    def dotted(self) -> str:
        return self.column if self.name is None else f"{self.column}.{self.name}"

    def of(self, value: Any) -> Any:
        """What a cell of the column has in this field."""
        return value[self.name] if self.name is not None and value is not None else value


class Cell(NamedTuple):
    """An image in a row group, or where that has no bytes of it, in a file that its row names."""

    file: Path
    field: Field
    group: int
    row: int
    """In the row group, from 0."""
    named: Path | None

    def held(self) -> bytes | None:
        """The bytes in the row group."""
        content: bytes | None = self.field.of(_group(self.file, self.field, self.group)[self.row].as_py())
        return content

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,) if self.named is None or not os.path.isfile(self.named) else (self.file, self.named)

    def read(self) -> bytes:
        content = self.held()
        if content is not None:
            return content
        if self.named is None or not os.path.isfile(self.named):
            found = "a path inside the root folder" if self.named is None else f"the file {shown(str(self.named))}"
            raise InputError(
                f"{self.file}: row {self.row} of row group {self.group}: expected an image, found neither bytes nor "
                f"{found}; drop the row"
            )
        return self.named.read_bytes()


class _Fields(NamedTuple):
    """Where a file has what; of an image its bytes, its path or both."""

    bytes: Field | None
    path: Field | None
    caption: Field
    split: Field | None


class _Row(NamedTuple):
    where: str
    name: str
    cell: Cell | None
    """None in a file without bytes."""
    path: object
    caption: object
    split: object


@dataclass(frozen=True)
class Parquet:
    """Parquet files that a pattern names.

    {split} in the pattern stands for the split's name, where `validation` does for val. A row's `split` says which
    split it is of; without one it is of the split that {split} stands for, or else of train.
    """

    pattern: str
    """Path with *, relative to the root, or absolute but inside it."""
    image_column: str | None = None
    """None = image."""
    caption_column: str | None = None
    """None = caption or text."""
    splits: tuple[str, ...] = SPLITS

    def present(self, root: Path) -> tuple[str, ...]:
        if "{split}" in self.pattern:
            return tuple(split for split in self.splits if self._files(root, split))
        present: set[object] = set()
        for file in self._files(root, "train"):
            with _opened(file) as opened:
                if _SPLIT[0] in opened.schema_arrow.names:
                    column = opened.read(columns=list(_SPLIT), use_threads=False).column(_SPLIT[0])
                    present.update(_ours(value) for value in column.unique().to_pylist())
                else:
                    present.add("train")
        return tuple(split for split in self.splits if split in present)

    def read(self, root: Path, split: str, fault: Fault | None = None) -> Annotations:
        """Captions and paths are read, and bytes of images only where rows have a path in common, or none.

        So a row without an image is found out as its image is read.
        """
        origin = path_shown(root / self.pattern.replace("{split}", split))
        files = self._files(root, split)
        if not files:
            raise InputError(f"{origin}: expected Parquet files of that name, found none; check pattern and root")
        if "*" in self.pattern:
            for lack in _lacking_parts(files):
                told(f"{origin}: {lack}", fault)
        unmarked, others = split if "{split}" in self.pattern else "train", set[str]()
        rows = [row for file in files for row in self._rows(file, root, unmarked)]
        first = _first_of_each([row for row in rows if row.split == split])

        def item_of(row: _Row) -> Item | None:
            if row.split not in self.splits:
                raise InputError(
                    f"{row.where}: expected split to be {', '.join(self.splits)}, found {shown(row.split)}; rename it"
                )
            if row.split != split:
                others.add(str(row.split))
                return None
            captions = texts_of(row.caption, row.where)
            if row.cell is not None:
                return Item(first[row.name].name, captions, first[row.name].cell or row.cell)
            if not isinstance(row.path, str) or not row.path:
                raise InputError(f"{row.where}: expected the path of an image, found none; drop the row")
            name = inside(row.path, root, row.where)
            return Item(name, captions, ImageBytes(root / name))

        annotations = gather(rows, item_of, fault, origin=origin, remedy="fetch the files again, or fix the paths")
        if not annotations.image_names:
            raise InputError(
                f"{origin}: expected rows of split {split}, found {' and '.join(sorted(others)) or 'no rows'}; "
                "name the split of each row in a column `split`, or have files per split and write {split} in the "
                "pattern"
            )
        return annotations

    def _files(self, root: Path, split: str) -> list[Path]:
        above, names = glob.escape(str(root)), [split, *(name for name, ours in _ALIASES.items() if ours == split)]
        patterns = dict.fromkeys(os.path.join(above, self.pattern.replace("{split}", name)) for name in names)
        return sorted(path for pattern in patterns for path in matches(pattern))

    def _rows(self, file: Path, root: Path, unmarked: str) -> Iterator[_Row]:
        above, number = inside(os.path.abspath(file), root, str(file)), 0
        with _opened(file) as opened:
            fields = self._fields(file, opened.schema_arrow)
            wanted = (fields.path, fields.caption, fields.split)
            for group in range(opened.num_row_groups):
                columns = [field.dotted for field in wanted if field]
                _check_size(file, opened.metadata.row_group(group).total_byte_size)
                table = opened.read_row_group(group, columns=columns, use_threads=False)
                values = [_values(table, field) for field in wanted]
                for row, (path, caption, split) in enumerate(zip(*values, strict=True)):
                    cell = Cell(file, fields.bytes, group, row, _named_file(path, root)) if fields.bytes else None
                    where, name = f"{file}: row {number}", f"{above}/{number}"
                    yield _Row(where, name, cell, path, caption, _ours(split) if fields.split else unmarked)
                    number += 1

    def _fields(self, file: Path, schema: Any) -> _Fields:
        """Raises InputError where columns are missing or of other types."""
        image = _column(file, schema, _named(self.image_column, _IMAGE), "name it with --data.image-column")
        caption = _column(file, schema, _named(self.caption_column, _CAPTION), "name it with --data.caption-column")
        split = _column(file, schema, _SPLIT, "keep one") if _SPLIT[0] in schema.names else None
        kind = schema.field(caption).type
        if not _is(kind, *_TEXT) and not (_is(kind, *_LIST) and _is(kind.value_type, *_TEXT)):
            raise InputError(
                f"{file}: expected text or lists of text in column {caption}, found {shown(str(kind))}; name another "
                "with --data.caption-column"
            )
        return _Fields(*_image_fields(file, schema, image), Field(caption), Field(split) if split else None)


def _named(name: str | None, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    return otherwise if name is None else (name,)


def _column(file: Path, schema: Any, names: tuple[str, ...], remedy: str) -> str:
    found = [name for name in schema.names if name in names]
    if len(found) != 1:
        columns = ", ".join(found or schema.names) or "no columns"
        raise InputError(f"{file}: expected one column {shown(' or '.join(names))}, found {shown(columns)}; {remedy}")
    return str(found[0])


def _image_fields(file: Path, schema: Any, column: str) -> tuple[Field | None, Field | None]:
    """Bytes and path."""
    kind = schema.field(column).type
    if _is(kind, *_BYTES):
        return Field(column), None
    if _is(kind, *_TEXT):
        return None, Field(column)
    if _is(kind, "struct"):
        of = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        content = Field(column, "bytes") if "bytes" in of and _is(of["bytes"], *_BYTES) else None
        path = Field(column, "path") if "path" in of and _is(of["path"], *_TEXT) else None
        if content or path:
            return content, path
    raise InputError(
        f"{file}: expected bytes, a path, or a struct of bytes and path in column {column}, found {shown(str(kind))}; "
        "name another with --data.image-column"
    )


_TEXT = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "fixed_size_binary", "binary_view")
_LIST = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")


def _is(kind: Any, *forms: str) -> bool:
    """Whether a type is one of these; pyarrow knows some only since a later version."""
    types = _pyarrow("pyarrow.types")
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(getattr(types, f"is_{form}")(kind) for form in forms if hasattr(types, f"is_{form}"))


def _values(table: Any, field: Field | None) -> list[Any]:
    """A value for each row, None where there is no such column."""
    if field is None:
        return [None] * int(table.num_rows)
    return [field.of(value) for value in table.column(field.column).to_pylist()]


def _check_size(file: Path, size: int) -> None:
    most = _SHARE * devices.free_bytes(torch.device("cpu"))
    if size > most:
        raise InputError(
            f"{file}: expected row groups of at most {most / 1e6:,.0f} MB, a quarter of the free memory, found one of "
            f"{size / 1e6:,.0f} MB; write the file again with row groups of 100 rows"
        )


def _named_file(path: object, root: Path) -> Path | None:
    """The file of a path, if that is one inside the root. Most are not there, since their bytes are in the row."""
    try:
        return root / inside(path, root, "") if isinstance(path, str) else None
    except InputError:
        return None


def _first_of_each(rows: Sequence[_Row]) -> dict[str, _Row]:
    """By a row's name, the first row that holds the same image.

    Only rows with a path in common, or without one, are compared, by their bytes: a path alone does not tell images
    apart, since published files often keep no more than its last part.
    """
    held = [(row, row.cell) for row in rows if row.cell is not None]
    counts = Counter(row.path for row, _ in held)
    seen: dict[tuple[object, str], _Row] = {}
    first: dict[str, _Row] = {}
    for row, cell in held:
        is_alone = row.path is not None and counts[row.path] == 1
        content = None if is_alone else cell.held()
        # Without bytes the path is all that there is.
        key = (row.path, "" if content is None else sha256(content))
        first[row.name] = row if key == (None, "") else seen.setdefault(key, row)
    return first


def _lacking_parts(files: Iterable[Path]) -> Iterator[str]:
    """What lacks where files are called NAME-00000-of-00003.parquet and not all of them are there."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for file in files:
        if match := _PART.fullmatch(str(file)):
            numbers.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (name, count), found in numbers.items():
        if len(found) < int(count):
            absent = next(i for i in range(int(count)) if i not in found)
            yield (
                f"expected {int(count)} files, as their names say, found {len(found)}, and no "
                f"{Path(name).name}-{absent:05}-of-{count}.parquet; fetch the rest, or name files without a *"
            )


def _ours(split: object) -> object:
    return _ALIASES.get(split, split) if isinstance(split, str) else split


_pyarrow = partial(library, form="parquet", extra="hf")
_READING = threading.Lock()


def _group(file: Path, field: Field, group: int) -> Any:
    """The column of a row group, as pyarrow has it."""
    stamp = file.stat()
    with _READING:  # the other threads that decode find it read
        return _read_group(file, field, group, (stamp.st_mtime_ns, stamp.st_size))


@lru_cache(maxsize=2)
def _read_group(file: Path, field: Field, group: int, stamp: tuple[int, int]) -> Any:
    with _opened(file) as opened:
        column = opened.read_row_group(group, columns=[field.dotted], use_threads=False).column(field.column)
        rows = opened.metadata.row_group(group).num_rows
        if len(column) != rows:
            raise ValueError(f"{rows} rows in row group {group}, {len(column)} of them in {field.dotted}")
        return column


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """pyarrow's ParquetFile. What goes wrong with it is an InputError that names the file."""
    pyarrow, parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
    try:
        # Not by its name, which pyarrow would take for an address if it looks like one.
        with pyarrow.OSFile(os.fspath(file)) as source, parquet.ParquetFile(source) as opened:
            yield opened
    except InputError:
        raise
    except Exception as error:  # on broken bytes pyarrow raises nearly anything
        if file.is_dir():
            raise InputError(
                f"{file}: expected a Parquet file, found a folder; name the files in it, as in data/*.parquet"
            ) from None
        expected = "a whole Parquet file"
        refuse_other(head_of(file), str(file), expected, kinds.PARQUET)
        reason = shown(" ".join(str(error).split()))
        raise InputError(f"{file}: expected {expected}, found a mistake ({reason}); fetch it again") from error
