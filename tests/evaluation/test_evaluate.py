"""Recalls against float64 counting, students against torch's SGD, and which evaluation counts."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
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
    retrieval_recall,
)
from ptmst.data import load_pairs, load_split
from ptmst.data.classes import write_classes
from ptmst.evaluation import evaluate as evaluation
from ptmst.evaluation import metrics, scorer
from ptmst.evaluation.evaluate import evaluate_experts
from ptmst.evaluation.metrics import METRICS, ZERO_SHOT, zero_shot_accuracy
from ptmst.evaluation.scorer import RetrievalScorer
from ptmst.evaluation.scores import read_scores, write_scores
from ptmst.evaluation.stacks import students_that_fit
from ptmst.evaluation.students import train_students
from ptmst.students import features
from ptmst.students.student import Student
from ptmst.students.text_towers import text_tower
from ptmst.support import files
from ptmst.synthetic.distilled_set import DistilledPhase
from ptmst.synthetic.soft_labels import Similarity
from tiny import ENCODER, data_config, tiny_store

Protocol = Literal["as-matched", "per-phase", "reference"]
SHORT = EvaluateConfig(students=2, epochs=4, lr_drop=2, every=2, batch_size=5, device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> DistilledSet:
    return _by_hand(tiny_store(tmp_path_factory, frozen=True))


@pytest.fixture(scope="module")
def distilled(store: TrajectoryStore) -> DistilledSet:
    return _by_hand(store)


def _by_hand(store: TrajectoryStore) -> DistilledSet:
    """Two phases, 8 and 11 pairs, no two rates alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMST_CACHE", str(store.path.parent / "cache"))
        pairs, texts = store.recipe.training_pairs()
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
    monkeypatch.setattr(metrics, "_SCORES_AT_ONCE", at_once)
    embeds = _embeddings(kind, images, texts)
    owner = torch.randint(images, (texts,))
    expected = recall(embeds[0].double().numpy(), embeds[1].double().numpy(), owner.numpy())
    found = retrieval_recall(*embeds, owner)
    assert list(found) == list(METRICS)
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric], rel=1e-12), metric


@pytest.mark.parametrize("width", [5, 64, 384])
def test_equal_embeddings_score_equally_wherever_they_are(width: int) -> None:
    """On every processor: the last bits of a matrix product depend on where a row is."""
    rng = torch.Generator().manual_seed(width)
    few_texts, few_images = (F.normalize(torch.randn(n, width, generator=rng), dim=1) for n in (11, 7))
    which = torch.randint(11, (53,), generator=rng)
    texts, images = few_texts[which], few_images[torch.randint(7, (19,), generator=rng)]
    owner = torch.randint(19, (53,), generator=rng)
    expected = recall(images.double().numpy(), texts.double().numpy(), owner.numpy())
    assert retrieval_recall(images, texts, owner) == pytest.approx(expected, rel=1e-12)
    candidates = metrics._Candidates(texts)
    scores = candidates.scores(images)
    assert all(len(scores[:, which == one].unique(dim=1).T) <= 1 for one in range(11))


def test_equal_scores_count_by_their_expectation() -> None:
    """Over all orders of the tied, one by one: 6 captions, two of image 0 and one of image 1, in three levels."""
    scores, owner = (1.0, 3.0, 2.0, 2.0, 2.0, 2.0), (1, 2, 0, 0, 3, 3)
    found = retrieval_recall(torch.ones(4, 1), torch.tensor(scores)[:, None], torch.tensor(owner))
    orders = [sorted(order, key=lambda t: -scores[t]) for order in permutations(range(6))]
    for k in (1, 5):
        hits = [sum(image in {owner[t] for t in order[:k]} for image in range(4)) for order in orders]
        assert found[f"tr{k}"] == pytest.approx(100 * sum(hits) / len(hits) / 4, rel=1e-12)
    assert found["ir1"] == 25 and found["ir5"] == 100


