"""Whole files of every form, small and made by code, from which mutants are made."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

FILES = {
    "csv": "csv:x.csv",
    "tsv": "tsv:x.tsv",
    "jsonl": "jsonl:x.jsonl",
    "list": "cc3m",
    "karpathy": "flickr8k",
    "wds": "wds:x.tar",
    "parquet": "parquet:x.parquet",
}
"""The data set that a file of each form is."""
NAMES = {form: name.partition(":")[2] for form, name in FILES.items()} | {
    "list": "cc3m_captions_train.json",
    "karpathy": "dataset_flickr8k.json",
}
"""What a file of each form is called, in the root."""
IMAGES = ("a.png", "sub/b c.png", "Flicker8k_Dataset/a.png")
FORMS = (*FILES, "picture")
CAPTIONS = (
    "A dog, running.",
    'a "red" ball',
    "two\nlines",
    "犬が二匹",
    "cafe\u0301 at night",
    "x",
    "👩‍👧 & <b>",
    "one\ttwo",
)


def noise(seed: int, *shape: int) -> np.ndarray:
    """Low in one corner and high in the other, so that a picture has structure."""
    rough = np.random.default_rng(seed).integers(-40, 40, shape)
    slope = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) * (200 / (shape[0] + shape[1]))
    return np.clip(slope[(..., *[None] * (len(shape) - 2))] + 20 + rough, 0, 255).astype(np.uint8)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_images(root: Path) -> None:
    """The images that the samples name."""
    for i, name in enumerate(IMAGES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(saved(Image.fromarray(noise(i, 6, 6, 3)), "png"))


def _cells(separator: str) -> list[bytes]:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if set(cell) & {separator, '"', "\n", "\r"} else cell

    def table(header: tuple[str, ...], *more: str, end: str = "\n") -> str:
        rows = [header, *((IMAGES[i % 2], caption, *more) for i, caption in enumerate(CAPTIONS))]
        return "".join(separator.join(map(quoted, row)) + end for row in rows)

    own = table(("filepath", "title"))
    marked = table(("image", "caption", "split"), "train", end="\r\n")
    return [own.encode(), own.encode("utf-8-sig"), own.encode("utf-16"), marked.encode(), (marked + "\r\n").encode()]


def _lines() -> list[bytes]:
    rows: list[dict[str, object]] = [{"image": IMAGES[i % 2], "caption": text} for i, text in enumerate(CAPTIONS)]
    other = [{"filepath": IMAGES[0], "title": list(CAPTIONS[:3]), "split": "train", "id": 7}, *rows]
    return [
        "\n".join(json.dumps(row) for row in rows).encode(),
        "".join(f"{json.dumps(r)}\n\n" for r in other).encode(),
    ]


def _list() -> list[bytes]:
    entries = [{"image": IMAGES[i % 2], "caption": text, "image_id": f"id_{i}"} for i, text in enumerate(CAPTIONS)]
    several = [{"image": IMAGES[0], "caption": CAPTIONS[:4]}, {"image": IMAGES[1], "caption": CAPTIONS[4:]}]
    return [json.dumps(entries, indent=0, ensure_ascii=False).encode(), json.dumps(several).encode()]


def _karpathy() -> list[bytes]:
    images = [
        {"filename": name, "split": "train", "imgid": i, "sentences": [{"raw": text, "sentid": 0} for text in CAPTIONS]}
        for i, name in enumerate(("a.png", "a.png"))
    ]
    return [json.dumps({"images": images, "dataset": "flickr8k"}).encode()]


def _tar(form: int, with_json: bool) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for i, caption in enumerate(CAPTIONS[:4]):
            text = json.dumps({"caption": [caption, "more"]}) if with_json else caption.replace("\n", " ")
            image = saved(Image.fromarray(noise(i, 6, 6, 3)), "png")
            for name, content in (
                (f"sub/{i:03}.png", image),
                (f"sub/{i:03}.{'json' if with_json else 'txt'}", text.encode()),
            ):
                member = tarfile.TarInfo(name if i else "long/" * 25 + name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _parquet() -> list[bytes]:
    images = [saved(Image.fromarray(noise(i, 6, 6, 3)), "png") for i in range(len(CAPTIONS))]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    held = pa.array([{"bytes": image, "path": f"{i // 2}.png"} for i, image in enumerate(images)], struct)
    paths = pa.array([IMAGES[i % 2] for i in range(len(CAPTIONS))])
    split = pa.array(["train"] * len(CAPTIONS))
    tables: list[tuple[Any, dict[str, Any]]] = [
        (pa.table({"image": held, "caption": list(CAPTIONS)}), {"compression": "none", "use_dictionary": False}),
        (pa.table({"image": held, "text": [[text, "more"] for text in CAPTIONS]}), {"compression": "snappy"}),
        (pa.table({"image": images, "caption": list(CAPTIONS), "split": split}), {"compression": "zstd"}),
        (pa.table({"image": paths, "caption": list(CAPTIONS)}), {"data_page_version": "2.0", "compression": "gzip"}),
    ]
    files = []
    for table, options in tables:
        file = io.BytesIO()
        pq.write_table(table, file, row_group_size=3, **options)
        files.append(file.getvalue())
    return files


def _pictures() -> list[bytes]:
    gray, color = Image.fromarray(noise(0, 20, 24)), Image.fromarray(noise(1, 20, 24, 3))
    alpha, deep = Image.fromarray(noise(2, 20, 24, 4)), noise(3, 20, 24).astype(np.uint16) * 257
    palette = color.quantize(16)
    turned = Image.Exif()
    turned[274] = 6  # orientation
    around = PngImagePlugin.PngInfo()
    around.add_text("Title", "a comment")
    around.add_text("Author", "x" * 60, zip=True)
    around.add_itxt("Software", "犬", "ja", "ソフト", zip=True)
    around.add(b"gAMA", struct.pack(">I", 45455))
    around.add(b"tIME", bytes(7))
    dense: dict[str, Any] = {"dpi": (300, 300), "icc_profile": b"no profile at all"}
    return [
        saved(color, "png", pnginfo=around, **dense),
        saved(color, "jpeg", comment=b"a comment", **dense),
        saved(gray, "png"),
        saved(color, "png"),
        saved(alpha, "png"),
        saved(Image.fromarray(deep), "png"),
        saved(gray.convert("1"), "png"),
        saved(palette, "png"),
        saved(palette, "png", transparency=3),
        saved(gray, "jpeg"),
        saved(color, "jpeg", quality=90),
        saved(color, "jpeg", progressive=True, exif=turned),
        saved(color, "webp"),
        saved(alpha, "webp", lossless=True),
        saved(palette, "gif"),
        saved(color, "bmp"),
        saved(color, "tiff"),
        saved(gray, "tiff", compression="tiff_lzw"),
        saved(color, "tiff", compression="tiff_adobe_deflate"),
    ]


_TAR_FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
_SAMPLES: dict[str, Callable[[], list[bytes]]] = {
    "csv": lambda: _cells(","),
    "tsv": lambda: _cells("\t"),
    "jsonl": _lines,
    "list": _list,
    "karpathy": _karpathy,
    "wds": lambda: [_tar(form, with_json) for form in _TAR_FORMS for with_json in (False, True)],
    "parquet": _parquet,
    "picture": _pictures,
}  # fmt: skip


@cache
def samples(form: str) -> list[bytes]:
    """Whole files of a form."""
    return _SAMPLES[form]()
