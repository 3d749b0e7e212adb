"""Distilled sets as published files, as a folder of pictures and as Parquet; published files as distilled sets."""

from __future__ import annotations

import builtins
import csv
import importlib
import importlib.util
import io
import json
import pickle
import random
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ptmst import load_pairs
from ptmst.config import DataConfig, EncoderConfig
from ptmst.data import clean_caption
from ptmst.data.credits import Credits
from ptmst.data.shipped import emoji
from ptmst.errors import InputError
from ptmst.exchange.distilled_sets import import_distilled
from ptmst.exchange.export import Form, export
from ptmst.recipe import Fingerprints, Recipe
from ptmst.support import files
from ptmst.support.files import sha256
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity

SIZES, WIDTH, RANK, ALPHA, STEPS = (5, 7), 6, 2, 3.0, 9
CAPTIONS = ("a dog, brown", 'Bär “ü”, "quoted"', "犬が二匹", "two\nlines", "")
KEYS = ["image", "similarity_mat", "similarity_params", "syn_lr_img", "syn_lr_txt", "text"]
RECIPE = Recipe(DataConfig(image_size=4), EncoderConfig(), WIDTH, Fingerprints("of data", "of texts", None))
SETTINGS = RECIPE.to_json()
FORMS: tuple[Form, ...] = ("ptm-st", "folder", "hf")
Change = Callable[[dict[str, Any]], object]


def similarity(form: str, n: int) -> Similarity:
    if form == "full":
        return FullSimilarity(torch.randn(n, n))
    return LowRankSimilarity(torch.randn(n), torch.randn(n, RANK), torch.randn(n, RANK), ALPHA)


def phase(n: int, form: str = "full") -> DistilledPhase:
    pairs = SyntheticPairs(torch.randn(n, 3, 4, 4), torch.randn(n, WIDTH), similarity(form, n), torch.rand(2))
    captions = tuple(CAPTIONS[i % len(CAPTIONS)] for i in range(n))
    return DistilledPhase(pairs, torch.rand(2), captions, {"loss": torch.rand(STEPS, 2), "lr": torch.rand(STEPS, 2)})


def distilled(form: str = "full", sizes: tuple[int, ...] = SIZES) -> DistilledSet:
    provenance = {"method": "distilled", "seed": 3, "store_sha256": "ab" * 32, "versions": {"torch": "2"}}
    return DistilledSet(tuple(phase(n, form) for n in sizes), {**provenance, "config": {"out": "/home/me"}}, SETTINGS)


def one() -> DistilledSet:
    return distilled(sizes=(5,))


def published(form: str = "full", n: int = 5) -> dict[str, Any]:
    """A file's content, written down from the published code and not from ours."""
    a, left, right, full = torch.randn(n), torch.randn(n, RANK), torch.randn(n, RANK), torch.randn(n, n)
    low_rank = torch.diag(a) + left @ right.T * ALPHA / RANK
    return {
        "image": torch.randn(n, 3, 4, 4),
        "text": torch.randn(n, WIDTH),
        "similarity_params": [full] if form == "full" else [a, left, right],
        "similarity_mat": full.clone() if form == "full" else low_rank,
        "syn_lr_img": torch.tensor(0.11),
        "syn_lr_txt": torch.tensor(0.07),
    }


def saved(path: Path, content: object, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **how)
    return path


def refused(path: Path, message: str) -> None:
    """One line that begins with the file's name and ends with what to do."""
    with pytest.raises(InputError) as caught:
        import_distilled([path], RECIPE)
    assert str(caught.value) == f"{path}: {message}; get the published distilled set again"
    assert "\n" not in str(caught.value)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class PublishedReader:
    """What the published evaluation takes from a file, by its own rules."""

    def __init__(self, path: Path) -> None:
        ckpt = torch.load(path, weights_only=True)
        assert sorted(ckpt) == KEYS
        self.image, self.text = ckpt["image"].to("cpu"), ckpt["text"].to("cpu")
        self.params: list[Tensor] = [p.to("cpu") for p in ckpt["similarity_params"]]
        self.matrix = ckpt["similarity_mat"].to("cpu")
        self.syn_lr_img, self.syn_lr_txt = ckpt["syn_lr_img"].item(), ckpt["syn_lr_txt"].item()
        self.types = {t.dtype for t in (self.image, self.text, *self.params, self.matrix, ckpt["syn_lr_img"])}

    def labels(self) -> Tensor:
        if len(self.params) == 1:
            return self.params[0]
        a, left, right = self.params
        return torch.diag(a) + left @ right.t() * ALPHA / float(RANK)


@pytest.mark.parametrize("form", ["full", "low-rank"])
def test_the_published_reader_gets_the_set(tmp_path: Path, form: str) -> None:
    given = distilled(form)
    written = export(given, tmp_path / "out", "ptm-st")
    assert written == [tmp_path / "out" / f"distilled_{number}_{STEPS}.pt" for number in (0, 1)]
    assert sorted(tree(tmp_path / "out")) == [path.name for path in written]
    for path, entry in zip(written, given.phases, strict=True):
        read = PublishedReader(path)
        assert read.types == {torch.float32}
        assert torch.equal(read.image, entry.pairs.images) and torch.equal(read.text, entry.pairs.texts)
        torch.testing.assert_close(read.labels(), entry.pairs.similarity.dense())
        torch.testing.assert_close(read.matrix, read.labels())
        # Not the averaged rates (docs/method.md §5).
        assert [read.syn_lr_img, read.syn_lr_txt] == entry.last_lr.tolist() != entry.pairs.lr.tolist()


@pytest.mark.parametrize("form", ["full", "low-rank"])
def test_what_is_exported_comes_back(tmp_path: Path, form: str) -> None:
    given = distilled(form)
    found = import_distilled(export(given, tmp_path / "out", "ptm-st"), RECIPE)
    assert found.settings == SETTINGS and found.tower is None
    for theirs, ours in zip(found.phases, given.phases, strict=True):
        expected = {**ours.pairs.leaves(), "lr": ours.last_lr}
        assert sorted(theirs.pairs.leaves()) == sorted(expected)
        for name, leaf in theirs.pairs.leaves().items():
            assert leaf.dtype == torch.float32 and torch.equal(leaf, expected[name]), name
        assert torch.equal(theirs.last_lr, ours.last_lr)
        assert theirs.captions == ("",) * len(theirs.pairs) and not theirs.history
        torch.testing.assert_close(theirs.pairs.similarity.dense(), ours.pairs.similarity.dense())
    found.save(tmp_path / "set")
    assert DistilledSet.load(tmp_path / "set").provenance == found.provenance


@pytest.mark.parametrize("existed", [False, True])
def test_an_export_that_is_stopped_leaves_the_folder_as_it_was(
    tmp_path: Path, existed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", files.write
    written: list[Path] = []
    if existed:
        out.mkdir()

    def stopped(path: Path, content: bytes) -> str:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            export(distilled("full"), out, "folder")
    assert len(written) == 4 and not (out.exists() and list(out.iterdir()))
    assert export(distilled("full"), out, "folder")


def test_pictures_are_written_as_published_code_normalizes_them(tmp_path: Path) -> None:
    """With CLIP's mean and deviation, whatever the set's own."""
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
    given = replace(distilled(), settings={**SETTINGS, "data": {**SETTINGS["data"], "mean": mean, "std": std}})
    clip = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    for path, pairs in zip(export(given, tmp_path / "out", "ptm-st"), given, strict=True):
        own = [torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std, *clip)]
        expected = (pairs.images.double() * own[1] + own[0] - own[2]) / own[3]
        torch.testing.assert_close(PublishedReader(path).image.double(), expected, rtol=1e-5, atol=1e-5)


def test_lors_is_one_file(tmp_path: Path) -> None:
    given = distilled("low-rank", (5,))
    (path,) = export(given, tmp_path / "out", "lors")
    assert path.name == f"distilled_{STEPS}.pt"
    torch.testing.assert_close(PublishedReader(path).labels(), given[0].similarity.dense())
    (other,) = export(replace(given, phases=(replace(given.phases[0], history={}),)), tmp_path / "no steps", "lors")
    assert other.name == "distilled_0.pt"


def test_leaves_of_another_kind_are_written_alike(tmp_path: Path) -> None:
    """Views, gradients and half precision: a file holds their values only."""
    plain = phase(5)
    leaves = {
        "images": torch.cat([plain.pairs.images, torch.randn(2000, 3, 4, 4)])[:5].requires_grad_(),
        "texts": plain.pairs.texts.T.contiguous().T,
        "similarity": plain.pairs.similarity.dense().double(),
        "lr": plain.pairs.lr,
    }
    export(DistilledSet((plain,), {}, {}), tmp_path / "plain", "ptm-st")
    export(DistilledSet((replace(plain, pairs=plain.pairs.replace(leaves)),), {}, {}), tmp_path / "odd", "ptm-st")
    assert tree(tmp_path / "plain") == tree(tmp_path / "odd")


@pytest.mark.parametrize("form", FORMS)
def test_the_same_set_gives_the_same_bytes(tmp_path: Path, form: Form) -> None:
    given = distilled("low-rank")
    for name in ("a", "b"):
        export(given, tmp_path / name, form)
    assert tree(tmp_path / "a") == tree(tmp_path / "b") and tree(tmp_path / "a")


def pixels(image: Tensor) -> Any:
    mean = np.array([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return np.clip((image.double().numpy() * std + mean) * 255, 0, 255).transpose(1, 2, 0)


def test_a_folder_shows_the_pairs(tmp_path: Path) -> None:
    given = distilled()
    given[0].images[0] = 9 * torch.randn(3, 4, 4)
    out = tmp_path / "out"
    written = export(given, out, "folder")
    assert sorted(str(path.relative_to(out)) for path in written) == sorted(tree(out))
    names = [f"phase-{number}/{i:03}.png" for number, n in enumerate(SIZES, start=1) for i in range(n)]
    assert sorted(tree(out)) == sorted([*names, "README.md", "metadata.csv"])
    with open(out / "metadata.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    images = [image for pairs in given for image in pairs.images]
    captions = [caption for entry in given.phases for caption in entry.captions]
    assert list(rows[0]) == ["file_name", "caption", "phase"]
    assert [row["file_name"] for row in rows] == names
    assert [row["caption"] for row in rows] == captions
    assert [row["phase"] for row in rows] == ["1"] * 5 + ["2"] * 7
    clipped = 0
    for name, image in zip(names, images, strict=True):
        with Image.open(out / name) as picture:
            assert (picture.format, picture.mode) == ("PNG", "RGB")
            found = np.asarray(picture, dtype=np.float64)
        assert np.abs(found - pixels(image)).max() < 1
        clipped += int(np.isin(pixels(image), (0, 255)).sum())
    assert clipped > 10
    readme = (out / "README.md").read_text("utf-8")
    assert readme.count("\n") == 3 and readme.startswith("12 synthetic image-text pairs in 2 phases")


def test_parquet_holds_the_pairs(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    given, out = distilled(), tmp_path / "out"
    written = export(given, out, "hf")
    assert [str(path.relative_to(out)) for path in written] == [
        "data/train-00000-of-00001.parquet",
        "README.md",
        "distilled.json",
        "phase-1.safetensors",
        "phase-2.safetensors",
    ]
    table = parquet.read_table(written[0])
    assert {field.name: str(field.type) for field in table.schema} == {
        "image": "struct<bytes: binary, path: string>",
        "caption": "string",
        "phase": "int32",
        "text_embedding": str(table.schema.field("text_embedding").type),
    }
    assert str(table.schema.field("text_embedding").type.value_type) == "float"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names and features["image"] == {"_type": "Image"}
    rows = table.to_pylist()
    expected = [
        (number, i, entry.pairs.images[i], entry.pairs.texts[i], entry.captions[i])
        for number, entry in enumerate(given.phases, start=1)
        for i in range(len(entry.pairs))
    ]
    for row, (number, i, image, text, caption) in zip(rows, expected, strict=True):
        assert (row["phase"], row["caption"], row["text_embedding"]) == (number, caption, text.tolist())
        assert row["image"]["path"] == f"phase-{number}/{i:03}.png"
        with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
            assert np.abs(np.asarray(picture, dtype=np.float64) - pixels(image)).max() < 1


def test_row_groups_are_small(tmp_path: Path) -> None:
    """A reader of one image reads the images of its row group."""
    parquet = pytest.importorskip("pyarrow.parquet")
    pairs = SyntheticPairs(torch.randn(250, 3, 2, 2), torch.randn(250, 3), FullSimilarity.identity(250), torch.rand(2))
    given = DistilledSet((DistilledPhase(pairs, torch.rand(2), ("a",) * 250),), {}, {})
    metadata = parquet.read_metadata(export(given, tmp_path / "out", "hf")[0])
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 50]


@pytest.mark.parametrize("tower", [None, {"weight": torch.rand(3)}])
@pytest.mark.parametrize("form", ["full", "low-rank"])
def test_an_export_for_hugging_face_is_the_set_too(tmp_path: Path, form: str, tower: dict[str, Tensor] | None) -> None:
    pytest.importorskip("pyarrow")
    given = replace(distilled(form), tower=tower)
    given.save(tmp_path / "set")
    written = export(given, tmp_path / "out", "hf")
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in written) == sorted(tree(tmp_path / "out"))
    saved = {name: content for name, content in tree(tmp_path / "set").items() if name != "distilled.json"}
    assert saved.items() <= tree(tmp_path / "out").items()
    found = DistilledSet.load(tmp_path / "out")
    assert (found.provenance, found.settings) == (given.provenance, given.recipe.portable().to_json())
    assert found.recipe.decisive() == given.recipe.decisive()
    for theirs, ours in zip(found.phases, given.phases, strict=True):
        tensors = [{**phase.pairs.leaves(), "last": phase.last_lr, **phase.history} for phase in (theirs, ours)]
        assert tensors[0].keys() == tensors[1].keys() and theirs.captions == ours.captions
        assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
        torch.testing.assert_close(theirs.pairs.similarity.dense(), ours.pairs.similarity.dense(), rtol=0, atol=0)


def test_an_export_for_hugging_face_is_data(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    given, out = distilled(), tmp_path / "out"
    export(given, out, "hf")
    found = load_pairs("parquet:data/{split}-*.parquet", out, image_size=4)
    shown = [
        (clean_caption(caption), image)
        for entry in given.phases
        for caption, image in zip(entry.captions, entry.pairs.images, strict=True)
        if caption
    ]
    worded = [i for i, caption in enumerate(found.captions) if caption]
    assert [found.captions[i] for i in worded] == [caption for caption, _ in shown]
    for image, (_, expected) in zip(found.pixels(found.image_of_text[worded]), shown, strict=True):
        assert np.abs(image.permute(1, 2, 0).double().numpy() - pixels(expected)).max() < 1


def test_a_folder_is_data(tmp_path: Path) -> None:
    given, out = distilled(), tmp_path / "out"
    export(given, out, "folder")
    found = load_pairs("csv:metadata.csv", out, image_size=4, image_column="file_name")
    captions = [caption for entry in given.phases for caption in entry.captions if caption]
    assert list(found.captions) == [clean_caption(caption) for caption in captions]
    assert found.image_names[0] == "phase-1/000.png"
    assert np.abs(found.pixels(torch.tensor([0]))[0].permute(1, 2, 0).double() - pixels(given[0].images[0])).max() < 1


def test_the_data_card_says_where_a_set_comes_from(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    yaml = pytest.importorskip("yaml")
    export(distilled(), tmp_path / "out", "hf")
    _, front, body = (tmp_path / "out/README.md").read_text("utf-8").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-00000-of-00001.parquet"}],
            }
        ],
        "task_categories": ["image-to-text", "text-to-image"],
        "tags": ["image-text-retrieval", "dataset-distillation", "synthetic"],
        "size_categories": ["n<1K"],
        "license": "unknown",
    }
    told = json.loads(body.split("```json\n")[1].split("```")[0])
    assert told == {"method": "distilled", "seed": 3, "store_sha256": "ab" * 32, "versions": {"torch": "2"}}


@pytest.mark.parametrize(
    ("license", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        (
            "MIT AND Our Own (2)",
            {"license": "other", "license_name": "mit-and-our-own-2", "license_link": "README.md"},
        ),
        ("©", {"license": "other", "license_name": "of-the-data", "license_link": "README.md"}),
        (emoji().credits.license, {"license": "other", "license_link": "LICENSES.txt"}),
    ],
)
def test_the_hub_reads_the_card(tmp_path: Path, license: str, expected: dict[str, str]) -> None:
    """By its own parser; license names have the form that it asks for, and links lead to files."""
    pytest.importorskip("pyarrow")
    card_of = pytest.importorskip("huggingface_hub").DatasetCard
    credits = Credits(license, ("Owls, by A. Painter",)) if license != emoji().credits.license else emoji().credits
    export(replace(distilled(), settings=replace(RECIPE, credits=credits).to_json()), tmp_path / "out", "hf")
    card = card_of((tmp_path / "out/README.md").read_text("utf-8"))
    found = card.data.to_dict()
    assert {name: found.get(name) for name in expected} == expected
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", found.get("license_name", "x"))
    assert "license_link" not in found or (tmp_path / "out" / found["license_link"]).is_file()
    assert {*found["task_categories"]} <= HUB_TASKS
    assert "Owls, by A. Painter" in card.text or credits == emoji().credits


HUB_TASKS = {"feature-extraction", "image-to-text", "text-to-image", "zero-shot-image-classification"}
"""Of huggingface.co/tasks, those that have to do with pictures and texts."""


def test_the_snippet_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    hub = pytest.importorskip("huggingface_hub")
    given = distilled()
    export(given, tmp_path / "out", "hf")
    (snippet,) = re.findall("```python\n(.*?)```", (tmp_path / "out/README.md").read_text("utf-8"), re.DOTALL)
    asked = list[tuple[str, str]]()

    def download(name: str, *, repo_type: str) -> str:
        asked.append((name, repo_type))
        return str(tmp_path / "out")

    monkeypatch.setattr(hub, "snapshot_download", download)
    here = dict[str, Any]()
    exec(snippet, here)
    assert asked == [("OWNER/NAME", "dataset")]
    assert here["distilled"].num_pairs == given.num_pairs and len(here["batch"].images) > 0


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the package datasets is not installed")
def test_datasets_reads_it(tmp_path: Path) -> None:
    datasets = importlib.import_module("datasets")
    given = distilled()
    export(given, tmp_path / "out", "hf")
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 12 and rows[1]["image"].size == (4, 4)
    assert np.abs(np.asarray(rows[1]["image"], dtype=np.float64) - pixels(given[0].images[1])).max() < 1
    assert rows[1]["caption"] == CAPTIONS[1] and rows[11]["text_embedding"] == given[1].texts[6].tolist()


# What cannot be exported


def assert_writes_nothing(given: DistilledSet, out: Path, form: str, message: str) -> None:
    before = tree(out.parent)
    with pytest.raises(InputError) as caught:
        export(given, out, cast(Form, form))
    assert str(caught.value) == message
    assert tree(out.parent) == before


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_in_use_is_refused(tmp_path: Path, form: Form) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".hidden").write_text("mine")
    message = f"{out}: expected a new or empty folder, found .hidden in it; choose another or empty it"
    assert_writes_nothing(one(), out, form, message)
    (out / ".hidden").unlink()
    assert all(path.is_file() for path in export(one(), out, form))


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    message = (
        f"{tmp_path / 'out'}: expected a new or empty folder, found what is none (Not a directory); choose another"
    )
    assert_writes_nothing(one(), tmp_path / "out", "folder", message)


def test_lors_has_no_phases(tmp_path: Path) -> None:
    message = "lors: expected a set of one phase, found 2 phases; export it as ptm-st"
    assert_writes_nothing(distilled(), tmp_path / "out", "lors", message)


@pytest.mark.parametrize("form", ["ptm-st", "lors"])
@pytest.mark.parametrize("groups", [1, 3])
def test_published_files_have_two_rates(tmp_path: Path, form: str, groups: int) -> None:
    given = replace(one(), phases=(replace(one().phases[0], last_lr=torch.rand(groups)),))
    message = (
        f"phase 1: expected a learning rate of two groups, image and text, found [{groups}]; export it as folder or hf"
    )
    assert_writes_nothing(given, tmp_path / "out", form, message)
    assert export(given, tmp_path / "out", "folder")


def test_another_form_is_refused(tmp_path: Path) -> None:
    message = "form: expected ptm-st, lors, folder, hf, found 'zip'; choose one of them"
    assert_writes_nothing(one(), tmp_path / "out", "zip", message)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leaf", ["images", "texts", "similarity", "lr", "last_lr"])
def test_leaves_that_are_not_finite_are_refused(tmp_path: Path, form: Form, leaf: str) -> None:
    given = distilled()
    leaves = {**given[1].leaves(), "last_lr": given.phases[1].last_lr}
    leaves[leaf].view(-1)[-1] = torch.nan
    message = f"phase 2: expected finite {leaf}, found NaN or infinity, and wrote nothing; run `ptmst distill` again"
    assert_writes_nothing(given, tmp_path / "out", form, message)


def test_a_missing_pyarrow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, package: str | None = None) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    message = "hf: expected the package pyarrow, found none; pip install 'ptmst[hf]'"
    assert_writes_nothing(one(), tmp_path / "out", "hf", message)


# Published files that are read


@pytest.mark.parametrize("form", ["full", "low-rank"])
def test_a_published_file_is_read(tmp_path: Path, form: str) -> None:
    contents = [published(form, n) for n in SIZES]
    paths = [saved(tmp_path / f"distilled_{i}_2000.pt", content) for i, content in enumerate(contents)]
    found = import_distilled(paths, RECIPE, lambda texts: tuple(f"{row.sum():.4f}" for row in texts))
    assert found.provenance == {"method": "imported", "files": {p.name: sha256(p.read_bytes()) for p in paths}}
    for content, entry in zip(contents, found.phases, strict=True):
        assert torch.equal(entry.pairs.images, content["image"]) and torch.equal(entry.pairs.texts, content["text"])
        torch.testing.assert_close(entry.pairs.similarity.dense(), content["similarity_mat"])
        for ours, theirs in zip(entry.pairs.similarity.leaves().values(), content["similarity_params"], strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(entry.pairs.lr, torch.tensor([0.11, 0.07])) and torch.equal(entry.last_lr, entry.pairs.lr)
        assert entry.captions == tuple(f"{row.sum():.4f}" for row in content["text"])


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [saved(tmp_path / folder / "distilled_9.pt", published()) for folder in "ab"]
    files = import_distilled(paths, RECIPE).provenance["files"]
    assert files == {str(path): sha256(path.read_bytes()) for path in paths}


@pytest.mark.parametrize("alpha", [3.0, 1.0, 0.01, -2.5, 0.0])
def test_alpha_is_found(tmp_path: Path, alpha: float) -> None:
    content = published("low-rank", 30)
    a, left, right = content["similarity_params"]
    content["similarity_mat"] = torch.diag(a) + left @ right.T * alpha / RANK
    found = import_distilled([saved(tmp_path / "a.pt", content)], RECIPE)[0].similarity
    assert isinstance(found, LowRankSimilarity) and found.alpha == pytest.approx(alpha, rel=1e-5, abs=1e-7)


def drop_matrix(content: dict[str, Any]) -> None:
    del content["similarity_mat"]


def without_right(content: dict[str, Any]) -> None:
    content["similarity_params"][2].zero_()
    content["similarity_mat"] = torch.diag(content["similarity_params"][0])


@pytest.mark.parametrize("change", [drop_matrix, without_right])
def test_alpha_is_one_where_nothing_tells_it(tmp_path: Path, change: Change) -> None:
    content = published("low-rank")
    change(content)
    found = import_distilled([saved(tmp_path / "a.pt", content)], RECIPE)[0].similarity
    assert isinstance(found, LowRankSimilarity) and found.alpha == 1.0


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(more=[1, {"a": "b"}], epoch=3),
        lambda content: content.update(syn_lr_img=0.11, syn_lr_txt=0.07),
        lambda content: content.update(syn_lr_img=torch.tensor([0.11]), syn_lr_txt=torch.tensor(0.07).double()),
        lambda content: content.update(image=torch.nn.Parameter(content["image"])),
        lambda content: content.update(image=content["image"].double(), text=content["text"].T.contiguous().T),
        lambda content: content.update(similarity_params=tuple(content["similarity_params"])),
        lambda content: content.pop("similarity_params"),
        lambda content: content.pop("similarity_mat"),
    ],
)
def test_harmless_differences_are_read_alike(tmp_path: Path, change: Change) -> None:
    content = published()
    plain = import_distilled([saved(tmp_path / "plain.pt", content)], RECIPE)[0]
    change(content)
    found = import_distilled([saved(tmp_path / "other.pt", content)], RECIPE)[0]
    for name, leaf in found.leaves().items():
        assert leaf.dtype == torch.float32 and not leaf.requires_grad and torch.equal(leaf, plain.leaves()[name]), name


# Published files that are refused


def puts(name: str, value: Callable[[dict[str, Any]], object]) -> Change:
    return lambda content: content.update({name: value(content)})


def bad(name: str, value: float) -> Change:
    return lambda content: content[name].view(-1)[3 % content[name].numel()].fill_(value)


FULL_REFUSALS: dict[str, tuple[Change, str]] = {
    "no image": (lambda c: c.pop("image"), "expected image of shape [N, 3, H, W], found none"),
    "no text": (lambda c: c.pop("text"), "expected text of shape [5, D], found none"),
    "no image rate": (lambda c: c.pop("syn_lr_img"), "expected syn_lr_img of shape [], found none"),
    "no text rate": (lambda c: c.pop("syn_lr_txt"), "expected syn_lr_txt of shape [], found none"),
    "no labels": (
        lambda c: (c.pop("similarity_params"), c.pop("similarity_mat")),
        "expected similarity_params or similarity_mat, found neither",
    ),
    "a list": (puts("image", lambda c: [1]), "expected image of shape [N, 3, H, W], found list"),
    "whole numbers": (
        puts("image", lambda c: c["image"].int()),
        "expected image of shape [N, 3, H, W], found torch.int32, torch.strided, cpu",
    ),
    "sparse": (
        puts("text", lambda c: c["text"].to_sparse()),
        "expected text of shape [5, D], found torch.float32, torch.sparse_coo, cpu",
    ),
    "no memory": (
        puts("text", lambda c: c["text"].to("meta")),
        "expected text of shape [5, D], found torch.float32, torch.strided, meta",
    ),
    "two channels": (
        puts("image", lambda c: c["image"][:, :2].clone()),
        "expected image of shape [N, 3, H, W], found [5, 2, 4, 4]",
    ),
    "no pairs": (
        puts("image", lambda c: c["image"][:0].clone()),
        "expected image of shape [N, 3, H, W], found [0, 3, 4, 4]",
    ),
    "flat images": (
        puts("image", lambda c: c["image"].flatten(1)),
        "expected image of shape [N, 3, H, W], found [5, 48]",
    ),
    "fewer texts": (puts("text", lambda c: c["text"][:4].clone()), "expected text of shape [5, D], found [4, 6]"),
    "fewer labels": (
        puts("similarity_mat", lambda c: torch.eye(4)),
        "expected similarity_mat of shape [5, 5], found [4, 4]",
    ),
    "fewer label leaves": (
        puts("similarity_params", lambda c: [torch.eye(4)]),
        "expected similarity_params of shape [5, 5], found [4, 4]",
    ),
    "two label leaves": (
        puts("similarity_params", lambda c: [torch.eye(5)] * 2),
        "expected a list of 1 or 3 tensors as similarity_params, found 2",
    ),
    "labels alone": (
        puts("similarity_params", lambda c: torch.eye(5)),
        "expected a list of 1 or 3 tensors as similarity_params, found Tensor",
    ),
    "two rates": (puts("syn_lr_img", lambda c: torch.rand(2)), "expected syn_lr_img of shape [], found [2]"),
    "a word": (puts("syn_lr_txt", lambda c: "0.1"), "expected syn_lr_txt of shape [], found str"),
    "claims": (
        puts("image", lambda c: torch.zeros(1).expand(10**6, 3, 10**4, 10**4)),
        "expected image of shape [N, 3, H, W], found [1000000, 3, 10000, 10000]",
    ),
    "NaN image": (bad("image", torch.nan), "expected finite image, found NaN or infinity"),
    "NaN text": (bad("text", torch.inf), "expected finite text, found NaN or infinity"),
    "NaN label": (bad("similarity_mat", -torch.inf), "expected finite similarity_mat, found NaN or infinity"),
    "NaN rate": (bad("syn_lr_img", torch.nan), "expected finite syn_lr_img, found NaN or infinity"),
    "NaN as float": (puts("syn_lr_txt", lambda c: float("nan")), "expected finite syn_lr_txt, found NaN or infinity"),
    "beyond float32": (puts("syn_lr_txt", lambda c: 1e300), "expected finite syn_lr_txt, found NaN or infinity"),
}


