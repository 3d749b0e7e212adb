"""What the bytes of a file are: text in its encoding, JSON, or something else that is called by its name."""

from __future__ import annotations

import codecs
import glob
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from ptmst.data.captions import has_unseen
from ptmst.errors import InputError
from ptmst.support import kinds

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PREFIXES = {kinds.TAR: "wds", kinds.PARQUET: "parquet"}
_SHOWN = 120
"""Characters of a name or value that a message shows."""
_LONGEST, _LONGEST_PART = 4096, 255
"""Bytes of a path and of a name in it that file systems take."""
_SHOWN_PATH = 500
"""Characters of a path that a message shows whole."""


def head_of(path: Path) -> bytes:
    """As many bytes of a file as tell what it is. Raises InputError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(kinds.HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights and its disk") from error


def refuse_other(head: bytes, where: str, expected: str, *but: str) -> None:
    """Raise InputError for a file that begins as one of another kind does, unless it is of one of the kinds `but`."""
    kind = kinds.kind_of(head) if head else None
    if kind is None or kind in but:
        return
    remedy = "fetch it again"
    if kind == kinds.LFS_POINTER:
        kind, remedy = f"{kind} in its place", "fetch the file itself with git lfs pull"
    elif "archive" in kind:
        remedy = "unpack it"
    elif kind in _PREFIXES:
        remedy = f"name it {_PREFIXES[kind]}:"
    raise InputError(f"{where}: expected {expected}, found {kind}; {remedy}")


def encoding_of(head: bytes) -> str:
    """Python's name of the encoding that a byte order mark at the beginning tells; without one it is UTF-8."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")


def decoded(content: bytes, where: str, remedy: str) -> str:
    """Text without its byte order mark. Raises InputError for bytes that are none."""
    encoding = encoding_of(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected text in UTF-8, found other bytes at offset {error.start}; {remedy}"
        ) from None


def parsed(content: bytes | str, where: str, remedy: str) -> object:
    """The value of a JSON text. Raises InputError for anything that is none, or too deep or long to be data."""
    text = content if isinstance(content, str) else decoded(content, where, remedy)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg} in line {error.lineno}"
    except RecursionError:
        found = "brackets that are nested too deeply"
    except ValueError:  # Python's limit on the digits of a number
        found = "a number of thousands of digits"
    raise InputError(f"{where}: expected JSON, found {found}; {remedy}") from None


def check_length(path: str, what: str) -> None:
    """Raise InputError for a path that is too long for any file system; `what` it is of begins the message."""
    if len(path.encode(errors="surrogatepass")) > _LONGEST:
        found = f"{len(path):,} characters"
    elif longest := next((p for p in path.split("/") if len(p.encode(errors="surrogatepass")) > _LONGEST_PART), None):
        found = f"a name of {len(longest):,} characters in it"
    else:
        return
    raise InputError(f"{what}: expected a path that a file system can hold, found {found} ({shown(path)}); shorten it")


def matches(pattern: str) -> list[Path]:
    """Files and folders that a pattern of glob names; no named pipe, which would never end.

    Raises InputError for a pattern that is too deep.
    """
    try:
        found = glob.glob(pattern, recursive=True)
    except RecursionError:
        raise InputError(
            f"{shown(pattern)}: expected a pattern with a few folders, found {pattern.count('/'):,}; shorten it"
        ) from None
    return [Path(path) for path in found if os.path.isfile(path) or os.path.isdir(path)]


def path_shown(path: Path) -> str:
    """A path to begin a message with: whole, unless it is longer than any that is real."""
    return shown(str(path), _SHOWN_PATH)


def library(module: str, form: str, extra: str) -> Any:
    """A module that data of a form are read with, which the extra of ptmst brings. Raises InputError without it."""
    # Through importlib, since mypy finds no types in some of them.
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{form}: expected the package {module.partition('.')[0]}, found none ({error}); run pip install "
            f'"ptmst[{extra}]"'
        ) from error


def is_whole(text: str) -> bool:
    """Whether text is Unicode: half of a surrogate pair, as JSON may escape it, is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object, most: int = _SHOWN) -> str:
    """A name or value for a message: on one line, visible, and not too long."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= most else f"{text[:most]}…"
    return "".join(c if c.isprintable() and not has_unseen(c) else ascii(c)[1:-1] for c in text)
