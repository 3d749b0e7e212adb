"""PNG and JPEG files as their pixels, and what says how those are seen: all else may be broken in a whole picture."""

from __future__ import annotations

import zlib

PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"


class Broken(Exception):
    """What was expected and found, and what to do."""


def bare(content: bytes) -> tuple[bytes, bytes | None]:
    """A PNG or JPEG with nothing around its pixels but orientation, color space and transparency; others as they are.

    Also the profile of a PNG, which is not left in it. Raises Broken for a PNG whose own checksums or transparency are
    wrong: PIL compares no checksum of pixels, and would see it without.
    """
    if content.startswith(PNG):
        kept, profile = _chunks(content)
    elif content.startswith(_JPEG):
        kept, profile = _segments(content), None
    else:
        return content, None
    return (content if sum(map(len, kept)) == len(content) else b"".join(kept)), profile


_LONGEST_TEXT, _LONGEST_PROFILE = 2**20, 2**26
"""Bytes when unpacked: PIL refuses a picture for a longer text."""
_XMP, _EXIF_AS_TEXT = b"XML:com.adobe.xmp", b"Raw profile type exif"
"""Keywords of texts that may have the orientation."""


def _chunks(content: bytes) -> tuple[list[memoryview], bytes | None]:
    """Parts of a PNG to keep, and its profile."""
    kept, profile, at, name = [memoryview(PNG)], None, len(PNG), b""
    seen = set[bytes]()
    while at < len(content) and name != b"IEND":
        end = at + 12 + int.from_bytes(content[at : at + 4])
        name, body = content[at + 4 : at + 8], content[at + 8 : end - 4]
        whole = zlib.crc32(content[at + 4 : end - 4]).to_bytes(4) == content[end - 4 : end]
        if name == b"IDAT" and not whole:
            raise Broken("a whole image, found pixels with a wrong checksum; replace the file")
        if name in (b"IHDR", b"PLTE") and not whole:
            raise Broken(f"a whole image, found a PNG whose {name.decode()} has a wrong checksum; replace the file")
        if name == b"tRNS" and not (whole and len(body) == {0: 2, 2: 6}.get(content[25], len(body))):
            raise Broken("a whole image, found a PNG that is broken where it says what is transparent; save it again")
        if name == b"iCCP" and whole and profile is None:
            profile = _unpacked(body.partition(b"\0")[2])
        if not _is_ancillary(name) or name == b"tRNS" or (whole and name not in seen and _may_turn(name, body)):
            seen.add(name)
            kept.append(memoryview(content)[at:end])
        at = end
    return kept, profile


def _is_ancillary(name: bytes) -> bool:
    return name.isalpha() and name[:1].islower()


def _may_turn(name: bytes, body: bytes) -> bool:
    """Whether a chunk may have the orientation, in a form that PIL reads."""
    key, _, rest = body.partition(b"\0")
    if name == b"iTXt":
        packed = b"\0" + rest[2:].split(b"\0", 2)[-1] if rest[:1] == b"\1" else b""
        return key == _XMP and max(len(rest), len(_unpacked(packed))) < _LONGEST_TEXT
    if name == b"zTXt":
        return key == _EXIF_AS_TEXT and rest[:1] == b"\0" and len(_unpacked(rest)) < _LONGEST_TEXT
    return name == b"eXIf" or (name == b"tEXt" and key in (_XMP, _EXIF_AS_TEXT) and len(rest) < _LONGEST_TEXT)


def _unpacked(method_and_data: bytes) -> bytes:
    """Nothing where the method is none that there is, or the data are broken."""
    try:
        packed = method_and_data[1:] if method_and_data[:1] == b"\0" else b""
        return zlib.decompressobj().decompress(packed, _LONGEST_PROFILE)
    except zlib.error:
        return b""


_NEEDED = {
    0xE0: ((b"JFIF\0", 14),),
    0xE1: ((b"Exif\0\0", 6), (b"http://ns.adobe.com/xap/1.0/\0", 29)),
    0xE2: ((b"ICC_PROFILE\0", 14),),
    0xEE: ((b"Adobe", 12),),
}
"""By marker, how a segment begins that says how pixels are seen, and its fewest bytes: a shorter one says nothing."""


def _segments(content: bytes) -> list[memoryview]:
    """Parts of a JPEG to keep."""
    kept, at = [memoryview(_JPEG)], len(_JPEG)
    while content[at : at + 1] == b"\xff":
        marker, end = content[at + 1 : at + 2], at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if marker == b"\xff":  # filled up
            at += 1
            continue
        if not marker or marker[0] < 0xC0 or 0xD0 <= marker[0] <= 0xDA or not at + 4 <= end <= len(content):
            break
        body = content[at + 4 : end]
        needed = any(body.startswith(head) and len(body) >= least for head, least in _NEEDED.get(marker[0], ()))
        if needed or not (0xE0 <= marker[0] <= 0xEF or marker[0] == 0xFE):
            kept.append(memoryview(content)[at:end])
        at = end
    return [*kept, memoryview(content)[at:]]