@pytest.mark.parametrize("at_once", [1, 97, 1 << 24])
@pytest.mark.parametrize("kind", ["random", "tied", "duplicated"])
@pytest.mark.parametrize(
    ("images", "texts", "captions"), [(16, 32, 9), (13, 37, 30), (40, 21, 3), (1, 3, 1), (3, 4, 2)]
)
def test_a_caption_of_several_images_is_right_for_each_of_them(
    images: int, texts: int, captions: int, kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_SCORES_AT_ONCE", at_once)
    embeds, owner = _embeddings(kind, images, texts), torch.randint(images, (texts,))
    caption = torch.randint(captions, (texts,))
    arrays = embeds[0].double().numpy(), embeds[1].double().numpy(), owner.numpy()
    expected = recall(*arrays, caption.numpy())
    # Captions are numbered from wherever.
    found = retrieval_recall(*embeds, owner, 7 * caption - 5)
    for metric in METRICS:
        assert found[metric] == pytest.approx(expected[metric], rel=1e-12), metric
    assert retrieval_recall(*embeds, owner, torch.arange(texts)) == retrieval_recall(*embeds, owner)


def test_equal_captions_count_as_they_would_over_all_orders_of_the_tied() -> None:
    """Six texts, one of which images 0 and 1 share, another images 2 and 3; scores on two levels."""
    owner, caption = torch.tensor([0, 1, 2, 3, 3, 0]), torch.tensor([4, 4, 2, 2, 1, 3])
    scores = torch.tensor([[2, 2, 1, 1, 2, 1], [2, 2, 2, 2, 1, 2], [1, 1, 1, 1, 2, 2], [2, 2, 1, 1, 1, 2]]).float()
    found = retrieval_recall(torch.eye(4), scores.T, owner, caption)
    has = {(i, c) for i, c in zip(owner.tolist(), caption.tolist(), strict=True)}
    right = [[(i, c) in has for c in caption.tolist()] for i in range(4)]
    for name, table, wanted in (
        ("tr", scores.tolist(), right),
        ("ir", scores.T.tolist(), [list(column) for column in zip(*right, strict=True)]),
    ):
        for k in (1, 5):
            shares = []
            for values, fits in zip(table, wanted, strict=True):
                orders = [
                    order
                    for order in permutations(range(len(values)))
                    if all(values[a] >= values[b] for a, b in pairwise(order))
                ]
                shares.append(mean(float(any(fits[c] for c in order[:k])) for order in orders))
            assert found[f"{name}{k}"] == pytest.approx(100 * mean(shares), rel=1e-12)
    assert found["tr1"] > retrieval_recall(torch.eye(4), scores.T, owner)["tr1"]


def test_captions_that_are_not_numbered_are_refused() -> None:
    with pytest.raises(InputError, match=r"^caption_of_text: expected one caption for each of 3 texts, found .*\[2\]"):
        retrieval_recall(torch.randn(2, 4), torch.randn(3, 4), torch.tensor([0, 1, 0]), torch.tensor([0, 1]))


def test_a_collapsed_student_is_at_chance() -> None:
    found = retrieval_recall(torch.ones(1000, 8), torch.randn(5000, 8), torch.arange(5000) // 5)
    assert [found[f"ir{k}"] for k in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])
    # The best caption of all is some image's own.
    assert [found[f"tr{k}"] for k in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0], abs=0.2)
    found = retrieval_recall(torch.ones(1000, 8), torch.ones(5000, 8), torch.arange(5000) // 5)
    assert found["tr1"] == pytest.approx(0.1) and found["tr10"] == pytest.approx(1.0, rel=0.01)


def test_a_copy_in_the_split_takes_its_share() -> None:
    """An image that is there twice, and a caption that two images have."""
    found = retrieval_recall(torch.eye(3)[[0, 0, 1, 2]], torch.eye(3)[[0, 0, 1, 2]], torch.arange(4))
    assert found["ir1"] == found["tr1"] == 75.0 and found["ir5"] == found["tr5"] == 100.0


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
        ([0, 2, 1], "^image_of_text: expected numbers of 2 images, found other numbers; pass the set's own"),
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


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["wbce", "infonce"])
@pytest.mark.parametrize("protocol", get_args(Protocol))
def test_a_student_is_trained_as_torch_would(
    store: TrajectoryStore,
    distilled: DistilledSet,
    protocol: Protocol,
    loss: Literal["wbce", "infonce"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(SHORT, protocol=protocol, momentum=0.8, weight_decay=0.01, loss=loss, temperature=0.09)
    distilled = replace(distilled, provenance={"config": {"batch_size": 4}})
    batches = _record_batches(monkeypatch)
    student = store.student((5,))
    thetas = student.flatten()[None]
    found = [theta[0].clone() for _, theta in train_students(student, thetas, distilled, config, [(0, "student", 0)])]
    monkeypatch.undo()
    # As many steps as ever, of as many pairs as an inner step had.
    size = 4 if protocol == "as-matched" else 5
    assert [len(batch) for batch in batches] == [size] * (5 * 2 + 5 * 3)
    assert all(len(set(batch.tolist())) == size for batch in batches)

    walked = iter(batches)
    sizes = list(store.layers.group_sizes)
    parts = [part.clone().requires_grad_() for part in student.flatten().split(sizes)]
    optimizer: torch.optim.Optimizer | None = None
    epoch = 0
    for number, phase in enumerate(distilled.phases):
        rates = distilled.phases[-1].last_lr if protocol == "reference" else phase.pairs.lr
        if optimizer is None or protocol != "reference":
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
    student = store.student((5,))
    for _ in train_students(student, student.flatten()[None], distilled, SHORT, [(0,)]):
        pass
    assert set(torch.cat(batches[:10]).tolist()) == set(range(8))
    assert set(torch.cat(batches[10:]).tolist()) == set(range(11))
    assert len({tuple(batch.tolist()) for batch in batches}) == len(batches)


def _trained(
    distilled: DistilledSet, together: int, config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor]]:
    """θ [epochs, P] of three students, and the pairs of every step of each, where so many train at once."""
    draws: list[tuple[int | str, ...]] = [(7, "student", number) for number in range(3)]
    thetas: list[Tensor] = []
    walked: list[Tensor] = []
    for first in range(0, 3, together):
        some = draws[first : first + together]
        fresh = [distilled.student(draw) for draw in some]
        begun = torch.stack([student.flatten() for student in fresh])
        before = begun.clone()
        with monkeypatch.context() as patch:
            batches = _record_batches(patch)
            taught = train_students(fresh[0], begun, distilled, config, some)
            epochs = [(epoch, theta.clone()) for epoch, theta in taught]
        assert [epoch for epoch, _ in epochs] == list(range(len(epochs))) and torch.equal(begun, before)
        thetas += torch.stack([theta for _, theta in epochs], dim=1)
        walked += [torch.cat(batches[k :: len(some)]) for k in range(len(some))]
    return thetas, walked


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["per-phase", "reference"])
@pytest.mark.parametrize("which", ["distilled", "frozen"])
def test_students_together_are_students_alone(
    which: str, protocol: Protocol, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: DistilledSet = request.getfixturevalue(which)
    config = replace(SHORT, epochs=2, lr_drop=1, protocol=protocol)
    alone, batches_alone = _trained(given, 1, config, monkeypatch)
    for together in (2, 3):
        thetas, batches = _trained(given, together, config, monkeypatch)
        for number in range(3):
            assert torch.equal(batches[number], batches_alone[number])
            for found, expected in zip(thetas[number], alone[number], strict=True):
                assert relative_error(found, expected) <= 1e-4
            begun = given.student((7, "student", number)).flatten()
            assert relative_error(thetas[number][-1] - begun, alone[number][-1] - begun) <= 2e-3
    assert len({tuple(walk.tolist()) for walk in batches_alone}) == 3
    assert relative_error(alone[0][-1], alone[1][-1]) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("which", ["distilled", "frozen"])
def test_scores_do_not_depend_on_how_many_train_at_once(which: str, request: pytest.FixtureRequest) -> None:
    given: DistilledSet = request.getfixturevalue(which)
    config = replace(SHORT, students=3, epochs=1, select="best-val", every=1)
    alone = evaluate(given, config)
    for together in (1, 2, 3):
        assert evaluate(given, replace(config, together=together)).students == alone.students


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "together", "groups"),
    [
        ("distilled", None, [1, 1, 1]),
        ("frozen", None, [3]),
        *(
            (which, *row)
            for which in ("distilled", "frozen")
            for row in ((1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (9, [3]))
        ),
    ],
)
def test_as_many_train_at_once_as_asked(
    which: str, together: int | None, groups: list[int], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Any]] = []
    original = train_students

    def spy(student: Any, thetas: Tensor, given: Any, config: Any, draws: Any) -> Iterator[tuple[int, Tensor]]:
        assert len(thetas) == len(draws)
        seen.append(list(draws))
        return original(student, thetas, given, config, draws)

    monkeypatch.setattr(evaluation, "train_students", spy)
    config = replace(SHORT, students=3, epochs=0, together=together)
    scores = evaluate(request.getfixturevalue(which), config)
    assert len(scores.students) == 3 and [len(draws) for draws in seen] == groups
    assert [draw for draws in seen for draw in draws] == [(SHORT.seed, "student", number) for number in range(3)]


