"""Captions as the reference cleans them, so that hashed and tokenised texts match published runs."""

from __future__ import annotations

import re
import unicodedata

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACE_RUN = re.compile(r"\s{2,}")
_PLACEHOLDERS = {"nan", "none", "null", "<na>", "n/a"}
"""What other programs write where a caption is missing."""
_UNPARTED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Japanese and Chinese
)


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


def is_unparted(text: str) -> bool:
    """Whether a caption is in a script that does not part words by spaces, and has none."""
    return " " not in text.strip() and _UNPARTED.search(text) is not None
