"""The nearest real picture of each distilled one: by brute force, and what a set records of its beginning."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ptmst import DistilledSet, InputError, TrajectoryStore, distill
from ptmst.config import LeafRates
from ptmst.data import Pairs
from ptmst.evaluation import nearest
from ptmst.evaluation.nearest import RealPictures
from ptmst.recipe import Recipe
from tiny import DISTILL, tiny_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory)


@pytest.fixture(scope="module")
def distilled(store: TrajectoryStore) -> DistilledSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMST_CACHE", str(store.path.parent / "cache"))
        return distill(replace(DISTILL, rates=LeafRates(images=0.2, texts=0.03, lr=0.002, similarity=0.01)), store)


def real(store: TrajectoryStore) -> tuple[np.ndarray, list[str]]:
    """The training pictures as files have them, [I, 3, H, W], and their names; they have the set's own size."""
    files = sorted((Path(store.settings["data"]["root"]) / "images" / "train").iterdir())
    return np.stack([np.array(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files]), [
        f"images/train/{file.name}" for file in files
    ]


def flat(pictures: Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(pictures).reshape(len(pictures), -1).astype(np.float64)


def pixels(made: DistilledSet) -> np.ndarray:
    return flat(torch.cat([made.pixels(number) for number in range(len(made))]))


@pytest.mark.parametrize("at_once", [1, 7, 256])
def test_the_nearest_is_the_nearest(
    store: TrajectoryStore, distilled: DistilledSet, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "IMAGES_AT_ONCE", at_once)
    found = RealPictures().nearest_to(distilled)
    pictures, names = real(store)
    everything = flat(pictures)
    distance, index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(everything).kneighbors(pixels(distilled))
    assert np.array_equal(flat(found.pictures), everything[index[:, 0]])
    assert found.distance.numpy() == pytest.approx(distance[:, 0] / np.sqrt(everything.shape[1]), rel=1e-9)
    pairs = store.recipe.pairs("train")
    own = {pairs.image_names[i]: pairs.captions[t] for t, i in reversed(list(enumerate(pairs.image_of_text.tolist())))}
    assert found.captions == tuple(own[names[i]] for i in index[:, 0])


@pytest.mark.slow
def test_what_a_picture_began_as_is_recorded(store: TrajectoryStore, distilled: DistilledSet) -> None:
    """A set that was never optimized is what it began as."""
    still = distill(replace(DISTILL, rates=LeafRates(0.0, 0.0, 0.0, 0.0)), store)
    at_rest = RealPictures().nearest_to(still)
    assert at_rest.starts is not None and not at_rest.distance.any() and not at_rest.starts.distance.any()
    assert bool(at_rest.starts.nearest.all()) and np.array_equal(flat(at_rest.pictures), pixels(still))

    found, begun = RealPictures().nearest_to(distilled), pixels(still)
    assert found.starts is not None
    moved = np.sqrt(np.square(pixels(distilled) - begun).mean(1))
    assert moved.min() > 0 and found.starts.distance.numpy() == pytest.approx(moved, rel=1e-9)
    same = (flat(found.pictures) == begun).all(1)
    assert found.starts.nearest.tolist() == same.tolist() and same.any()
    everything = flat(real(store)[0])
    distance, _ = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(everything).kneighbors(begun)
    assert not distance[:, 0].any()
    assert found.starts.to_another.numpy() == pytest.approx(distance[:, 1] / np.sqrt(everything.shape[1]), rel=1e-9)


@pytest.mark.slow
def test_a_picture_far_from_where_it_began_is_told(store: TrajectoryStore, distilled: DistilledSet) -> None:
    """One that is now the picture that another began as."""
    still = distill(replace(DISTILL, rates=LeafRates(0.0, 0.0, 0.0, 0.0)), store)
    phase = still.phases[0]
    images = phase.pairs.images.clone()
    images[0] = images[1]
    swapped = replace(phase, pairs=phase.pairs.replace({**phase.pairs.leaves(), "images": images}))
    found = RealPictures().nearest_to(replace(still, phases=(swapped, still.phases[1])))
    assert found.starts is not None
    assert found.starts.nearest.tolist() == [False] + [True] * (still.num_pairs - 1)
    assert float(found.distance[0]) == 0 and float(found.starts.distance[0]) > 1


def test_sets_that_record_no_beginning_have_neighbors_all_the_same(distilled: DistilledSet) -> None:
    found, bare = (RealPictures().nearest_to(one) for one in (distilled, replace(distilled, provenance={})))
    assert bare.starts is None and bool((bare.distance == found.distance).all()) and bare.captions == found.captions


def test_sets_of_the_same_data_share_what_is_read(distilled: DistilledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    load = Recipe.pairs

    def watched(self: Recipe, split: str) -> Pairs:
        asked.append(split)
        return load(self, split)

    monkeypatch.setattr(Recipe, "pairs", watched)
    pictures = RealPictures()
    for _ in range(3):
        pictures.nearest_to(distilled)
    assert asked == ["train"]


def test_data_that_have_moved_or_changed(store: TrajectoryStore, distilled: DistilledSet, tmp_path: Path) -> None:
    shutil.copytree(store.settings["data"]["root"], tmp_path / "moved")
    gone = replace(distilled, settings={**distilled.settings, "data": {**distilled.settings["data"], "root": "/gone"}})
    with pytest.raises(InputError, match=r"^/gone: expected the data that the experts were trained on, found no such"):
        RealPictures().nearest_to(gone)
    found = RealPictures(tmp_path / "moved").nearest_to(gone)
    assert torch.equal(found.distance, RealPictures().nearest_to(distilled).distance)
    listed = tmp_path / "moved" / "scenes_train.json"
    listed.write_text(listed.read_text().replace("circle", "ring").replace("square", "box"))
    with pytest.raises(
        InputError, match=r"moved: expected the pairs that the set was made of, found different ones; r"
    ):
        RealPictures(tmp_path / "moved").nearest_to(gone)