@pytest.mark.parametrize(
    ("total", "one", "two", "students", "fit"),
    [
        # GiB of an H100, an A6000, an A100 of 40 GB and an RTX 4090; nfnet_l0 at 224 px in batches of 128.
        (79.2, 10.9, 23.8, 5, 5),
        (47.5, 10.9, 23.8, 5, 3),
        (39.4, 10.9, 23.8, 5, 2),
        (23.6, 10.9, 21.8, 5, 1),
        (8.0, 10.9, 21.8, 5, 1),
        (79.2, 0.1, 0.2, 5, 5),
        (79.2, 0.1, 0.1, 1000, 1000),
        (10.0, 1.0, 2.0, 9, 9),
        (9.9, 1.0, 2.0, 9, 8),
    ],
)
def test_as_many_students_as_fit(total: float, one: float, two: float, students: int, fit: int) -> None:
    """Nine tenths of the device are room; what the last one takes is still in it."""
    room = round(0.9 * total * 1000)
    found = students_that_fit(students, room, round(one * 1000), round(two * 1000))
    assert found == fit
    assert found == 1 or one * 1000 + (found - 1) * (two - one) * 1000 <= room + 1
    assert found == students or one * 1000 + found * (two - one) * 1000 > room - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "together", "recorded"), [("distilled", None, 1), ("frozen", None, 3), ("distilled", 2, 2)]
)
def test_scores_tell_how_many_trained_at_once(
    which: str, together: int | None, recorded: int, request: pytest.FixtureRequest
) -> None:
    scores = evaluate(request.getfixturevalue(which), replace(SHORT, students=3, epochs=0, together=together))
    assert scores.provenance["config"]["together"] == recorded


