"""What the bytes of a file are: text in its encoding, JSON, or something else that is called by its name."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

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


def is_whole(text: str) -> bool:
    """Whether text is Unicode: half of a surrogate pair, as JSON may escape it, is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """A name or value for a message: on one line, visible, and not too long."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
