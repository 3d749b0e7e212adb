"""What a file is that is not what its name says, by its first bytes."""

from __future__ import annotations

import re

HEAD = 512
"""Bytes of a file's beginning that suffice."""
LFS_POINTER = "a Git LFS pointer"
TAR = "a tar file"
PARQUET = "a Parquet file"

_KINDS = {
    LFS_POINTER: rb"version https://git-lfs\.github\.com/spec/",
    "HEIC": rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)",
    "AVIF": rb".{4}ftypavi[fs]",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "SVG": rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg",
    "PDF": rb"%PDF-",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "an HTML page": rb"\s*<(!doctype\s+)?html",
    "a gzip archive": rb"\x1f\x8b",
    "a zip archive": rb"PK\x03\x04",
    "a bzip2 archive": rb"BZh[1-9]",
    "an xz archive": rb"\xfd7zXZ\0",
    "a zstd archive": rb"\x28\xb5\x2f\xfd",
    PARQUET: rb"PAR1",
    TAR: rb".{257}ustar",
}
_PATTERNS = {
    kind: re.compile(rb"(?:\xef\xbb\xbf)?(?:" + pattern + rb")", re.I | re.S) for kind, pattern in _KINDS.items()
}


def kind_of(head: bytes) -> str | None:
    """What the first `HEAD` bytes of a file say that it is, in words; None where they say nothing."""
    if not head:
        return "an empty file"
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.match(head)), None)
