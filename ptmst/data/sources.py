"""Data sets by name: the published ones, the rendered ones, and files of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ptmst.data.annotations import SPLITS, Source
from ptmst.data.contents import shown
from ptmst.data.karpathy import Karpathy, KarpathyFile
from ptmst.data.parquet import Parquet
from ptmst.data.shards import Shards
from ptmst.data.tables import Table
from ptmst.errors import InputError
from ptmst.schema import nearest


def _published(
    file: str,
    contents: str,
    whole: KarpathyFile | None = None,
    most: int | None = None,
    counts: Mapping[str, tuple[int, int]] | None = None,
) -> Karpathy:
    either = f" (Karpathy's {whole.file} does in place of the JSON file)" if whole else ""
    return Karpathy(file, ("train", "val", "test"), f"lay {contents} in {{root}}{either}", whole, most, counts or {})


def _generated(name: str) -> Karpathy:
    advice = (
        f"write the set with `ptmst data --name {name} --root {{root}}` (after deleting {name}.json, if it is there)"
    )
    return Karpathy(f"{name}_{{split}}.json", SPLITS, advice)


_SALESFORCE = "from storage.googleapis.com/sfr-vision-language-research/datasets"
SOURCES = {
    "emoji": _generated("emoji"),
    "scenes": _generated("scenes"),
    "digits": _generated("digits"),
    "drawings": _generated("drawings"),
    "stamps": _generated("stamps"),
    "flickr8k": _published(
        "flickr8k_{split}.json",
        "{file} and Flickr8k's folder Flicker8k_Dataset",
        KarpathyFile("dataset_flickr8k.json", "Flicker8k_Dataset"),
        counts={"train": (6_000, 30_000), "val": (1_000, 5_000), "test": (1_000, 5_000)},
    ),
    "flickr30k": _published(
        "flickr30k_{split}.json",
        f"{{file}} {_SALESFORCE} and Flickr30k's folder flickr30k-images",
        KarpathyFile("dataset_flickr30k.json", "flickr30k-images"),
        counts={"train": (29_000, 145_000), "val": (1_014, 5_070), "test": (1_000, 5_000)},
    ),
    "coco": _published(
        "coco_karpathy_{split}.json",
        f"{{file}} {_SALESFORCE} and COCO's folders train2014 and val2014",
        KarpathyFile("dataset_coco.json"),
        counts={"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)},
    ),
    "cc3m": _published(
        "cc3m_captions_{split}.json",
        'LLaVA-CC3M-Pretrain-595K\'s images and {file}, a list of {{"image": path, "caption": text}},',
        # The published evaluation leaves the rest out.
        most=10_000,
    ),
}
"""Data sets by name."""
FORMS: dict[str, Callable[[str], Source]] = {
    "csv": partial(Table, "csv"),
    "tsv": partial(Table, "tsv"),
    "jsonl": partial(Table, "jsonl"),
    "wds": Shards,
    "parquet": Parquet,
}
"""Files of a user's own, by what stands before the colon in csv:PATH."""
_OWN_FORMS = "csv:PATH, tsv:PATH, jsonl:PATH, wds:GLOB, parquet:GLOB"
_WITH_COLUMNS = ("csv", "tsv", "jsonl", "parquet")


def source_of(name: str, image_column: str | None = None, caption_column: str | None = None) -> Source:
    """The data set of that name: a key of SOURCES, csv:PATH, tsv:PATH, jsonl:PATH, wds:GLOB or parquet:GLOB.

    Raises InputError for a name that is none of them, and for columns where there are none.
    """
    form, _, path = name.partition(":")
    columns = {"image_column": image_column, "caption_column": caption_column}
    chosen = {setting: column for setting, column in columns.items() if column is not None}
    if chosen and form not in _WITH_COLUMNS:
        raise InputError(
            f"{' and '.join(chosen)}: expected data of {', '.join(_WITH_COLUMNS)}, found {shown(name)}, which has no "
            "columns; leave it out"
        )
    if form in FORMS and path:
        source = FORMS[form](path)
        return replace(source, **chosen) if chosen else source  # type: ignore[type-var]
    return SOURCES[known(name, tuple(SOURCES), "data set", _OWN_FORMS)]


def known(value: str, choices: Sequence[str], what: str, more: str = "") -> str:
    """`value`, if it is one of `choices`; `more` says what else it may be. Raises InputError with the nearest."""
    if value in choices:
        return value
    expected, advice = ", ".join([*choices, *filter(None, [more])]), nearest(value, choices, "choose one of them")
    raise InputError(f"{what}: expected {expected}, found {shown(repr(value))}{advice}")
