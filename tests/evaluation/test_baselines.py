"""Chosen real pairs against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptmst import DistilledSet, TrajectoryStore
from ptmst.config import Selection
from ptmst.data.sampling import random_subset
from ptmst.errors import InputError
from ptmst.evaluation import baselines
from ptmst.evaluation.baselines import herded, k_centers, most_forgotten, subset
from tiny import tiny_store


def embeds(rows: int = 12, width: int = 3) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_herding_keeps_the_mean() -> None:
    e = embeds()
    found = herded(e, 8).tolist()
    mine: list[int] = []
    for _ in range(8):
        far = {i: float((e[[*mine, i]].mean(0) - e.mean(0)).norm()) for i in range(len(e)) if i not in mine}
        mine.append(min(far, key=far.__getitem__))
    assert found == mine and len(set(found)) == 8


def test_k_center_goes_farthest_first() -> None:
    e = embeds()
    found = k_centers(e, len(e)).tolist()
    assert found[0] == int((e - e.mean(0)).norm(dim=1).argmin())
    for k in range(1, len(e)):
        far = {i: min(float((e[i] - e[j]).norm()) for j in found[:k]) for i in range(len(e)) if i not in found[:k]}
        assert found[k] == max(far, key=far.__getitem__)
    assert k_centers(torch.ones(5, 2), 5).unique().numel() == 5  # even where none is farther than another


def test_forgetting_counts_turns() -> None:
    rows = ["1111", "0000", "1010", "0101", "1100", "0110", "0000", "0011"]
    known = torch.tensor([[digit == "1" for digit in row] for row in rows])
    turns = [sum(a == "1" and b == "0" for a, b in pairwise(row)) if "1" in row else 9 for row in rows]
    found = most_forgotten(known).tolist()
    assert found == sorted(range(len(rows)), key=lambda i: (-turns[i], i))
    assert found[:3] == [1, 6, 2]


SELECTIONS: tuple[Selection, ...] = ("random", "herding", "kcenter", "forgetting")


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_subset_is_of_real_pairs(selection: Selection, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tiny_store(tmp_path_factory)
    pairs, texts = store.recipe.training_pairs()
    found = subset(store, selection, 6, 0.3, seed=2)
    (phase,) = found.phases
    assert found.num_pairs == 6 and found.provenance["method"] == selection
    assert torch.equal(phase.pairs.similarity.dense(), torch.eye(6))
    assert phase.pairs.lr.tolist() == pytest.approx([0.3, 0.3])
    numbers = [int((texts == text).all(1).nonzero()[0]) for text in phase.pairs.texts]
    images = pairs.image_of_text[numbers]
    assert len(set(images.tolist())) == 6
    assert torch.equal(pairs.images(images), phase.pairs.images)
    assert tuple(pairs.captions[n] for n in numbers) == phase.captions
    again: DistilledSet = subset(store, selection, 6, 0.3, seed=2)
    assert torch.equal(again[0].images, found[0].images)


def test_herding_sees_what_an_expert_sees(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All 24 images, so that the order alone is the algorithm's; embeddings by hand."""
    store = tiny_store(tmp_path_factory)
    pairs, texts = store.recipe.training_pairs()
    found = subset(store, "herding", 24, 0.1, seed=1)[0]
    expert, student = store.expert(1), store.student((1, "student"))
    theta = expert.raw().point(3)
    with torch.no_grad():
        both = torch.cat(
            [
                F.normalize(student.embed_images(theta, found.images), dim=1),
                F.normalize(student.embed_texts(theta, found.texts), dim=1),
            ],
            dim=1,
        )
    # In the order of the set, each prefix's next member is the best of those that come later.
    for k in range(23):
        total = both[:k].sum(0)
        far = ((k + 1) * both.mean(0) - total - both[k:]).norm(dim=1)
        assert far.argmin() == 0 or torch.isclose(far[0], far.min(), rtol=1e-4)
    assert len(pairs.image_names) == 24 and texts.shape[1] == found.texts.shape[1]


