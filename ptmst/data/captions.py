"""Captions as the reference cleans them, so that hashed and tokenised texts match published runs."""

from __future__ import annotations

import re
import unicodedata

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACE_RUN = re.compile(r"\s{2,}")
_PLACEHOLDERS = {"nan", "none", "null", "<na>", "n/a"}
"""What other programs write where a caption is missing."""
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
    """Whether a caption says nothing: no letter, digit or pictograph in it, or only a placeholder such as `nan`."""
    if len(text) < 8 and clean_caption(text).strip() in _PLACEHOLDERS:
        return True
    return not any(unicodedata.category(c)[0] in "LN" or unicodedata.category(c) == "So" for c in text)


def is_unspaced(text: str) -> bool:
    """Whether there is a word in a caption that no space need part from the next."""
    return _UNSPACED.search(text) is not None


def is_short(text: str) -> bool:
    """Whether no word of a caption has two letters or digits, which the tower `hashed` asks of one."""
    return _TWO_LETTERS.search(text) is None
