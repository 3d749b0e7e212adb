"""Recalls against float64 counting, students against torch's SGD, and which evaluation counts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from oracles import contrastive, recall, relative_error
from ptmst import (
    DistilledSet,
    Diverged,
    EvaluateConfig,
    FullSimilarity,
    InputError,
    LowRankSimilarity,
    Scores,
    SyntheticPairs,
    TrajectoryStore,
    evaluate,
    evaluation,
    retrieval_recall,
)
from ptmst.distilled import DistilledPhase
from ptmst.evaluation import METRICS, evaluate_experts, read_scores, train_students
from ptmst.similarity import Similarity
from ptmst.teachers import load, real_pairs, student_of
from tiny import data_config, tiny_store

Protocol = Literal["per-phase", "reference"]
SHORT = EvaluateConfig(students=2, epochs=4, lr_drop=2, every=2, batch_size=5, device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory)


@pytest.fixture(scope="module")
def distilled(store: TrajectoryStore) -> DistilledSet:
    """Two phases, 8 and 11 pairs, no two rates alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMST_CACHE", str(store.path.parent / "cache"))
        pairs, texts = real_pairs(store)
    draw = torch.Generator().manual_seed(0)
    phases = []
    for first, count, lr in ((0, 8, (0.1, 0.2)), (9, 11, (0.3, 0.05))):
        images = torch.arange(first, first + count)
        similarity: Similarity = FullSimilarity(torch.eye(count) + 0.2 * torch.rand(count, count, generator=draw))
        if count == 11:
            left, right = torch.randn(2, count, 3, generator=draw)
            similarity = LowRankSimilarity(torch.ones(count), left, 0.1 * right, alpha=1.5)
        synthetic = SyntheticPairs(pairs.images(images), texts[2 * images], similarity, torch.tensor(lr))
        phases.append(DistilledPhase(synthetic, synthetic.lr + 0.01, ("a caption",) * count))
    return DistilledSet(tuple(phases), {"method": "by hand"}, store.settings)


# Recall


