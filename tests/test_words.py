"""The words of this project: standard terms in plain English, and one spelling."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\bfound others?\b(?! \w)": "found different ones, or what it is",
    r"\btaught\b": "trained",
    r"\bturned (by|upright)\b": "EXIF-rotated",
    r"\bdistils?\b": "distill",
    r"(normal|optim|initial|summar|recogn|organ|minim|maxim)is(e|es|ed|er|ing|ation)\b": "-iz-",
    r"\b\w*colour|COLOUR": "color",
    r"\b(behaviour|favour|neighbour|honour)": "-or",
    r"\bgrey\b": "gray",
}
"""A pattern, and what to write instead."""
SOURCES = ("ptmst", "kernels", "bench", "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
KINDS = {".py", ".md", ".hpp", ".cpp", ".jinja", ".toml"}


def sources() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *SOURCES]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return [ROOT / name for name in listed if Path(name).suffix in KINDS and (ROOT / name).exists()]


def said(text: str, pattern: str) -> list[str]:
    """The lines that a pattern is in."""
    return [line.strip() for line in text.splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize("pattern", WORDS)
def test_words_that_have_a_better_one(pattern: str) -> None:
    seen = [
        f"{path.relative_to(ROOT)}: {line[:100]}"
        for path in sources()
        for line in said(path.read_text("utf-8"), pattern)
    ]
    assert not seen, f"write {WORDS[pattern]}"


def test_they_are_seen() -> None:
    text = "mend it\nrecommended\nexpected x, found others; make it anew\nfound other keys\nthe optimiser distils"
    seen = {pattern: said(text, pattern) for pattern in WORDS if said(text, pattern)}
    assert [line for lines in seen.values() for line in lines] == [
        "mend it",
        "expected x, found others; make it anew",
        "expected x, found others; make it anew",
        "the optimiser distils",
        "the optimiser distils",
    ]