@pytest.mark.parametrize("case", FULL_REFUSALS)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    change, message = FULL_REFUSALS[case]
    content = published()
    change(content)
    refused(saved(tmp_path / "a.pt", content), message)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(4), "expected similarity_params of shape [5], found [4]"),
        (1, torch.ones(5, 0), "expected similarity_params of shape [5, rank], found [5, 0]"),
        (2, torch.ones(5, 3), "expected similarity_params of shape [5, 2], found [5, 3]"),
        (2, torch.full((5, 2), torch.nan), "expected finite similarity_params, found NaN or infinity"),
    ],
)
def test_low_rank_leaves_that_do_not_fit_are_refused(tmp_path: Path, place: int, value: Tensor, message: str) -> None:
    content = published("low-rank")
    content["similarity_params"][place] = value
    refused(saved(tmp_path / "a.pt", content), message)


@pytest.mark.parametrize(("off", "fits"), [(0.0, True), (4e-4, True), (3e-3, False), (1.0, False)])
def test_a_matrix_of_other_leaves_is_refused(tmp_path: Path, off: float, fits: bool) -> None:
    content = published("low-rank", 30)
    noise = torch.randn(30, 30)
    content["similarity_mat"] += off * noise * content["similarity_mat"].norm() / noise.norm()
    path = saved(tmp_path / "a.pt", content)
    if fits:
        assert len(import_distilled([path], RECIPE)[0]) == 30
        return
    with pytest.raises(
        InputError,
        match=r"a\.pt: expected a similarity_mat that its similarity_params make, found one that differs from the "
        r"nearest by [\d.]+ of [\d.]+; get the published distilled set again$",
    ):
        import_distilled([path], RECIPE)


def test_a_matrix_beside_a_right_leaf_of_zeros_is_refused(tmp_path: Path) -> None:
    content = published("low-rank")
    content["similarity_params"][2] = torch.zeros(5, RANK)
    with pytest.raises(InputError, match="expected a similarity_mat that its similarity_params make"):
        import_distilled([saved(tmp_path / "a.pt", content)], RECIPE)


@pytest.mark.parametrize("content", [[torch.ones(3)], torch.ones(3), None, "text"])
def test_something_else_is_refused(tmp_path: Path, content: object) -> None:
    found = type(content).__name__
    refused(saved(tmp_path / "a.pt", content), f"expected a dictionary of tensors, found {found}")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "image",
            lambda c: torch.randn(5, 3, 8, 8),
            r"expected each image of shape \[3, 4, 4\], as .+ found \[3, 8, 8",
        ),
        ("text", lambda c: torch.randn(5, 9), r"expected each text of shape \[6\], as in the first file, found \[9\]"),
    ],
)
def test_phases_of_different_encoders_are_refused(tmp_path: Path, name: str, change: Change, message: str) -> None:
    first, second = published(), published()
    second[name] = change(second)
    paths = [saved(tmp_path / "a.pt", first), saved(tmp_path / "b.pt", second)]
    with pytest.raises(InputError, match=rf"b\.pt: {message}.*; import sets of one encoder together$"):
        import_distilled(paths, RECIPE)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^distilled: expected a published file for each phase, found none; name the"):
        import_distilled([], RECIPE)
    with pytest.raises(InputError, match=r"a\.pt: cannot be read \(No such file or directory\); check the path$"):
        import_distilled([tmp_path / "a.pt"], RECIPE)
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\); check the path$"):
        import_distilled([tmp_path], RECIPE)


class Mine:
    """Unpickled the trusting way, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.open, (str(self.path), "w")


DAMAGED = "expected a whole file of torch.save, found a damaged file or another kind"
ASKS = "expected a dictionary of tensors, found a pickle that asks for more, none of which was run"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("form", ["alone", "beside tensors", "in place of a tensor", "legacy", "plain pickle"])
def test_nothing_in_a_file_runs(tmp_path: Path, form: str) -> None:
    made, path = tmp_path / "made", tmp_path / "a.pt"
    mine = Mine(made)
    legacy = form in ("legacy", "plain pickle")
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"image": mine}))
    else:
        key = "more" if form == "beside tensors" else "text"
        content = mine if form == "alone" else {**published(), key: mine}
        saved(path, content, _use_new_zipfile_serialization=not legacy)
    refused(path, DAMAGED if legacy else ASKS)
    assert not made.exists()
    # The trusting way shows that the trap is one.
    pickle.loads(path.read_bytes()) if form == "plain pickle" else torch.load(path, weights_only=False)
    assert made.exists()


class Posing(OrderedDict[str, Any]):
    """Pickles as an OrderedDict with attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"get": 3, "pop": 3}, None, iter(self.items())


def test_attributes_from_a_file_are_not_called(tmp_path: Path) -> None:
    image = torch.nn.Parameter(torch.randn(5, 3, 4, 4))
    for name in ("float", "detach", "numel", "untyped_storage"):
        setattr(image, name, 3)
    content = Posing({**published(), "image": image})
    path = saved(tmp_path / "a.pt", content)
    read = torch.load(path, weights_only=True)
    assert read.get == 3 and read["image"].float == 3
    assert torch.equal(import_distilled([path], RECIPE)[0].images, Tensor.detach(image))


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    refused(path, DAMAGED)


def test_a_short_file_is_refused(tmp_path: Path) -> None:
    content = saved(tmp_path / "whole.pt", published()).read_bytes()
    lengths = [0, 1, 4, 100, len(content) // 3, len(content) // 2, *(len(content) - k for k in (200, 22, 21, 1))]
    for length in lengths:
        path = tmp_path / f"{length}.pt"
        path.write_bytes(content[:length])
        refused(path, DAMAGED)


@pytest.mark.slow
def test_a_flipped_bit_is_refused_or_does_not_count(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pt", published("low-rank"))
    content, expected = whole.read_bytes(), import_distilled([whole], RECIPE)[0]
    draw, path, caught = random.Random(0), tmp_path / "a.pt", 0
    tensors = content.index(expected.images.numpy().tobytes())
    for place in (tensors, *(draw.randrange(len(content)) for _ in range(200))):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        try:
            found = import_distilled([path], RECIPE)[0]
        except InputError:
            caught += 1
            continue
        assert place != tensors
        for name, leaf in expected.leaves().items():
            assert torch.equal(found.leaves()[name], leaf), (place, name)
        assert isinstance(found.similarity, LowRankSimilarity) and isinstance(expected.similarity, LowRankSimilarity)
        assert found.similarity.alpha == expected.similarity.alpha
    assert 50 < caught < 201
