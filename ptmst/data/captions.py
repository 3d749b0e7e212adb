"""Captions as the reference cleans them, so that hashed and tokenised texts match published runs."""

from __future__ import annotations

import re
import unicodedata

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACE_RUN = re.compile(r"\s{2,}")
_PLACEHOLDERS = {"nan", "-nan", "nat", "none", "null", "nil", "undefined", "<na>", "n/a", "na", "\\n"}
"""What other programs write where a caption is missing."""
_ERRORS = {"#name?", "#value!", "#ref!", "#num!", "#div/0!"}
"""What spreadsheets show where a formula fails; a caption that begins with = or - is one to them."""
_LONGEST = 16
"""Characters of a placeholder, with some punctuation around it."""
_UNSEEN = (
    "\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u2800\u3164\uffa0\ufff9-\uffff\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e00ff"
)
"""Controls, format characters, and letters and signs that are blank, but for line ends, tabs and joiners."""
_JOINERS = "\u180b-\u180f\u200c\u200d\ufe00-\ufe0f"
"""With selectors of variants: emoji and some scripts are written with them."""
_IS_UNSEEN = re.compile(f"[{_UNSEEN}]")
_NOT_SEEN = re.compile(f"[{_UNSEEN}{_JOINERS}]")
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")
"""The flag of Scotland and its like: tags after a black flag."""
UNSPACED = (
    "\u3005-\u3007\u3041-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ecd\u1780-\u17d3\u1000-\u103f"
)
"""Characters of scripts that put no space between words: Han, kana, Thai, Lao, Khmer, Burmese."""
_UNSPACED = re.compile(f"[{UNSPACED}]")
_TWO_LETTERS = re.compile(rf"[{UNSPACED}]|\w\w")


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower-case caption without `.!"()*#:;~`, cut to its first `max_words` words.

    Only spaces part words, and only runs of white space collapse: a single tab or newline inside survives.
    """
    text = _SPACE_RUN.sub(" ", _PUNCTUATION.sub(" ", text.lower()))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:max_words])


def is_wordless(text: str) -> bool:
    """Whether a caption says nothing: no letter, digit or pictograph in it, or only a placeholder such as `nan`.

    What cannot be seen counts for nothing.
    """
    seen = _NOT_SEEN.sub("", text).strip()
    if len(seen) <= _LONGEST and (clean_caption(seen).strip() in _PLACEHOLDERS or seen.lower() in _ERRORS):
        return True
    return not any(unicodedata.category(c)[0] in "LN" or unicodedata.category(c) == "So" for c in seen)


def has_unseen(text: str) -> bool:
    """Whether there is a character in a caption that cannot be seen, as no emoji or script asks for."""
    return _IS_UNSEEN.search(_FLAG.sub("", text)) is not None


def is_unspaced(text: str) -> bool:
    """Whether there is a word in a caption that no space need part from the next."""
    return _UNSPACED.search(text) is not None


def is_short(text: str) -> bool:
    """Whether no word of a caption has two letters or digits, which the tower `hashed` asks of one."""
    return _TWO_LETTERS.search(text) is None
