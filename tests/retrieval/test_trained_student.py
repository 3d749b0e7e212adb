"""A student to keep: it is the one that would be scored, needs nothing but its folder, and finds what it should."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ptmst import (
    DistilledSet,
    EvaluateConfig,
    InputError,
    TrainConfig,
    TrainedStudent,
    TrajectoryStore,
    cli,
    distill,
    evaluate,
    evaluate_experts,
    load_student,
    random_pairs,
    retrieval_recall,
    train_student,
)
from ptmst.retrieval.gallery import Found, Gallery, find
from tiny import DISTILL, tiny_store


@pytest.fixture(scope="module", params=[False, True], ids=["trained", "frozen"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def made(store: TrajectoryStore) -> DistilledSet:
    return distill(DISTILL, store)


@pytest.fixture(scope="module")
def student(made: DistilledSet) -> TrainedStudent:
    return train_student(made, TrainConfig(seed=3, device="cpu"))


def recall(student: TrainedStudent, split: str) -> float:
    """By the embeddings of the files and captions that annotations name."""
    pairs = student.recipe.pairs(split)
    images = student.embed_images(pairs.image_paths)
    texts = student.embed_captions([f"  {caption.upper()} ! " for caption in pairs.captions])  # as others write them
    return retrieval_recall(images, texts, pairs.image_of_text)["mean"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["as-matched", "per-phase"])
def test_it_is_the_student_that_evaluate_scores(made: DistilledSet, protocol: str) -> None:
    kept = train_student(made, TrainConfig(seed=3, protocol=protocol, device="cpu"))  # type: ignore[arg-type]
    config = EvaluateConfig(students=1, seed=3, split="val", protocol=protocol, device="cpu")  # type: ignore[arg-type]
    assert recall(kept, "val") == pytest.approx(evaluate(made, config).mean())


@pytest.mark.slow
def test_an_expert_is_kept_as_it_is(store: TrajectoryStore) -> None:
    kept = train_student(store, TrainConfig(expert=1, device="cpu"))
    scored = evaluate_experts(store, EvaluateConfig(students=2, device="cpu")).students[1]["mean"]
    assert recall(kept, "test") == pytest.approx(scored)
    with pytest.raises(InputError, match=r"^expert: expected one of .* \(0, 1\), found 7; choose it$"):
        train_student(store, TrainConfig(expert=7))
    with pytest.raises(InputError, match=r"expected a set to train convnet on, found a store of experts$"):
        train_student(store, TrainConfig(student="convnet"))


@pytest.mark.slow
def test_real_pairs_teach_a_student_too(store: TrajectoryStore) -> None:
    pairs = random_pairs(store, 8, 0.1, 0)
    config = EvaluateConfig(students=1, seed=2, split="val", device="cpu")
    assert recall(train_student(pairs, TrainConfig(seed=2, device="cpu")), "val") == pytest.approx(
        evaluate(pairs, config).mean()
    )


@pytest.mark.slow
def test_its_folder_is_all_that_it_needs(student: TrainedStudent, tmp_path: Path) -> None:
    """Neither the data nor weights: both are gone."""
    pairs = student.recipe.pairs("val")
    pictures = [shutil.copy(path, tmp_path / path.name) for path in pairs.image_paths]
    gone = replace(student.recipe.data, root=tmp_path / "gone")
    encoder = replace(student.recipe.encoder, image_weights=tmp_path / "gone.pt")
    prints = replace(student.recipe.fingerprints, image_weights="of that file")
    replace(student, recipe=replace(student.recipe, data=gone, encoder=encoder, fingerprints=prints)).save(
        tmp_path / "student"
    )
    again = load_student(tmp_path / "student", device="cpu")
    assert torch.equal(again.theta, student.theta)
    # But for a norm that is part of a convolution on a CPU, the same function to the bit.
    assert torch.equal(again.embed_images(pictures), student.embed_images(pictures))
    assert torch.equal(again.embed_captions(["a red circle"]), student.embed_captions(["a red circle"]))
    assert again.provenance == json.loads(json.dumps(dict(student.provenance)))
    assert again.width == student.embed_captions(["a"]).shape[1]


@pytest.mark.slow
def test_embeddings_are_those_of_its_modules(student: TrainedStudent, tmp_path: Path) -> None:
    pairs = student.recipe.pairs("val")
    image, text, *tower = student.student.modules
    pixels: Tensor = pairs.images(torch.arange(3))
    with torch.no_grad():
        expected = F.normalize(image(tower[0](pixels) if tower else pixels))
        of_text = F.normalize(text(student.texts.embed(["a red circle"])))
    found = student.embed_images(list(pairs.image_paths[:3]))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(student.embed_captions(["A red circle."]), of_text, atol=1e-6)
    # Files, their names and images in memory are one and the same.
    in_memory = [Image.open(path) for path in pairs.image_paths[:3]]
    assert torch.equal(student.embed_images(in_memory), found)
    assert torch.equal(student.embed_images([str(path) for path in pairs.image_paths[:3]]), found)
    assert student.embed_images([]).shape == (0, student.width)


@pytest.mark.slow
def test_what_is_no_student_is_refused(student: TrainedStudent, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a trained student, found no student\.json; make one with `ptmst"):
        load_student(tmp_path)
    student.save(tmp_path / "s")
    index = json.loads((tmp_path / "s" / "student.json").read_text())
    del index["hashes"], index["sha256"]
    (tmp_path / "s" / "student.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"expected a whole index, found a damaged one \('hashes'\)"):
        load_student(tmp_path / "s")
    student.save(tmp_path / "t")
    heads = bytearray((tmp_path / "t" / "heads.safetensors").read_bytes())
    heads[-1] ^= 1
    (tmp_path / "t" / "heads.safetensors").write_bytes(heads)
    with pytest.raises(InputError, match=r"heads\.safetensors: expected SHA-256"):
        load_student(tmp_path / "t")


# What it finds


@pytest.mark.slow
def test_what_fits_best_is_found(student: TrainedStudent, tmp_path: Path) -> None:
    pairs = student.recipe.pairs("test")
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for number, path in enumerate(pairs.image_paths):
        shutil.copy(path, tmp_path / "in" / ("deeper" if number % 2 else "") / path.name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    gallery = Gallery.read(tmp_path / "in")
    assert len(gallery) == len(pairs.image_paths) and sorted(gallery.pictures) == list(gallery.pictures)
    picture = str(gallery.pictures[2])
    by_caption, by_picture = find(student, gallery, [pairs.captions[0], picture], 3)
    cosines = (student.embed_images(gallery.pictures) @ student.embed_captions([pairs.captions[0]])[0]).tolist()
    best = sorted(range(len(gallery)), key=lambda item: -cosines[item])[:3]
    assert by_caption == Found(pairs.captions[0], False, tuple(best), tuple(cosines[item] for item in best))
    assert by_picture.of_picture and by_picture.items[0] == 2 and by_picture.cosines[0] == pytest.approx(1, abs=1e-5)
    (tmp_path / "captions.txt").write_text("\n".join(["", *pairs.captions, " "]), "utf-8-sig")
    captions = Gallery.read(tmp_path / "captions.txt")
    assert captions.captions == pairs.captions
    (found,) = find(student, captions, [pairs.captions[5]], 100)
    assert captions.captions[found.items[0]] == pairs.captions[5] and len(found.items) == len(pairs.captions)


@pytest.mark.slow
def test_the_commands(
    student: TrainedStudent, made: DistilledSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.save(tmp_path / "set")
    kept, page = tmp_path / "student", tmp_path / "found.html"
    assert cli.main(["train", str(tmp_path / "set"), "--seed", "3", "--out", str(kept), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"a student of {len(student.theta):,} parameters that were learned, embeddings of width" in out
    assert torch.equal(load_student(kept, device="cpu").theta, student.theta)
    assert cli.main(["train", str(tmp_path / "set"), "--out", str(kept)]) == 2
    assert "holds a trained student already; choose another --out" in capsys.readouterr().err
    folder, words = student.recipe.pairs("test").image_paths[0].parent, ["a <b> & red circle", "blue"]
    asked = ["query", str(kept), str(folder), *words, "--best", "2", "--device", "cpu", "--out", str(page)]
    assert cli.main(asked) == 0
    shown = capsys.readouterr().out
    assert "a <b> & red circle" in shown and "open it in a browser" in shown
    html = page.read_text()
    assert html.count("<figure>") == 4 and "a &lt;b&gt; &amp; red circle" in html and "http" not in html
    captions = tmp_path / "captions.txt"
    captions.write_text("a red circle\na blue square\n")
    picture = str(student.recipe.pairs("test").image_paths[0])
    assert cli.main(["query", str(kept), str(captions), picture, "--device", "cpu", "--out", str(page)]) == 0
    assert page.read_text().count("<li>") == 2 and "data:image/webp" in page.read_text()


@pytest.mark.slow
def test_what_cannot_be_searched_is_told(
    student: TrainedStudent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student.save(tmp_path / "student")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no picture")
    for gallery, message in (
        ("nowhere", "expected a folder of pictures, or a text file with a caption a line, found none"),
        ("empty", "expected pictures in the folder, found none; check the path"),
        ("empty.txt", "expected a caption a line, found none; check the file"),
        ("latin.txt", "or captions in UTF-8, found another encoding; save it as UTF-8"),
        ("broken", "a.png: expected a whole image, found"),
    ):
        assert cli.main(["query", str(tmp_path / "student"), str(tmp_path / gallery), "x", "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["query", str(tmp_path), str(tmp_path / "empty.txt"), "x", "--best", "0"]) == 2
    assert "best: expected a positive number, found 0; raise it" in capsys.readouterr().err
