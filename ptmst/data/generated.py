"""Writing a rendered data set to disk: once, whole or not at all, and the same bytes for the same settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ptmst import schema
from ptmst.config import WriteDataConfig
from ptmst.data.classes import FILE as CLASSES
from ptmst.data.classes import write_classes
from ptmst.data.composition import COLORS, GRID, Scene, Shape, Vocabulary, compose, describe
from ptmst.data.karpathy import write_annotations
from ptmst.errors import InputError
from ptmst.support import files, folders

VERSION = 1
"""Raised whenever the same settings would give other bytes."""
FOLDER = folders.Kind("rendered data", beside=("scenes", "digits", "emoji", "drawings", "stamps", "classes", "credits"))
SPLITS = ("test", "val", "warmup", "train")
UNFINISHED = "unfinished"
"""The key of the record while the images are being written."""
_IMAGE = re.compile(r"\d{5}\.png")
JITTER = 0.02
"""How far a thing strays from the middle of its cell, image widths."""

RGB = tuple[int, int, int]
Progress = Callable[[int, int], None]
"""Called with (images written, images in all)."""


@dataclass(frozen=True)
class Placed:
    """A thing as it is to be drawn."""

    thing: Shape
    center: tuple[float, float]
    """x, y from the top left, image widths: a scene looks alike at any image size."""
    ink: RGB


@dataclass(frozen=True)
class Layout:
    """A scene as it is to be drawn."""

    image_size: int
    background: RGB
    placed: tuple[Placed, ...]


@dataclass(frozen=True)
class Classified:
    """What a scene is to be classified as."""

    prompts: Mapping[str, Sequence[str]]
    """Texts by class."""
    class_of: Callable[[Scene], str]


Painter = Callable[[Layout, str, np.random.Generator], Image.Image]
"""Draws a layout for the named split."""


def write_generated(
    config: WriteDataConfig,
    vocabulary: Vocabulary,
    paint: Painter,
    progress: Progress | None,
    classified: Classified | None = None,
) -> bool:
    """Write images, `{name}_{split}.json`, then `{name}.json` in the config's folder; False if all was there already.

    What is `classified` has a `classes.json` for the val and test splits beside them.

    Raises InputError for settings out of range and for a folder that holds other settings or cannot be written.
    """
    schema.check(config)
    name, root = config.name, Path(config.folder)
    record, settings = root / f"{name}.json", asdict(config)
    del settings["name"], settings["root"]
    annotations = {split: root / f"{name}_{split}.json" for split, count in _counts(config).items() if count}
    wanted = [*annotations.values(), *([root / CLASSES] if classified else [])]

    def finished() -> bool:
        return _is_finished(record, name, settings) and all(path.exists() for path in wanted)

    if finished():
        folders.tidy(root)
        return False
    content = {"format": f"ptmst-{name}", "version": VERSION, **settings}
    with folders.claimed(root, FOLDER):
        if finished():
            return False
        _refuse_foreign_images(root, name)
        # From here on the folder says whose it is, whenever the run is killed.
        files.write_json(record, {**content, UNFINISHED: True})
        _clear(root, name)
        _write(config, vocabulary, paint, progress, classified, annotations)
        files.write_json(record, content)
    return True


def _refuse_foreign_images(root: Path, name: str) -> None:
    ours = [root / f"{name}.json", *(root / f"{name}_{split}.json" for split in SPLITS)]
    images = (path for split in SPLITS for path in sorted((root / "images" / split).glob("*")))
    if (first := next(images, None)) is not None and not any(path.exists() for path in ours):
        raise InputError(
            f"{root}: expected a new folder, or one that `ptmst data` has begun, found {first.relative_to(root)}; "
            "choose another root or delete that folder"
        )


def _clear(root: Path, name: str) -> None:
    """Remove what a run with other settings left: it must not lie among the images of this one, nor name them."""
    for split in SPLITS:
        (root / f"{name}_{split}.json").unlink(missing_ok=True)
        folder = root / "images" / split
        for path in folder.glob("*.png"):
            if _IMAGE.fullmatch(path.name):
                path.unlink()
        with suppress(OSError):  # it is not there, or holds something else
            folder.rmdir()


def _counts(config: WriteDataConfig) -> dict[str, int]:
    """Images by split: the largest come last, so that their sizes do not change what the test split holds."""
    return dict(zip(SPLITS, (config.test, config.val, config.warmup, config.train), strict=True))


def _write(
    config: WriteDataConfig,
    vocabulary: Vocabulary,
    paint: Painter,
    progress: Progress | None,
    classified: Classified | None,
    annotations: Mapping[str, Path],
) -> None:
    root, counts = Path(config.folder), _counts(config)
    composition, *seeds = np.random.SeedSequence(config.seed).spawn(1 + len(counts))
    scenes = compose(vocabulary, counts, composition)
    rngs = {split: np.random.default_rng(seed) for split, seed in zip(counts, seeds, strict=True)}
    captioned: dict[str, list[tuple[str, list[str]]]] = {split: [] for split in annotations}
    classes: dict[str, str] = {}
    done, total = 0, sum(counts.values())
    try:
        for split in annotations:
            (root / "images" / split).mkdir(parents=True, exist_ok=True)
            for i, scene in enumerate(scenes[split]):
                image_name = f"images/{split}/{i:05d}.png"
                layout = _lay_out(scene, config.image_size, rngs[split])
                paint(layout, split, rngs[split]).save(root / image_name)
                captioned[split].append((image_name, describe(scene, vocabulary, config.captions, rngs[split])))
                if classified and split in ("val", "test"):
                    classes[image_name] = classified.class_of(scene)
                done += 1
                if progress:
                    progress(done, total)
    except OSError as error:
        raise InputError(f"{root}: expected a folder to write to, found {error}; choose another root") from error
    for split, path in annotations.items():
        write_annotations(path, captioned[split], entry_per_caption=split in ("train", "warmup"))
    if classified:
        write_classes(root, classified.prompts, classes)


def _is_finished(record: Path, name: str, settings: Mapping[str, object]) -> bool:
    """Whether a run has written it all, with these settings. Raises InputError where it had others."""
    if not record.exists():
        return False
    # A setting that is missing takes its default, so that a new one does not orphan old data.
    there = asdict(WriteDataConfig()) | files.read_json(record, name, VERSION)
    if there.get(UNFINISHED):
        return False
    differing = [f"{key} {there[key]} instead of {value}" for key, value in settings.items() if there[key] != value]
    if differing:
        raise InputError(
            f"{record}: expected the settings asked for, found {', '.join(differing)}; "
            "choose another root or delete that folder"
        )
    return True


def _lay_out(scene: Scene, image_size: int, rng: np.random.Generator) -> Layout:
    gray = rng.integers(10, 120)
    placed = []
    for thing in sorted(scene):
        row, column = thing.cell
        dx, dy = rng.uniform(-JITTER, JITTER, 2)
        ink = _shade(np.array(COLORS[thing.color]) * rng.uniform(0.85, 1.0))
        placed.append(Placed(thing, ((column + 0.5) / GRID + dx, (row + 0.5) / GRID + dy), ink))
    return Layout(image_size, _shade(gray + rng.integers(-10, 11, 3)), tuple(placed))


def _shade(values: np.ndarray) -> RGB:
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue
