"""The data of a run, made ready: sets of ours are written, and a table that names no splits is given some."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import cast, get_args

import torch

from ptmst.config import SMALLEST_IMAGE, DataConfig, RunConfig, Writable, WriteDataConfig
from ptmst.data import load_split, write_data
from ptmst.data.annotations import Annotations
from ptmst.data.sources import source_of
from ptmst.data.tables import Table
from ptmst.errors import InputError
from ptmst.support import files
from ptmst.support.progress import note
from ptmst.support.seeds import generator

PAIRS = "pairs.csv"
_SHARE = 0.1
"""Of the images, that are held out for val, and for test."""
_FEWEST = 10
"""Images that splits are drawn of."""


def made_ready(config: RunConfig) -> DataConfig:
    """Where the pairs of a run are, with the splits train, val and test; what has to be written goes into its folder.

    Of a table whose rows are all for training a tenth of the images each is drawn for val and test, by the run's seed.
    Raises InputError for data that cannot be read or written.
    """
    source = DataConfig(
        config.data, config.root, image_column=config.image_column, caption_column=config.caption_column
    )
    if source.name in get_args(Writable) and source.root is None:
        root = config.out / "data"
        write_data(WriteDataConfig(name=cast(Writable, source.name), root=root))
        return DataConfig(source.name, root)
    table = source_of(source.name, source.image_column, source.caption_column)
    if not isinstance(table, Table) or table.present(source.folder) != ("train",):
        return source
    path = (config.out / PAIRS).absolute()
    # What is wrong with the user's file is told of that, not of ours.
    images = len(load_split(replace(source, image_size=SMALLEST_IMAGE), "train").image_names)
    if images < _FEWEST:
        raise InputError(
            f"{config.data}: expected splits, or at least {_FEWEST} pictures to draw some of, found {images}; add "
            "more, or a column `split`"
        )
    found = table.read(source.folder, "train")
    of_image = _drawn(len(found.image_names), config.seed)
    counts = ", ".join(f"{of_image.count(split):,} for {split}" for split in ("train", "val", "test"))
    note(
        f"{config.data}: names no splits; drew {counts} of its {len(of_image):,} pictures by seed {config.seed}: {path}"
    )
    files.write(path, _table(found, of_image))
    return DataConfig(f"csv:{path}", source.root)


def _drawn(images: int, seed: int) -> list[str]:
    """The split of each image."""
    held_out = max(1, round(_SHARE * images))
    order = torch.randperm(images, generator=generator(seed, "splits")).tolist()
    splits = ["train"] * images
    for place, image in enumerate(order[: 2 * held_out]):
        splits[image] = "val" if place < held_out else "test"
    return splits


def _table(found: Annotations, of_image: list[str]) -> bytes:
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("filepath", "title", "split"))
    for caption, image in zip(found.captions, found.image_of_text, strict=True):
        rows.writerow((found.image_names[image], caption, of_image[image]))
    return text.getvalue().encode("utf-8", "surrogateescape")