def test_kcenter_covers_what_an_expert_sees(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All 24 images: each is the farthest from those before it, by hand."""
    store = tiny_store(tmp_path_factory)
    found = subset(store, "kcenter", 24, 0.1, seed=1)[0]
    expert, student = store.expert(1), store.student((1, "student"))
    theta = expert.raw().point(3)
    with torch.no_grad():
        z = F.normalize(student.embed_images(theta, found.images), dim=1)
        both = torch.cat([z, F.normalize(student.embed_texts(theta, found.texts), dim=1)], dim=1).double()
    assert (both - both.mean(0)).norm(dim=1).argmin() == 0
    for k in range(1, 24):
        nearest = torch.cdist(both[k:], both[:k]).amin(1)
        assert nearest[0] >= nearest.max() * (1 - 1e-5)


def test_what_cannot_be_chosen_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tiny_store(tmp_path_factory)
    with pytest.raises(InputError, match=r"selection: expected random, .*, found herdin; did you mean herding\?"):
        subset(store, "herdin", 4, 0.1, 0)  # type: ignore[arg-type]
    for selection in SELECTIONS:
        with pytest.raises(InputError, match=r"pairs: expected at most the 24 images of scenes train, found 25"):
            subset(store, selection, 25, 0.1, 0)
    one: Any = replace(store, endpoints=(3,))
    assert isinstance(one, TrajectoryStore)
    with pytest.raises(InputError, match=r"expected at least two end points to see pairs forgotten, found 3; teach"):
        subset(one, "forgetting", 4, 0.1, 0)


@pytest.mark.parametrize("together", [5, 4])
def test_forgetting_tells_how_many_were_never_learned(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """All 24 images: scored by hand at every kept epoch among so many, those never learned come first."""
    store = tiny_store(tmp_path_factory)
    monkeypatch.setattr(baselines, "_TOGETHER", together)
    pairs, texts = store.recipe.training_pairs()
    made = subset(store, "forgetting", 24, 0.1, seed=1)
    # In the order in which they are drawn, pairs are compared with those of their group.
    drawn = [int((texts[n] == made[0].texts).all(1).nonzero()[0]) for n in random_subset(pairs, 1, 24).tolist()]
    group_of = {number: place // together for place, number in enumerate(drawn)}
    expert, student = store.expert(1), store.student((1, "student"))
    learned = set()
    for epoch in store.endpoints:
        theta = expert.raw().point(epoch)
        with torch.no_grad():
            z = F.normalize(student.embed_images(theta, made[0].images), dim=1)
            scores = (z @ F.normalize(student.embed_texts(theta, made[0].texts), dim=1).T).tolist()
        for i in range(24):
            group = [j for j in range(24) if j != i and group_of[j] == group_of[i]]
            others = [scores[i][j] for j in group] + [scores[j][i] for j in group]
            if all(scores[i][i] > other for other in others):
                learned.add(i)
    assert 0 < len(learned) < 24
    assert made.provenance["never_learned"] == pytest.approx(1 - len(learned) / 24)
    assert min(learned) == 24 - len(learned)
    assert "never_learned" not in subset(store, "herding", 6, 0.1, seed=1).provenance


@pytest.mark.parametrize("collapsed", ["images", "texts", "both"])
def test_a_collapsed_expert_knows_no_pair(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, collapsed: str
) -> None:
    """Whose embeddings are all the same, so that every score is as high as a pair's own."""
    store, found = tiny_store(tmp_path_factory), baselines._embeddings

    def embeddings(*given: Any) -> tuple[Tensor, Tensor]:
        return tuple(  # type: ignore[return-value]
            part[:1].expand_as(part).contiguous() if collapsed in (name, "both") else part
            for name, part in zip(("images", "texts"), found(*given), strict=True)
        )

    monkeypatch.setattr(baselines, "_embeddings", embeddings)
    assert subset(store, "forgetting", 6, 0.1, seed=1).provenance["never_learned"] == 1.0


def test_a_pair_as_near_as_another_is_not_known(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images have the same caption: neither is found by it, and the others are."""
    z = torch.eye(24)
    t = z.clone()
    z[1], t[0] = z[0], z[0]
    t[1] = z[0]
    monkeypatch.setattr(baselines, "_embeddings", lambda *_: (z, t))
    made = subset(tiny_store(tmp_path_factory), "forgetting", 24, 0.1, seed=1)
    assert made.provenance["never_learned"] == pytest.approx(2 / 24)
