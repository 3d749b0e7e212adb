"""Who made what of the data set, and under which license: one file that travels with it."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

from bench.emoji.packages import DERIVED, KEYWORDS, LICENSE_URLS, LICENSES, LIST, NAMES, TAGS, TEAMS, Packages
from ptmst.data.credits import Credits

EXPRESSION = "Apache-2.0 AND CC-BY-4.0 AND MIT AND Unicode-3.0"
"""SPDX."""
CREDITS = Credits(
    EXPRESSION,
    (
        *(
            f"{team.name}, {team.url}. {team.notice}. {team.license}, {LICENSE_URLS[team.license]}. Changed."
            for team in TEAMS
        ),
        f"Captions: Unicode CLDR. Copyright © 2004-2026 Unicode, Inc. Unicode-3.0, {LICENSE_URLS['Unicode-3.0']}",
        "Captions: emojilib and unicode-emoji-json, Copyright (c) Mu-An Chiou; gemoji, Copyright (c) Titus Wormer. "
        f"MIT, {LICENSE_URLS['MIT']}",
    ),
)
_RULE = "=" * 100
_APACHE_NOTICE = """Copyright 2013 Google, Inc. All Rights Reserved.

Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with the
License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on an
"AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific
language governing permissions and limitations under the License."""
_MICROSOFT = "MIT License\n\nCopyright (c) Microsoft Corporation.\n"
"""As the project's file LICENSE begins; the rest is the text of the license."""


def written(packages: Packages, apache: str) -> str:
    """The file's text; `apache` is the text of the Apache License 2.0."""
    mit = packages.text(LIST, "LICENSE")
    permission = mit[mit.index("Permission is hereby granted") :]
    teams = "\n".join(
        f"* names that end in -{team.letter}: {team.name}. {team.notice}. {team.license}\n  {team.url}"
        for team in TEAMS
    )
    about = fill(
        "The pictures were drawn by the teams below, none of whom endorses this data set. They were changed: drawn "
        "from SVG at 64 pixels on white, cut to what can be seen, centered, and saved as WebP. Captions are short "
        "names and keywords of the Unicode CLDR, formal names of the Unicode Character Database, and keywords of "
        "three lists. Images that are distilled from these pictures begin as some of them.",
        120,
    )
    parts = [
        f"The data set emoji\nSPDX-License-Identifier: {EXPRESSION}\n\n{about}\n\n{teams}\n\n"
        f"* captions: Unicode CLDR ({NAMES}, {DERIVED}) and Unicode Character Database, by Unicode, Inc, Unicode-3.0\n"
        f"  keywords: {KEYWORDS}, by Mu-An Chiou and contributors, MIT\n"
        f"  names and tags: {TAGS}, by Titus Wormer, of gemoji by GitHub, Inc, MIT\n"
        f"  list and groups: {LIST}, by Mu-An Chiou, MIT",
        f"Noto Emoji: svg/LICENSE of the project\n\n{_APACHE_NOTICE}",
        f"Fluent Emoji: LICENSE of the project\n\n{_MICROSOFT}\n{permission}",
        "EmojiOne 2 and Emojitwo: LICENSE.md of both projects\n\nEmojiOne Artwork. Applies to all PNG and SVG files as "
        "well as any adaptations made.\nLicense: Creative Commons Attribution 4.0 International, below",
        "FxEmojis: LICENSE.md of the project\n\nCopyright 2015, Mozilla Foundation. License for the Visual Design: "
        "Creative Commons Attribution 4.0 International, below",
        "Twemoji: LICENSE-GRAPHICS of the project\n\nCopyright 2019 Twitter, Inc and other contributors. "
        f"Graphics: Creative Commons Attribution 4.0 International\n\n{packages.text(LICENSES, 'LICENSE-GRAPHICS')}",
        f"Unicode CLDR and Unicode Character Database\n\n{packages.text(NAMES, 'LICENSE')}",
        *(f"{name}\n\n{packages.text(name, file)}" for name, file in
          ((KEYWORDS, "LICENSE"), (TAGS, "license"), (LIST, "LICENSE"))),
        f"Apache License 2.0\n\n{apache}",
    ]  # fmt: skip
    return f"\n\n{_RULE}\n\n".join(part.strip() for part in parts) + "\n"


def apache(place: Path = Path("/usr/share/common-licenses/Apache-2.0")) -> str:
    """The license's text, as Debian carries it."""
    return place.read_text("utf-8")