def _embeddings(kind: str, images: int, texts: int) -> tuple[Tensor, Tensor]:
    if kind == "random":
        return torch.randn(images, 6, dtype=torch.float64), torch.randn(texts, 6, dtype=torch.float64)
    # Small whole numbers: sums are exact in any order, so ties are ties.
    found = torch.randint(-2, 3, (images, 4)).float(), torch.randint(-2, 3, (texts, 4)).float()
    if kind == "duplicated":
        return found[0][torch.randint(images // 3 + 1, (images,))], found[1][torch.randint(texts // 3 + 1, (texts,))]
    return found


@pytest.mark.parametrize("at_once", [1, 40, 97, 1 << 24])
@pytest.mark.parametrize("kind", ["random", "tied", "duplicated"])
@pytest.mark.parametrize(("images", "texts"), [(16, 32), (13, 37), (40, 21), (1, 1), (1, 3), (3, 4)])
def test_recalls_are_counted(images: int, texts: int, kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_SCORES_AT_ONCE", at_once)
    embeds = _embeddings(kind, images, texts)
    owner = torch.randint(images, (texts,))
    expected = recall(embeds[0].double().numpy(), embeds[1].double().numpy(), owner.numpy())
    found = retrieval_recall(*embeds, owner)
    assert list(found) == list(METRICS)
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric], rel=1e-12), metric


def test_an_image_without_a_caption_is_not_found() -> None:
    assert retrieval_recall(torch.eye(4), torch.eye(4)[:1], torch.tensor([0])) == {
        "ir1": 100.0,
        "ir5": 100.0,
        "ir10": 100.0,
        "tr1": 25.0,
        "tr5": 25.0,
        "tr10": 25.0,
        "mean": 62.5,
    }


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ([0, 1], r"^image_of_text: expected one image for each of 3 texts, found torch\.Size\(\[2\]\)"),
        ([[0, 1, 0]], "expected one image for each of 3 texts"),
        ([0, 2, 1], "^image_of_text: expected numbers of 2 images, found others; pass the set's own"),
        ([0, -1, 1], "expected numbers of 2 images"),
    ],
)
def test_a_wrong_owner_of_a_text_is_refused(owner: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        retrieval_recall(torch.randn(2, 4), torch.randn(3, 4), torch.tensor(owner))


def test_nothing_to_retrieve_is_refused() -> None:
    with pytest.raises(InputError, match="image_of_text: expected numbers of 0 images"):
        retrieval_recall(torch.randn(0, 4), torch.randn(3, 4), torch.tensor([0, 0, 0]))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused(which: int, value: float) -> None:
    embeds = torch.randn(3, 4), torch.randn(3, 4)
    embeds[which][1, 2] = value
    with pytest.raises(InputError, match="expected finite embeddings"):
        retrieval_recall(*embeds, torch.arange(3))


# Students


def _record_batches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The pairs of every student step to come."""
    batches: list[Tensor] = []
    for kind in (FullSimilarity, LowRankSimilarity):

        def spy(self: Any, index: Tensor, original: Any = kind.batch) -> Tensor:
            batches.append(index.clone())
            found: Tensor = original(self, index)
            return found

        monkeypatch.setattr(kind, "batch", spy)
    return batches


@pytest.mark.parametrize("loss", ["wbce", "infonce"])
@pytest.mark.parametrize("protocol", ["per-phase", "reference"])
def test_a_student_is_trained_as_torch_would(
    store: TrajectoryStore,
    distilled: DistilledSet,
    protocol: Protocol,
    loss: Literal["wbce", "infonce"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(SHORT, protocol=protocol, momentum=0.8, weight_decay=0.01, loss=loss, temperature=0.09)
    batches = _record_batches(monkeypatch)
    student = student_of(store, (5,))
    thetas = student.flatten()[None]
    found = [theta[0].clone() for _, theta in train_students(student, thetas, distilled, config, [(0, "student", 0)])]
    monkeypatch.undo()
    assert [len(batch) for batch in batches] == [5] * (5 * 2 + 5 * 3)
    assert all(len(set(batch.tolist())) == 5 for batch in batches)

    walked = iter(batches)
    sizes = list(store.layers.group_sizes)
    parts = [part.clone().requires_grad_() for part in student.flatten().split(sizes)]
    optimizer: torch.optim.Optimizer | None = None
    epoch = 0
    for number, phase in enumerate(distilled.phases):
        rates = phase.pairs.lr if protocol == "per-phase" else distilled.phases[-1].last_lr
        if optimizer is None or protocol == "per-phase":
            groups = [{"params": [part], "lr": 0.0} for part in parts]
            optimizer = torch.optim.SGD(groups, momentum=0.8, weight_decay=0.01)
        dense = phase.pairs.similarity.dense()
        for in_phase in range(5):
            dropped = in_phase > 2 or (protocol == "reference" and number > 0)
            for group, rate in zip(optimizer.param_groups, rates.tolist(), strict=True):
                group["lr"] = rate * (0.1 if dropped else 1.0)
            for _ in range((2, 3)[number]):
                index = next(walked)
                theta = torch.cat(parts)
                images = student.embed_images(theta, phase.pairs.images[index])
                texts = student.embed_texts(theta, phase.pairs.texts[index])
                logits = F.normalize(images) @ F.normalize(texts).T / 0.09
                optimizer.zero_grad()
                contrastive(loss, logits, dense[index][:, index]).backward()
                optimizer.step()
            assert relative_error(found[epoch], torch.cat(parts).detach()) <= 1e-4, epoch
            epoch += 1
    moved, by_hand = (theta - student.flatten() for theta in (found[-1], torch.cat(parts).detach()))
    assert relative_error(moved, by_hand) <= 1e-3
    assert next(walked, None) is None and epoch == len(found) == 10


def test_every_pair_comes_into_a_students_batches(
    store: TrajectoryStore, distilled: DistilledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = _record_batches(monkeypatch)
    student = student_of(store, (5,))
    for _ in train_students(student, student.flatten()[None], distilled, SHORT, [(0,)]):
        pass
    assert set(torch.cat(batches[:10]).tolist()) == set(range(8))
    assert set(torch.cat(batches[10:]).tolist()) == set(range(11))
    assert len({tuple(batch.tolist()) for batch in batches}) == len(batches)


class Scripted:
    """A split whose scores are known: the n-th call is answered with the n-th value."""

    values: Mapping[str, list[float]] = {}
    asked: list[str]

    def __init__(self, pairs: Any, encoder: Any, device: Any) -> None:
        self._split = pairs.split
        self._left: Iterator[float] = iter(())

    def score(self, student: Any, theta: Any) -> dict[str, float]:
        type(self).asked.append(self._split)
        value = next(self._left, None)
        if value is None:
            self._left = iter(self.values[self._split])
            value = next(self._left)
        return dict.fromkeys(METRICS, value)


@pytest.mark.parametrize(
    ("select", "split", "expected", "asked"),
    [
        ("last", "test", 20.0, ["test"]),
        ("last", "val", 4.0, ["val"]),
        ("best-test", "test", 70.0, ["test"] * 5),
        ("best-val", "test", 30.0, ["test", "val"] * 5),
    ],
)
def test_the_evaluation_that_counts(
    distilled: DistilledSet,
    select: Literal["last", "best-val", "best-test"],
    split: Literal["test", "val"],
    expected: float,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Epochs 0 and 3 of each phase, and the last.
    values = {"test": [10.0, 70.0, 30.0, 50.0, 20.0], "val": [1.0, 2.0, 9.0, 5.0, 4.0]}
    if select == "last":
        values = {name: found[-1:] for name, found in values.items()}
    monkeypatch.setattr(Scripted, "values", values)
    monkeypatch.setattr(Scripted, "asked", [], raising=False)
    monkeypatch.setattr(evaluation, "Retrieval", Scripted)
    scores = evaluate(distilled, replace(SHORT, every=3, select=select, split=split))
    assert [student["mean"] for student in scores.students] == [expected] * 2
    assert Scripted.asked == asked * 2


def test_students_differ_and_a_seed_decides_them(distilled: DistilledSet) -> None:
    first, again, other = (evaluate(distilled, replace(SHORT, students=3, seed=seed)) for seed in (1, 1, 2))
    assert first.students == again.students
    assert len({json.dumps(dict(student)) for student in first.students}) > 1
    assert first.students != other.students
    assert first.provenance["config"]["seed"] == 1 and first.provenance["pairs"] == 19


def test_a_student_that_diverges_is_named(distilled: DistilledSet) -> None:
    phase = distilled.phases[0]
    hot = replace(phase, pairs=phase.pairs.replace({**phase.pairs.leaves(), "lr": torch.tensor([1e30, 1e30])}))
    with pytest.raises(Diverged, match=r"^student .*, epoch \d: θ is not finite at η = 1e\+30, 1e\+30; .* too large"):
        evaluate(replace(distilled, phases=(hot,)), SHORT)


def test_data_that_have_moved(store: TrajectoryStore, distilled: DistilledSet) -> None:
    moved = replace(distilled, settings={**store.settings, "data": {**store.settings["data"], "root": "/nowhere"}})
    with pytest.raises(InputError, match="/nowhere"):
        evaluate(moved, SHORT)
    root = Path(store.settings["data"]["root"])
    assert evaluate(moved, replace(SHORT, root=root)).students == evaluate(distilled, SHORT).students


def test_experts_are_scored_at_their_last_epoch(store: TrajectoryStore) -> None:
    data = load(data_config(store.path.parent), "test")
    student, texts = student_of(store, (1,)), _hashed(data.captions)
    expected = []
    for number in (0, 1):
        expert = store.expert(number)
        kept = expert.displacements[3]
        scale = kept.scale.repeat_interleave(torch.tensor(store.layers.sizes))
        theta = expert.base + scale * kept.values.float()
        images = F.normalize(student.embed_images(theta, data.images(torch.arange(8)))).double().numpy()
        embeds = F.normalize(student.embed_texts(theta, texts)).double().numpy()
        expected.append(recall(images, embeds, np.repeat(np.arange(8), 2)))
    found = evaluate_experts(store, 5, "cpu")
    assert len(found.students) == 2
    for ours, theirs in zip(found.students, expected, strict=True):
        assert dict(ours) == pytest.approx(theirs, rel=1e-12)
    assert evaluate_experts(store, 1, "cpu").students == found.students[:1]


def _hashed(captions: tuple[str, ...]) -> Tensor:
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = HashingVectorizer(n_features=32, ngram_range=(1, 2), norm="l2").transform(captions).toarray()
    embeds: Tensor = torch.from_numpy(counts).float()
    return embeds * math.sqrt(32)


# Scores


def test_means_and_deviations() -> None:
    draw = np.random.default_rng(0)
    students = tuple({metric: float(draw.uniform(0, 100)) for metric in METRICS} for _ in range(4))
    scores = Scores(students, {"seed": 3})
    for metric in METRICS:
        values = [student[metric] for student in students]
        assert scores.mean(metric) == pytest.approx(mean(values), rel=1e-14)
        assert scores.std(metric) == pytest.approx(stdev(values), rel=1e-14)
    assert scores.mean() == scores.mean("mean")
    assert Scores(students[:1], {}).std() == 0.0


def test_scores_come_back_from_json(tmp_path: Path) -> None:
    scores = Scores((dict.fromkeys(METRICS, 1 / 3), dict.fromkeys(METRICS, 2.5)), {"config": {"seed": 3}})
    (tmp_path / "scores.json").write_text(json.dumps(scores.to_json()))
    again = read_scores(tmp_path / "scores.json")
    assert again == scores
    assert scores.to_json()["summary"]["ir5"] == {"mean": scores.mean("ir5"), "std": scores.std("ir5")}


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"students": 3, "provenance": {}}'])
def test_damaged_scores_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(InputError, match=r"scores\.json: expected scores, found a damaged file .*; run `ptmst evalu"):
        read_scores(tmp_path / "scores.json")
