"""Features in place of images: what behind a frozen tower is distilled of them, and what such a set is good for."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn import functional as F

from oracles import relative_error
from ptmst import DistilledSet, EvaluateConfig, InputError, TrajectoryStore, distill, evaluate
from ptmst.config import LeafRates
from ptmst.evaluation.nearest import RealPictures
from ptmst.exchange.export import export
from ptmst.report.page import write_report
from ptmst.report.tables import Row
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import ConvNet
from ptmst.students.student import Student
from tiny import DISTILL, LEAVES, TEXT_WIDTH, OuterCase, in_float64, outer_case, tiny_store

IN_FEATURES = replace(DISTILL, image_leaves="features")
STILL = LeafRates(0.0, 0.0, 0.0, 0.0)
BATCHES = torch.tensor([[0, 1, 2, 3], [5, 2, 1, 0], [3, 5, 0, 2]])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, frozen=True)


@pytest.fixture(scope="module")
def distilled(store: TrajectoryStore) -> DistilledSet:
    return distill(IN_FEATURES, store)


def behind_a_tower(form: str) -> tuple[OuterCase, OuterCase]:
    """An outer step on features, and the same where heads are all of the student, which has no tower."""
    torch.manual_seed(0)
    heads = ProjectionHead(32, 8), ProjectionHead(TEXT_WIDTH, 8)
    student = in_float64(Student.from_modules(*heads, tower=ConvNet(8)))
    c = outer_case(student, 8, form, BATCHES, pairs=6)
    features = torch.randn(6, 32, dtype=torch.float64)
    c = replace(c, pairs=c.pairs.replace({**c.pairs.leaves(), "images": features}))
    return c, replace(c, student=Student.from_modules(*heads))


@pytest.mark.parametrize("form", LEAVES)
@pytest.mark.parametrize("keep", ["path", "primals", "nothing"])
def test_the_gradient_is_the_oracles(form: str, keep: str) -> None:
    c, alone = behind_a_tower(form)
    adjoint, clip = (0.0, None) if keep == "nothing" else (0.5, 0.9)
    found, (loss, _) = c.gradient(adjoint, clip, keep=keep), alone.oracle.unrolled()
    assert relative_error(found.loss, loss) <= 1e-11
    expected = alone.oracle.recursion(adjoint, clip)
    assert found.grads["images"].shape == (6, 32)
    for name, value in expected.items():
        assert relative_error(found.grads[name], value) <= 1e-9, name


@pytest.mark.slow
def test_they_begin_as_what_the_tower_sees(store: TrajectoryStore) -> None:
    pixels, features = (distill(replace(DISTILL, rates=STILL, image_leaves=kind), store) for kind in KINDS)
    student = store.student((0,))
    for seen, shown in zip(features, pixels, strict=True):
        assert student.tower is not None
        expected = student.tower(shown.images)
        assert seen.images.shape == expected.shape and relative_error(seen.images, expected) <= 1e-6
    # What never moved trains the same students.
    config = EvaluateConfig(students=2, epochs=3, lr_drop=2)
    assert evaluate(features, config).students == evaluate(pixels, config).students


KINDS: tuple[Any, Any] = ("pixels", "features")


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_bits(
    store: TrajectoryStore, distilled: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptmst.distillation import distill as module
    from ptmst.distillation import optimizer

    steps, update = iter(range(100)), optimizer.outer_update

    def signalled(*arguments: Any) -> Any:
        state = update(*arguments)
        if next(steps) == 5:
            signal.raise_signal(signal.SIGINT)  # the loop takes a checkpoint, and stops
        return state

    config = replace(IN_FEATURES, out=tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(module, "outer_update", signalled)
        with pytest.raises(KeyboardInterrupt):
            distill(config, store)
    assert any((tmp_path / "set").glob("checkpoint-1-00000002.*"))
    found = distill(config, store, resume=True)
    again = DistilledSet.load(tmp_path / "set")
    for ours, loaded, theirs in zip(found, again, distilled, strict=True):
        for name, value in theirs.leaves().items():
            assert torch.equal(ours.leaves()[name], value) and torch.equal(loaded.leaves()[name], value), name
    assert not again.in_pixels
    assert json.loads((tmp_path / "set" / "distilled.json").read_text())["version"] == 2


@pytest.mark.slow
def test_sets_of_pictures_are_what_they_were(store: TrajectoryStore, tmp_path: Path) -> None:
    distill(replace(DISTILL, steps=1, out=tmp_path / "set"), store)
    assert json.loads((tmp_path / "set" / "distilled.json").read_text())["version"] == 1


@pytest.mark.slow
def test_students_learn_from_it(store: TrajectoryStore, distilled: DistilledSet) -> None:
    scores = evaluate(distilled, EvaluateConfig(students=2, epochs=3, lr_drop=2))
    assert len(scores.students) == 2 and all(0 <= one["mean"] <= 100 for one in scores.students)


def test_no_other_tower_learns_from_it(distilled: DistilledSet) -> None:
    with pytest.raises(InputError, match="pictures for convnet to see, found features of convnet in their place"):
        evaluate(distilled, EvaluateConfig(student="convnet"))


@pytest.mark.parametrize("form", ["ptm-st", "folder", "hf"])
def test_it_is_not_exported(distilled: DistilledSet, form: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"pictures to write as {form}, found features"):
        export(distilled, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_it_has_no_pictures(distilled: DistilledSet) -> None:
    with pytest.raises(InputError, match="expected pictures, found features"):
        distilled.pixels(0)


def test_a_trained_tower_has_no_features(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InputError, match="image_leaves features: expected experts behind a frozen image tower"):
        distill(IN_FEATURES, tiny_store(tmp_path_factory))


@pytest.mark.slow
def test_the_nearest_real_pictures_are_by_features(store: TrajectoryStore, distilled: DistilledSet) -> None:
    found, pairs = RealPictures().nearest_to(distilled), store.recipe.pairs("train")
    tower = store.student((0,)).tower
    assert tower is not None
    real = tower(pairs.images(torch.arange(len(pairs.image_names)))).detach().numpy()
    cosine = cosine_similarity(torch.cat([one.images for one in distilled]).numpy(), real)
    best = torch.from_numpy(cosine.argmax(1))
    assert torch.equal(found.pictures, pairs.pixels(best))
    assert found.distance.numpy() == pytest.approx(1 - cosine.max(1), abs=1e-6)
    assert found.starts is not None
    others = np.where(np.eye(len(real), dtype=bool), -1, cosine_similarity(real))
    begun = distill(replace(IN_FEATURES, rates=STILL), store)
    rows = F.normalize(torch.cat([one.images for one in begun])) @ F.normalize(torch.from_numpy(real)).T
    assert found.starts.to_another.numpy() == pytest.approx(1 - others.max(1)[rows.argmax(1)], abs=1e-6)


@pytest.mark.slow
def test_a_page_shows_the_nearest_real_pictures(distilled: DistilledSet, tmp_path: Path) -> None:
    scores = evaluate(distilled, EvaluateConfig(students=1, epochs=1))
    row = Row("ours", scores, distilled.num_pairs, distilled)
    write_report(tmp_path / "page.html", "A title", [row])
    html = (tmp_path / "page.html").read_text("utf-8")
    assert "This set has no pictures" in html
    of_pairs = html.count('alt="nearest real picture: ') - html.count("The highest labels of") * 3
    assert of_pairs == distilled.num_pairs == 18
    write_report(tmp_path / "page.html", "A title", [row], nearest=False)
    html = (tmp_path / "page.html").read_text("utf-8")
    assert "This set has no pictures" in html and html.count("<img") == html.count('<img class="map"') == 2
    assert html.count('<figure>\n<div class="change">') == 12 and html.count("<figure><figcaption>") >= 6


@pytest.mark.slow
def test_features_are_not_kept_again(store: TrajectoryStore, distilled: DistilledSet, tmp_path: Path) -> None:
    """What is looked at on the way, and what is evaluated, is what the tower sees already."""
    cache = Path(os.environ["PTMST_CACHE"])
    before = {file.name for file in cache.glob("features-*")}
    evaluate(distilled, EvaluateConfig(students=1, epochs=1))
    tracked = distill(replace(DISTILL, track_recall=1), store)
    after = {file.name for file in cache.glob("features-*")} - before
    # The splits that are scored, and nothing of synthetic pairs.
    assert len(after) <= 2 and len(tracked) == 2


@pytest.mark.parametrize(
    ("how", "told"),
    [({"precision": "bf16"}, "precision bf16: expected pixels"), ({"chunk": 2}, "chunk: expected pixels")],
)
def test_what_only_a_tower_minds_is_refused(store: TrajectoryStore, how: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        distill(replace(IN_FEATURES, **how), store)