@pytest.mark.parametrize(
    ("together", "message"),
    [
        (3, r"^together 3: expected room for so many .*; set --together 1, or end what else runs there$"),
        (1, r"^together 1: .*; lower --batch-size, or end what else runs there$"),
    ],
)
def test_students_that_do_not_fit_are_told_how_many_to_try(
    distilled: DistilledSet, together: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Iterator[tuple[int, Tensor]]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(evaluation, "train_students", full)
    with pytest.raises(InputError, match=message):
        evaluate(distilled, replace(SHORT, students=3, together=together))


def test_the_one_of_several_that_diverges_is_named(distilled: DistilledSet) -> None:
    student = student_of_set(distilled)
    thetas = student.flatten().repeat(3, 1)
    thetas[1, 5] = torch.inf
    draws: list[tuple[int | str, ...]] = [(4, "student", number) for number in range(3)]
    with pytest.raises(Diverged, match=r"^student \(4, 'student', 1\), epoch 0: θ is not finite at η = 0\.1, 0\.2; "):
        next(train_students(student, thetas, distilled, SHORT, draws))


def student_of_set(given: DistilledSet) -> Student:
    return given.student((3, "student", 0))


def test_a_student_behind_a_frozen_tower_is_trained_as_torch_would(
    frozen: DistilledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss written out, with the tower asked again at every step."""
    one = replace(frozen, phases=frozen.phases[:1])
    config = replace(SHORT, epochs=1, momentum=0.8, weight_decay=0.01)
    student = student_of_set(one)
    batches = _record_batches(monkeypatch)
    found = [theta[0] for _, theta in train_students(student, student.flatten()[None], one, config, [(0,)])][-1]
    monkeypatch.undo()
    pairs = one.phases[0].pairs
    image_head, text_head, tower = heads = copy.deepcopy(student.modules)
    groups = [{"params": head.parameters(), "lr": rate} for head, rate in zip(heads, pairs.lr.tolist(), strict=False)]
    optimizer = torch.optim.SGD(groups, momentum=0.8, weight_decay=0.01)
    for index in batches:
        images, texts = image_head(tower(pairs.images[index])), text_head(pairs.texts[index])
        optimizer.zero_grad()
        logits = F.normalize(images) @ F.normalize(texts).T / 0.07
        contrastive("wbce", logits, pairs.similarity.dense()[index][:, index]).backward()
        optimizer.step()
    by_hand = nn.utils.parameters_to_vector([*image_head.parameters(), *text_head.parameters()]).detach()
    assert len(batches) == 4
    assert relative_error(found - student.flatten(), by_hand - student.flatten()) <= 1e-3


# Scoring


def test_scores_behind_a_frozen_tower_are_counted(frozen: DistilledSet) -> None:
    folder = Path(frozen.settings["data"]["root"]).parent
    data, student = load_split(data_config(folder), "test"), student_of_set(frozen)
    retrieval = RetrievalScorer(data, text_tower(ENCODER), torch.device("cpu"))
    image_head, text_head, tower = copy.deepcopy(student.modules)
    for spread in (0.0, 0.3, 0.6):
        theta = student.flatten() + spread * torch.randn(student.layers.num_params)
        nn.utils.vector_to_parameters(theta, [*image_head.parameters(), *text_head.parameters()])
        with torch.no_grad():
            images = F.normalize(image_head(tower(data.images(torch.arange(8))))).double().numpy()
            embeds = F.normalize(text_head(_hashed(data.captions))).double().numpy()
        expected = recall(images, embeds, np.repeat(np.arange(8), 2))
        assert retrieval.score(student, theta) == pytest.approx(expected, rel=1e-12)


def test_zero_shot_accuracy_is_counted(frozen: DistilledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(frozen.settings["data"]["root"]).parent
    data, student = load_split(data_config(folder), "test"), student_of_set(frozen)
    assert ZERO_SHOT not in RetrievalScorer(data, text_tower(ENCODER), torch.device("cpu")).score(
        student, student.flatten()
    )
    prompts = {"red": ["a red thing", "something crimson"], "big": ["large"], "left": ["to the left of", "left", "far"]}
    classes = ["red", "left", "big", "left", None, "red", "big", None]
    named = {name: one for name, one in zip(data.image_names, classes, strict=True) if one is not None}
    write_classes(data.root, prompts, named)
    monkeypatch.setattr(scorer, "IMAGES_AT_ONCE", 3)
    try:
        retrieval = RetrievalScorer(data, text_tower(ENCODER), torch.device("cpu"))
    finally:
        (data.root / "classes.json").unlink()
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        theta = student.flatten() + 0.3 * torch.randn(student.layers.num_params, generator=draw)
        with torch.no_grad():
            images = F.normalize(student.embed_images(theta, data.images(torch.arange(8)))).double().numpy()
            of = {
                n: F.normalize(student.embed_texts(theta, _hashed(tuple(texts)))).double()
                for n, texts in prompts.items()
            }
        centers = {name: found.mean(0).numpy() / np.linalg.norm(found.mean(0).numpy()) for name, found in of.items()}
        nearest = [max(centers, key=lambda name: float(image @ centers[name])) for image in images]
        right = [found == one for found, one in zip(nearest, classes, strict=True) if one is not None]
        assert retrieval.score(student, theta)[ZERO_SHOT] == pytest.approx(100 * sum(right) / 6)


def test_a_student_whose_embeddings_overflow_has_diverged(frozen: DistilledSet) -> None:
    data, student = frozen.recipe.pairs("test"), student_of_set(frozen)
    retrieval = RetrievalScorer(data, text_tower(ENCODER), torch.device("cpu"))
    theta = student.flatten() * 1e38
    assert torch.isfinite(theta).all()
    with pytest.raises(Diverged, match="embeddings are not finite"):
        retrieval.score(student, theta)


def test_an_image_between_classes_counts_in_part() -> None:
    eye, once = torch.eye(3), torch.arange(3)
    assert zero_shot_accuracy(eye, eye, once, once) == 100.0
    assert zero_shot_accuracy(eye, eye, once, torch.tensor([0, 2, -1])) == 50.0
    between = F.normalize(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert zero_shot_accuracy(between, eye, once, torch.tensor([0, 2])) == 75.0
    assert zero_shot_accuracy(between, eye, once, torch.tensor([2, 2])) == 50.0
    assert zero_shot_accuracy(torch.zeros(2, 3), eye, once, torch.tensor([0, 0])) == pytest.approx(100 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [3, 256])
def test_a_frozen_tower_sees_each_image_once(
    frozen: DistilledSet, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all students and epochs: twice as long a run asks no tower more."""
    monkeypatch.setattr(scorer, "IMAGES_AT_ONCE", at_once)
    monkeypatch.setattr(features, "IMAGES_AT_ONCE", at_once)
    seen: list[int] = []
    original = Student.features

    def spy(student: Student, images: Tensor) -> Tensor:
        if student.frozen is not None:
            seen.append(len(images))
        return original(student, images)

    monkeypatch.setattr(Student, "features", spy)
    config = replace(SHORT, students=2, together=1, epochs=2, select="best-val", every=1)
    evaluate(frozen, config)
    # Of test and val 8 images each; of the set's phases 8 and 11, for all students.
    assert sum(seen) == 8 + 8 + 8 + 11 and max(seen) <= at_once
    seen.clear()
    # All of them are in the cache by now.
    evaluate(frozen, replace(config, students=4, together=4, epochs=5))
    assert not seen


@pytest.mark.parametrize("held", [4 << 30, 0])
def test_images_are_held_where_they_fit(store: TrajectoryStore, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "_HELD_BYTES", held)
    monkeypatch.setattr(scorer, "IMAGES_AT_ONCE", 3)
    data, student = load_split(data_config(store.path.parent), "test"), store.student((1,))
    read: list[int] = []
    original = type(data).pixels

    def spy(pairs: Any, index: Tensor) -> Tensor:
        read.extend(index.tolist())
        return original(pairs, index)

    monkeypatch.setattr(type(data), "pixels", spy)
    retrieval = RetrievalScorer(data, text_tower(ENCODER), torch.device("cpu"))
    first, again = (retrieval.score(student, student.flatten()) for _ in range(2))
    assert first == again and read == list(range(8)) * (1 if held else 2)


class Scripted:
    """A split whose scores are known: the n-th call is answered with the n-th value."""

    values: Mapping[str, list[float]] = {}
    asked: list[str]

    def __init__(self, pairs: Any, **_: Any) -> None:
        self._split = pairs.split
        self._left: Iterator[float] = iter(())

    def score(self, student: Any, theta: Any) -> dict[str, float]:
        type(self).asked.append(self._split)
        value = next(self._left, None)
        if value is None:
            self._left = iter(self.values[self._split])
            value = next(self._left)
        return dict.fromkeys(METRICS, value)


@pytest.mark.slow
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
    monkeypatch.setattr(evaluation, "RetrievalScorer", Scripted)
    scores = evaluate(distilled, replace(SHORT, every=3, select=select, split=split))
    assert [student["mean"] for student in scores.students] == [expected] * 2
    assert Scripted.asked == asked * 2


@pytest.mark.slow
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


@pytest.mark.slow
def test_data_that_have_moved(store: TrajectoryStore, distilled: DistilledSet) -> None:
    moved = replace(distilled, settings={**store.settings, "data": {**store.settings["data"], "root": "/nowhere"}})
    with pytest.raises(InputError, match="/nowhere"):
        evaluate(moved, SHORT)
    root = Path(store.settings["data"]["root"])
    assert evaluate(moved, replace(SHORT, root=root)).students == evaluate(distilled, SHORT).students


def test_experts_are_scored_at_their_last_epoch(store: TrajectoryStore) -> None:
    data = load_split(data_config(store.path.parent), "test")
    student, texts = store.student((1,)), _hashed(data.captions)
    expected = []
    for number in (0, 1):
        expert = store.expert(number)
        kept = expert.displacements[3]
        scale = kept.scale.repeat_interleave(torch.tensor(store.layers.sizes))
        theta = expert.base + scale * kept.values.float()
        images = F.normalize(student.embed_images(theta, data.images(torch.arange(8)))).double().numpy()
        embeds = F.normalize(student.embed_texts(theta, texts)).double().numpy()
        expected.append(recall(images, embeds, np.repeat(np.arange(8), 2)))
    found = evaluate_experts(store, EvaluateConfig(students=5, device="cpu"))
    assert len(found.students) == 2
    for ours, theirs in zip(found.students, expected, strict=True):
        assert dict(ours) == pytest.approx(theirs, rel=1e-12)
    assert evaluate_experts(store, EvaluateConfig(students=1, device="cpu")).students == found.students[:1]


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


@pytest.mark.slow
def test_the_loss_is_the_sets_own_unless_another_is_asked_for(distilled: DistilledSet) -> None:
    own = replace(distilled, provenance={"config": {"loss": "infonce"}})
    short = EvaluateConfig(students=1, epochs=1, batch_size=5, device="cpu")
    by_loss = {loss: evaluate(distilled, replace(short, loss=loss)).students for loss in ("wbce", "infonce")}
    assert by_loss["wbce"] != by_loss["infonce"]
    assert evaluate(own, short).students == by_loss["infonce"]
    assert evaluate(own, replace(short, loss="wbce")).students == by_loss["wbce"]
    assert evaluate(distilled, short).students == by_loss["wbce"]
    assert evaluate(own, short).provenance["config"]["loss"] == "infonce"


@pytest.mark.slow
def test_the_temperature_is_the_sets_own_unless_another_is_asked_for(distilled: DistilledSet) -> None:
    """Of a distilled set; of real pairs, whose settings are those of the experts; or as published."""
    short = EvaluateConfig(students=1, epochs=1, batch_size=5, device="cpu")
    asked = {t: evaluate(distilled, replace(short, temperature=t)).students for t in (0.07, 0.2, 0.9)}
    assert len({str(students) for students in asked.values()}) == 3
    trained = replace(distilled, provenance={}, settings={**distilled.settings, "temperature": 0.2})
    hot = replace(trained, provenance={"config": {"temperature": 0.9}})
    bare = {key: value for key, value in distilled.settings.items() if key != "temperature"}
    for one, own in ((trained, 0.2), (hot, 0.9), (replace(distilled, provenance={}, settings=bare), 0.07)):
        scores = evaluate(one, short)
        assert scores.students == asked[own] and scores.provenance["config"]["temperature"] == own
        assert evaluate(one, replace(short, temperature=0.2)).students == asked[0.2]


def test_scores_name_what_they_were_scored_on(distilled: DistilledSet) -> None:
    """So that a fraction of another split's recall, or of other images, is never told."""
    short = EvaluateConfig(students=1, epochs=0, lr_drop=0, batch_size=5, device="cpu")
    for split in ("test", "val"):
        found = evaluate(distilled, replace(short, split=split)).provenance["scored"]
        data = load_pairs("scenes", distilled.settings["data"]["root"], split, 16)
        normalized = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
        named = {"data": "scenes", "split": split, "fingerprint": data.fingerprint}
        assert found == {**named, **normalized, "images": 8, "captions": 16, "sha256": data.answers_hash()}


PROVENANCE: dict[str, Any] = {"split": "test", "pairs": 3, "config": {"seed": 3}}


def test_scores_come_back_from_json(tmp_path: Path) -> None:
    scores = Scores((dict.fromkeys(METRICS, 1 / 3), dict.fromkeys(METRICS, 2.5)), PROVENANCE)
    write_scores(tmp_path / "scores.json", scores)
    again = read_scores(tmp_path / "scores.json")
    assert again == scores
    assert scores.to_json()["summary"]["ir5"] == {"mean": scores.mean("ir5"), "std": scores.std("ir5")}


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"students": 3, "provenance": {}}'])
def test_what_is_no_score_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(InputError, match=r"scores\.json: expected a score file.*, found "):
        read_scores(tmp_path / "scores.json")


def test_a_changed_score_is_seen(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.json", Scores((dict.fromkeys(METRICS, 12.5),), PROVENANCE))
    content = (tmp_path / "scores.json").read_text()
    (tmp_path / "scores.json").write_text(content.replace("12.5", "92.5", 1))
    with pytest.raises(InputError, match="checksum mismatch: the file is damaged; restore it or make it again"):
        read_scores(tmp_path / "scores.json")


@pytest.mark.parametrize(
    "change",
    [
        {"students": []},
        {"students": 3},
        {"students": [{"ir1": 3.0}]},
        {"students": [3.0]},
        {"provenance": {}},
        {"provenance": None},
        {"provenance": {"split": "test", "config": {}}},
        {"provenance": {"split": "test", "pairs": 3}},
    ],
)
def test_scores_without_all_that_a_report_needs_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    whole = {"students": [dict.fromkeys(METRICS, 1.0)], "provenance": PROVENANCE}
    files.write_json(tmp_path / "s.json", {"format": "ptmst-score-file", "version": 1, **whole, **change})
    with pytest.raises(InputError, match=r"s\.json: expected a score file, found other contents; run `ptmst"):
        read_scores(tmp_path / "s.json")
