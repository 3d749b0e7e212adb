"""The packages of the npm registry that the data set is made of, and what is read from each."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ptmst


@dataclass(frozen=True)
class Team:
    """Who drew a set of emoji, and the license of the drawings, as the project's own file tells it."""

    letter: str
    """Ends the names of its pictures."""
    name: str
    notice: str
    """Of its copyright, as the project words it."""
    license: str
    url: str
    package: str


TEAMS = (
    Team(
        "a", "Noto Emoji", "Copyright 2013 Google, Inc", "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji", "@iconify-json/noto@1.2.9",
    ),
    Team(
        "b", "Noto Emoji, first version", "Copyright 2013 Google, Inc", "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji", "@iconify-json/noto-v1@1.2.5",
    ),
    Team(
        "c", "Twemoji", "Copyright 2019 Twitter, Inc and other contributors", "CC-BY-4.0",
        "https://github.com/jdecked/twemoji", "@iconify-json/twemoji@1.2.5",
    ),
    Team(
        "d", "Fluent Emoji", "Copyright (c) Microsoft Corporation", "MIT",
        "https://github.com/microsoft/fluentui-emoji", "@iconify-json/fluent-emoji@1.2.7",
    ),
    Team(
        "e", "Fluent Emoji, flat", "Copyright (c) Microsoft Corporation", "MIT",
        "https://github.com/microsoft/fluentui-emoji", "@iconify-json/fluent-emoji-flat@1.2.6",
    ),
    Team(
        "f", "EmojiOne 2 and Emojitwo", "by EmojiOne and the Emojitwo community", "CC-BY-4.0",
        "https://github.com/EmojiTwo/emojitwo", "@iconify-json/emojione@1.2.3",
    ),
    Team(
        "g", "FxEmojis", "Copyright 2015, Mozilla Foundation", "CC-BY-4.0",
        "https://github.com/mozilla/fxemoji", "@iconify-json/fxemoji@1.2.2",
    ),
)  # fmt: skip
"""Whose drawings may be passed on in a work of another license."""
LICENSE_URLS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
    "Unicode-3.0": "https://www.unicode.org/license.txt",
}
NAMES, DERIVED = "cldr-annotations-full@48.2.0", "cldr-annotations-derived-full@48.2.0"
KEYWORDS, TAGS, LIST = "emojilib@4.0.3", "gemoji@8.1.0", "unicode-emoji-json@0.9.0"
LICENSES = "twemoji@14.0.2"
"""It carries the text of CC BY 4.0."""
SHA256 = {
    "@iconify-json/noto@1.2.9": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "@iconify-json/noto-v1@1.2.5": "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    "@iconify-json/twemoji@1.2.5": "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "@iconify-json/fluent-emoji@1.2.7": "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    "@iconify-json/fluent-emoji-flat@1.2.6": "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "@iconify-json/emojione@1.2.3": "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    "@iconify-json/fxemoji@1.2.2": "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    NAMES: "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    DERIVED: "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
    KEYWORDS: "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
    TAGS: "8b636784d94d4983b0c74e0713dd94b805e768888c06bb90e3c330365ec5acba",
    LIST: "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    LICENSES: "5350eac1be60cb68ae48b60f1a53f5978bba0dc40da63e97e9bc9896aa392213",
}
"""Of each package's archive."""


@dataclass(frozen=True)
class Packages:
    """A folder of archives, fetched with npm where they are missing."""

    folder: Path

    def fetch(self) -> None:
        """Raises InputError for an archive that is not the one that the recipe was written for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for package, expected in SHA256.items():
            path = self._archive(package)
            if not path.exists():
                subprocess.run(["npm", "pack", "--silent", package], cwd=self.folder, check=True, capture_output=True)
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != expected:
                raise ptmst.InputError(
                    f"{path}: expected SHA-256 {expected}, found {found}; delete it, to fetch it again"
                )

    def text(self, package: str, file: str) -> str:
        with tarfile.open(self._archive(package)) as archive:
            content = archive.extractfile(f"package/{file}")
            assert content is not None
            return content.read().decode()

    def json(self, package: str, file: str) -> Any:
        return json.loads(self.text(package, file))

    def _archive(self, package: str) -> Path:
        return self.folder / (re.sub(r"[/@]", "-", package).strip("-") + ".tgz")

    @cached_property
    def names(self) -> Mapping[str, Mapping[str, list[str]]]:
        """Short name (`tts`) and keywords (`default`) of CLDR, by code."""
        parts = (
            self.json(NAMES, "annotations/en/annotations.json")["annotations"],
            self.json(DERIVED, "annotationsDerived/en/annotations.json")["annotationsDerived"],
        )
        return {code_of(text): value for part in parts for text, value in part["annotations"].items()}

    @cached_property
    def groups(self) -> Mapping[str, str]:
        """The group of every emoji, by code: Flags, Food & Drink, …"""
        return {code_of(text): one["group"] for text, one in self.json(LIST, "data-by-emoji.json").items()}

    @cached_property
    def keywords(self) -> Mapping[str, list[str]]:
        return {code_of(text): words for text, words in self.json(KEYWORDS, "dist/emoji-en-US.json").items()}

    @cached_property
    def tags(self) -> Mapping[str, list[str]]:
        """Names and tags, by code."""
        found: dict[str, list[str]] = {}
        for block in re.findall(r"\{\s*emoji: .*?\n  \}", self.text(TAGS, "index.js"), re.DOTALL):
            (text,) = re.findall(r"emoji: '(.*?)'", block)
            lists = [re.findall(rf"{key}: \[(.*?)\]", block, re.DOTALL) for key in ("names", "tags")]
            found[code_of(text)] = [word for (inner,) in lists for word in re.findall(r"'((?:[^'\\]|\\.)*)'", inner)]
        return found

    def drawings(self, team: Team) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """SVG texts of a team by name, and the code of some of the names."""
        icons = self.json(team.package, "icons.json")
        high = icons.get("height", 16)
        wide = icons.get("width", high)

        def svg(icon: Mapping[str, Any]) -> str:
            left, top = icon.get("left", 0), icon.get("top", 0)
            width, height = icon.get("width", wide), icon.get("height", high)
            return (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}" width="{8 * width}" height="{8 * height}">'
                f"{icon['body']}</svg>"
            )

        codes = {name: plain(code) for code, name in self.json(team.package, "chars.json").items()}
        return {name: svg(icon) for name, icon in icons["icons"].items()}, codes


def code_of(text: str) -> str:
    """The code points of an emoji, in hexadecimal, without the selector of its colored form."""
    return plain("-".join(f"{ord(character):x}" for character in text))


def plain(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")
