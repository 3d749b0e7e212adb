"""Mutants of a file: some bytes are changed, cut, repeated or put in, as seeds say."""

from __future__ import annotations

import random
import zlib

_CELLS = (b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"nan", b"../", b"\\")
_JSON = (
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\n",
    b"null",
    b"NaN",
    b"1e999",
    b"\\ud83d",
    b"\\u0000",
    b"\xff",
)
_TAR = (b"\0" * 512, b"\xff", b"ustar", b"00000000000", b"77777777777", b"\x80", b"1", b"2", b"5", b"L", b"x", b"/..")
_BINARY = (
    b"\0",
    b"\xff",
    b"\xff" * 4,
    b"\x80\0\0\0",
    b"\x7f\xff\xff\xff",
    b"PAR1",
    b"\0" * 16,
    b"\x15\x04",
    b"\xff\xd9",
)
_TOKENS = {
    "cells": _CELLS,
    "json": (*_JSON, b"[" * 5000, b"9" * 5000, b'"caption":', b'"image":', b"\xef\xbb\xbf"),
    "tar": _TAR,
    "binary": _BINARY,
}
"""What is put in, by what a form is made of."""
_KIND = {"csv": "cells", "tsv": "cells", "jsonl": "json", "list": "json", "karpathy": "json", "wds": "tar"}


def mutant(form: str, number: int, whole: list[bytes]) -> bytes:
    """Mutant `number` of a form's whole files; the same number gives the same bytes."""
    draw = random.Random(f"{form} {number}")
    content = bytearray(draw.choice(whole))
    for _ in range(draw.choice((1, 1, 1, 1, 2, 3, 8))):
        _change(content, draw, _TOKENS[_KIND.get(form, "binary")], whole)
    # Half of them pass the checksums, and reach what is behind those.
    return _summed(bytes(content)) if draw.random() < 0.5 else bytes(content)


def _summed(content: bytes) -> bytes:
    """The bytes with right checksums in the headers of a tar file, or in the chunks of a PNG that are not critical.

    Nothing but their checksums tells that those which are critical are damaged.
    """
    new = bytearray(content)
    if content[257:262] == b"ustar":
        for at in range(0, len(new) - 511, 512):
            if new[at + 257 : at + 262] == b"ustar":
                new[at + 148 : at + 156] = b" " * 8
                new[at + 148 : at + 156] = b"%06o\0 " % sum(new[at : at + 512])
    elif content.startswith(b"\x89PNG"):
        at = 8
        while (end := at + 12 + int.from_bytes(new[at : at + 4])) <= len(new):
            if new[at + 4] & 0x20:
                new[end - 4 : end] = zlib.crc32(new[at + 4 : end - 4]).to_bytes(4)
            at = end
    return bytes(new)


def _change(content: bytearray, draw: random.Random, tokens: tuple[bytes, ...], whole: list[bytes]) -> None:
    size = len(content)
    at = draw.randrange(size + 1)
    end = min(size, at + draw.choice((1, 2, 4, 16, 100)))
    match draw.randrange(9):
        case 0 if at < size:
            content[at] ^= 1 << draw.randrange(8)
        case 1 if at < size:
            content[at] = draw.randrange(256)
        case 2:
            content[at:end] = draw.randbytes(end - at)
        case 3:
            del content[at:end]
        case 4:
            content[at:at] = content[at:end]
        case 5:
            content[at:at] = draw.choice(tokens)
        case 6:
            token = draw.choice(tokens)
            content[at : at + len(token)] = token
        case 7 if draw.random() < 0.3:
            del content[at:]
        case 8 if draw.random() < 0.3:
            other = draw.choice(whole)
            start = draw.randrange(len(other))
            content[at:] = other[start:]
        case _:
            content[at:at] = bytes([draw.randrange(256)])
