"""Captions as the reference cleans them, so that hashed and tokenised texts match published runs."""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACE_RUN = re.compile(r"\s{2,}")


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower-case caption without `.!"()*#:;~`, cut to its first `max_words` words.

    Only spaces part words, and only runs of white space collapse: a single tab or newline inside survives.
    """
    text = _SPACE_RUN.sub(" ", _PUNCTUATION.sub(" ", text.lower()))
    return " ".join(text.rstrip("\n").strip(" ").split(" ")[:max_words])
