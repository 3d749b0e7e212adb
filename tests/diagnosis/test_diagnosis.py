"""The diagnosis of a store and of a set: each number by hand, and two stores with opposite findings."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmst import DistilledSet, EvaluateConfig, InputError, TrajectoryStore, distill, outer_gradient
from ptmst.cli import main
from ptmst.config import DiagnoseConfig, Phase
from ptmst.diagnosis import findings as rules
from ptmst.diagnosis.ceilings import Judge, Point
from ptmst.diagnosis.diagnose import Diagnosis, _lines, diagnose
from ptmst.diagnosis.findings import findings
from ptmst.diagnosis.geometry import shape, shared
from ptmst.diagnosis.rollouts import Gap, Reached, reached
from ptmst.diagnosis.signals import Signal, signals
from ptmst.distillation.choosing import NEAR
from ptmst.distillation.draws import draw_batches
from ptmst.engine.outer_step import OuterStep
from ptmst.evaluation.evaluate import evaluate_experts
from ptmst.evaluation.students import train_students
from ptmst.trajectories.recorder import Recorder
from ptmst.trajectories.shortcut import Expert
from tiny import DISTILL, in_float64, outer_case, three_layers, tiny_store

SMALL = DiagnoseConfig(experts=2, pairs=8, batch_size=4, inner_steps=2, draws=2)


@pytest.fixture(scope="module", params=[False, True], ids=["trained", "frozen"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, request.param)


def recorded(points: list[Tensor], store: TrajectoryStore, endpoints: tuple[int, ...]) -> Expert:
    recorder = Recorder(store.layers, endpoints)
    for point in points:
        recorder.record(point)
    return recorder.expert()


def groups(store: TrajectoryStore, vector: Tensor) -> list[np.ndarray]:
    return [part.double().numpy() for part in vector.split(store.layers.group_sizes)]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


# Geometry


def test_the_shape_of_a_trajectory(store: TrajectoryStore) -> None:
    torch.manual_seed(0)
    start = store.student((0,)).flatten()
    points = [start]
    for _ in range(5):
        points.append(points[-1] + 0.1 * torch.randn_like(start))
    found = shape(recorded(points, store, (1, 2, 3, 5)))
    assert found.endpoints == (1, 2, 3, 5) and found.turns_at == (1, 2)
    steps = [groups(store, after - before) for before, after in pairwise(points)]
    for group in range(2):
        lengths = [float(np.linalg.norm(step[group])) for step in steps]
        assert found.step_norms[:, group].tolist() == pytest.approx(lengths, rel=1e-5)
        for row, k in enumerate(found.endpoints):
            moved = float(np.linalg.norm(groups(store, points[k] - start)[group]))
            assert float(found.straightness[row, group]) == pytest.approx(moved / sum(lengths[:k]), rel=1e-3)
        for row, t in enumerate(found.turns_at):
            assert float(found.turns[row, group]) == pytest.approx(
                cosine(steps[t - 1][group], steps[t][group]), abs=1e-3
            )
    layers = [part.split(store.layers.sizes) for part in points]
    for layer in range(store.layers.num_layers):
        walked = sum(float((b[layer] - a[layer]).norm()) for a, b in pairwise(layers))
        moved = float((layers[5][layer] - layers[0][layer]).norm())
        assert float(found.straightness_of_layers[layer]) == pytest.approx(moved / walked, rel=1e-3)


def test_what_experts_share(store: TrajectoryStore) -> None:
    torch.manual_seed(1)
    start = store.student((0,)).flatten()
    moves = [torch.randn_like(start) for _ in range(3)]
    experts = {n: recorded([start, start + move], store, (1,)) for n, move in enumerate([*moves[:2], moves[0]])}
    found = shared(experts, 1)
    for group in range(2):
        a, b = (groups(store, move)[group] for move in moves[:2])
        between = cosine(a, b)
        assert float(found.cosine[group]) == pytest.approx((2 * between + 1) / 3, abs=1e-3)
        units = np.stack([v / np.linalg.norm(v) for v in (a, b, a)])
        assert float(found.leading[group]) == pytest.approx(np.linalg.svd(units)[1][0] ** 2 / 3, abs=1e-3)
    alone = shared({0: experts[0]}, 1)
    assert alone.cosine.tolist() == [1, 1] and alone.leading.tolist() == pytest.approx([1, 1])


# Signals


def test_signals_are_those_of_every_gradient_by_hand() -> None:
    c = outer_case(in_float64(three_layers()), 8, "full")
    layers, torch_draw = c.student.layers, torch.Generator().manual_seed(2)
    theta = c.student.flatten()

    def expert(seed: int) -> Expert:
        draw = torch.Generator().manual_seed(seed)
        recorder = Recorder(layers, (1, 2, 3))
        point = theta.float()
        for _ in range(4):
            recorder.record(point)
            point = point + 0.05 * torch.randn(len(theta), generator=draw)
        return recorder.expert()

    student = three_layers()
    pairs = c.pairs.replace({name: leaf.float() for name, leaf in c.pairs.leaves().items()})
    experts, draws = {4: expert(4), 9: expert(9)}, [draw_batches(4, 3, 2, torch_draw) for _ in range(3)]
    step, calls = OuterStep(student), iter(range(100))
    found = signals(step, experts, lambda one: one.raw(), range(3), pairs, draws, lambda: next(calls))
    assert next(calls) == 3 * 2 * 3
    every: dict[int, dict[tuple[int, int], dict[str, np.ndarray]]] = {}
    for start in range(3):
        every[start] = {}
        for number, one in experts.items():
            for d, batches in enumerate(draws):
                points = one.raw().point(start), one.raw().point(start + 1)
                grads = outer_gradient(student, *points, pairs, batches).grads
                every[start][number, d] = {leaf: grads[leaf].flatten().double().numpy() for leaf in ("images", "texts")}
    for start in range(3):
        for leaf in ("images", "texts"):
            here, told = {key: value[leaf] for key, value in every[start].items()}, found[start][leaf]
            within = [(here[n, a], here[n, b]) for n in experts for a, b in combinations(range(3), 2)]
            across = [(here[4, d], here[9, d]) for d in range(3)]
            squares = np.mean([value @ value for value in here.values()])
            signal = np.mean([a @ b for a, b in within])
            assert told.norm == pytest.approx(np.mean([np.linalg.norm(value) for value in here.values()]), rel=1e-4)
            assert told.batches == pytest.approx(np.mean([cosine(a, b) for a, b in within]), abs=1e-4)
            assert told.experts == pytest.approx(np.mean([cosine(a, b) for a, b in across]), abs=1e-4)
            assert told.snr == pytest.approx(max(signal, 0) / (squares - signal), rel=1e-3, abs=1e-6)
            if not start:
                assert told.neighbors is None
                continue
            before = [cosine(here[key], every[start - 1][key][leaf]) for key in here]
            assert told.neighbors == pytest.approx(np.mean(before), abs=1e-4)


def line_store(folder: Path, like: TrajectoryStore, zigzag: float, epochs: int = 4) -> TrajectoryStore:
    """Two experts that go straight ahead, and to the right and left of it by `zigzag` times a step."""
    made = TrajectoryStore(folder, like.layers, epochs, tuple(range(1, epochs + 1)), like.settings)
    if like.tower is not None:
        made.add_file("tower.safetensors", like.tower)
    for number in range(2):
        start = like.student((0, "expert", number)).flatten()
        draw = torch.Generator().manual_seed(number)
        ahead, aside = (0.02 * torch.randn(len(start), generator=draw) for _ in range(2))
        points = [start + t * ahead + (zigzag * (-1) ** t * aside if t else 0) for t in range(epochs + 1)]
        made.add(number, recorded(points, made, made.endpoints), {"losses": []})
    made.save_index()
    return made


@pytest.mark.slow
def test_two_stores_with_opposite_findings(store: TrajectoryStore, tmp_path: Path) -> None:
    """What one expert zigzags through, its shortcut goes straight through; the other is its own shortcut."""
    straight, crooked = (diagnose(SMALL, line_store(tmp_path / str(zigzag), store, zigzag)) for zigzag in (0.0, 5.0))
    for found in (straight, crooked):
        assert found.endpoint == 4 and set(found.signals) == {"raw", "shortcut"}
    assert straight.findings.neighbors["raw"] == pytest.approx(straight.findings.neighbors["shortcut"], abs=0.01)
    assert crooked.findings.neighbors["raw"] < crooked.findings.neighbors["shortcut"] - rules.CALMER
    assert straight.findings.sentences[1].startswith("The shortcut to 4 calms nothing: gradients of neighboring")
    assert crooked.findings.sentences[1].startswith("The shortcut to 4 calms what a set is told: gradients of")
    for number in range(2):
        assert float(straight.shapes[number].straightness.min()) > 0.999
        assert float(straight.shapes[number].turns.min()) > 0.99
        assert float(crooked.shapes[number].straightness[-1].max()) < 0.5
        assert float(crooked.shapes[number].turns[1:].max()) < -0.8


# Ceilings


@pytest.mark.slow
def test_ceilings_are_scores_of_experts(store: TrajectoryStore) -> None:
    found = diagnose(SMALL, store)
    scores = evaluate_experts(store, EvaluateConfig(students=2, split="val"))
    for number, score in enumerate(scores.students):
        assert found.ceilings[number].epochs[3].recall == pytest.approx(score["mean"])
    assert found.recalls()[3] == pytest.approx(scores.mean())
    pairs, recipe = store.recipe.pairs("val"), store.recipe
    student = store.student((0,))
    first = [pairs.image_of_text.tolist().index(image) for image in range(len(pairs.image_names))]
    texts = recipe.text_tower().embed([pairs.captions[text] for text in first])
    images = pairs.images(torch.arange(len(first)))
    for number in range(2):
        expert = store.expert(number)
        for endpoint, line in found.ceilings[number].lines.items():
            assert list(line) == list(range(endpoint + 1))
            assert line[endpoint] == found.ceilings[number].epochs[endpoint] and line[0].recall >= 0
            for t in range(1, endpoint):
                theta = expert.shortcut(endpoint).point(t)
                embeds = student.embed_images(theta, images), student.embed_texts(theta, texts)
                logits = F.normalize(embeds[0]) @ F.normalize(embeds[1]).T / 0.07
                loss = -(logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()).mean() / 2
                assert line[t].loss == pytest.approx(float(loss), rel=1e-3)


def test_a_few_lines_are_looked_along() -> None:
    assert _lines((1, 2, 3)) == (2, 3) and _lines((1,)) == () and _lines((5, 7)) == (5, 7)
    assert _lines(tuple(range(1, 11))) == (2, 4, 6, 8, 10)


# Students of a set


@pytest.mark.slow
@pytest.mark.parametrize("trajectory", ["shortcut", "raw"])
def test_where_students_stand(store: TrajectoryStore, trajectory: Literal["shortcut", "raw"]) -> None:
    made_by = replace(DISTILL, trajectory=trajectory)
    distilled = distill(made_by, store)
    config = EvaluateConfig(epochs=3, lr_drop=1, protocol="as-matched")
    experts = {number: store.expert(number) for number in range(2)}
    student = store.student((0,))
    judge = Judge(student, store.recipe.pairs("val"), store.recipe.text_tower(), 0.07)
    found, lost = reached(distilled, made_by, experts, student, judge, config)
    assert [one.phase for one in found] == [1, 2] and found[1].gap is None and not lost
    starts = torch.stack([expert.base for expert in experts.values()])
    draws = [(0, "rolled out", number) for number in experts]
    walked = [
        [theta[0].clone() for _, theta in train_students(student, start[None], distilled, config, [draw])][3::4]
        for start, draw in zip(starts, draws, strict=True)
    ]
    ends = [torch.stack(thetas) for thetas in zip(*walked, strict=True)]
    for thetas, one, endpoint in zip(ends, found, (2, 3), strict=True):
        along, off = [], []
        for theta, (number, expert) in zip(thetas, experts.items(), strict=True):
            delta = store.expert(number).displacements[endpoint].decode(store.layers)
            parts = zip(groups(store, theta - expert.base), groups(store, delta), strict=True)
            shares = [(move @ line / (line @ line), move, line) for move, line in parts]
            along.append([share for share, _, _ in shares])
            off.append([np.linalg.norm(m - share * line) / np.linalg.norm(line) for share, m, line in shares])
        assert one.along == pytest.approx(np.mean(along, 0), rel=1e-3)
        assert one.off == pytest.approx(np.mean(off, 0), rel=1e-3)
        assert one.point.recall == pytest.approx(np.mean([judge(theta).recall for theta in thetas]))
    gap, distances, ahead = found[0].gap, [], []
    assert gap is not None and gap.start == 1
    for theta, expert in zip(ends[0], experts.values(), strict=True):
        target = expert.raw().point(1) if trajectory == "raw" else expert.shortcut(3).point(1)
        parts = zip(groups(store, theta - target), groups(store, target - expert.base), strict=True)
        distances.append([np.linalg.norm(away) / np.linalg.norm(whole) for away, whole in parts])
        ahead.append(judge(target).recall - judge(theta).recall)
    assert gap.distance == pytest.approx(np.mean(distances, 0), rel=1e-3)
    assert gap.recall == pytest.approx(np.mean(ahead))


def test_a_phase_that_begins_at_the_start_has_no_gap(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tiny_store(tmp_path_factory, True)
    made_by = replace(DISTILL, phases=(Phase(8, 2, (0, 2)), Phase(10, 3, (0, 3))), steps=1)
    student = store.student((0,))
    judge = Judge(student, store.recipe.pairs("val"), store.recipe.text_tower(), 0.07)
    progressive = replace(DISTILL, progressive=True, steps=1)
    for config in (made_by, progressive):
        made = distill(config, store)
        found, _ = reached(made, config, {0: store.expert(0)}, student, judge, EvaluateConfig(epochs=1))
        assert [one.gap for one in found] == [None, None]


def test_students_that_diverge_are_counted(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tiny_store(tmp_path_factory, True)
    made = distill(replace(DISTILL, steps=1), store)
    wild = [p.pairs.replace({**p.pairs.leaves(), "lr": torch.full((2,), 1e20)}) for p in made.phases]
    wilder = replace(made, phases=tuple(replace(p, pairs=pairs) for p, pairs in zip(made.phases, wild, strict=True)))
    wilder = replace(wilder, provenance={**made.provenance, "config": made.provenance["config"]})
    found = diagnose(SMALL, store, wilder)
    assert (found.reached, found.lost) == ((), 2)
    assert found.findings.sentences[2] == "Students of the set diverge, all 2 of them: its η is too large."


# Findings


def signal(neighbors: float | None, snr: float) -> dict[str, Signal]:
    return {leaf: Signal(1.0, 0.5, 0.5, neighbors, snr) for leaf in ("images", "texts")}


LINE = {0: signal(None, 2.0), 1: signal(0.9, 2.0), 2: signal(0.7, 0.5)}


def test_a_ceiling_is_found_and_none_is() -> None:
    rising, early = {0: 2.0, 1: 10.0, 2: 19.0, 3: 20.0}, {0: 2.0, 1: 19.5, 2: 20.0, 3: 18.0}
    found = findings(rising, {"shortcut": LINE}, 3)
    assert (found.enough, found.best) == (2, 3)
    assert found.sentences[0] == (
        "End points below 2 are a ceiling: a student that followed the line to 1 to its end would reach 10.0 on val, "
        "to 2 19.0, to 3, the best, 20.0."
    )
    found = findings(early, {"shortcut": LINE}, 3)
    assert (found.enough, found.best) == (1, 2)
    assert "no ceiling: the experts' recall on val is near its best, 20.0, at epoch 1 already" in found.sentences[0]


def test_a_shortcut_is_called_calmer_where_it_is() -> None:
    raw = {0: signal(None, 2.0), 1: signal(-0.5, 2.0), 2: signal(0.1, 0.5)}
    found = findings({0: 1.0, 1: 2.0}, {"raw": raw, "shortcut": LINE}, 3)
    assert found.neighbors == {"raw": pytest.approx(-0.2), "shortcut": pytest.approx(0.8)}
    assert found.sentences[1] == (
        "The shortcut to 3 calms what a set is told: gradients of neighboring start points agree by a cosine of 0.80 "
        "along it, and of -0.20 along raw epochs."
    )
    found = findings({0: 1.0, 1: 2.0}, {"raw": LINE, "shortcut": raw}, 3)
    assert found.sentences[1].startswith("The shortcut to 3 calms nothing")
    found = findings({0: 1.0, 1: 2.0}, {"shortcut": LINE}, 3)
    assert found.sentences[1].endswith("raw epochs are not kept to compare.")


def test_late_starts_fade_or_do_not() -> None:
    found = findings({0: 1.0, 1: 2.0}, {"shortcut": LINE}, 3)
    assert found.fading == pytest.approx(0.25)
    assert found.sentences[2] == (
        "Late start points tell a set less: from epoch 2 the gradient's signal-to-noise ratio is 0.25 of that from "
        "epoch 0, so keep start ranges early."
    )
    silent = {0: signal(None, 0.0), 1: signal(0.9, 1.0)}
    found = findings({0: 1.0, 1: 2.0}, {"shortcut": silent}, 3)
    assert found.fading is None and "cannot be told: there is no signal at epoch 0" in found.sentences[2]
    steady = {0: signal(None, 2.0), 1: signal(0.9, 1.8)}
    assert "as much as early ones" in findings({0: 1.0, 1: 2.0}, {"shortcut": steady}, 3).sentences[2]


def test_what_one_end_point_cannot_tell_is_not_told() -> None:
    found = findings({0: 1.0, 1: 2.0}, {"raw": {0: signal(None, 2.0)}, "shortcut": {0: signal(None, 2.0)}}, 1)
    assert (found.enough, found.best, found.neighbors, found.fading) == (None, 1, {}, None)
    assert all("cannot be told" in sentence for sentence in found.sentences)


def test_phases_meet_or_do_not() -> None:
    def after(distance: float) -> list[Reached]:
        first = Reached(1, Point(10.0, 3.0), (0.5, 0.7), (1.0, 2.0), Gap(1, (distance, distance), 4.0))
        return [first, Reached(2, Point(12.0, 3.0), (0.8, 0.6), (0.2, 0.4), None)]

    stand = "at the end they are 0.70 of the way along the line and 0.30 of its length off it."
    for distance, begins in ((1.5, "Phases do not meet"), (0.2, "Phases meet")):
        sentence = findings({0: 1.0, 1: 2.0}, {"shortcut": LINE}, 3, after(distance)).sentences[2]
        told = f"{distance:.2f} of the way from θ⁰ away from epoch 1, where phase 2 begins"
        assert sentence == f"{begins}: students of phase 1 end {told}; {stand}"
    alone = findings({0: 1.0, 1: 2.0}, {"shortcut": LINE}, 3, after(0.2)[1:]).sentences[2]
    assert alone == (
        "Students of the set end 0.70 of the way along the line and 0.30 of its length off it, at a recall of 12.0 on "
        "val."
    )
    (first, last) = after(0.2)
    built = findings({0: 1.0, 1: 2.0}, {"shortcut": LINE}, 3, [replace(first, gap=None), last], 1, True).sentences[2]
    assert (
        built.startswith("Phases begin where students stand. Students of the set end 0.70") and "1 diverged." in built
    )
    assert 0 < rules.ALIKE < 1 and 0 < NEAR < 1


# The command


@pytest.fixture(scope="module")
def distilled(store: TrajectoryStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "set"
    distill(replace(DISTILL, out=out), store)
    return out


FLAGS = ["--experts", "2", "--pairs", "8", "--batch-size", "4", "--inner-steps", "2", "--draws", "2"]


@pytest.mark.slow
def test_the_command_writes_a_page_and_json(
    store: TrajectoryStore, distilled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["diagnose", str(store.path), "--set", str(distilled), "--out", str(out), *FLAGS]) == 0
    told = capsys.readouterr().out.splitlines()
    record = json.loads((out / "diagnosis.json").read_text("utf-8"))
    assert (record["format"], record["version"]) == ("ptmst-diagnosis", 1)
    sentences = record["findings"]["sentences"]
    assert told[:3] == [f"* {sentence}" for sentence in sentences] and len(sentences) == 3
    page = (out / "diagnosis.html").read_text("utf-8")
    assert all(sentence.replace("'", "&#39;") in page for sentence in sentences)
    assert page.count("<svg") == 3 and "<script" not in page and "src=" not in page and "<link" not in page
    found: Diagnosis = diagnose(SMALL, store, DistilledSet.load(distilled))
    again: dict[str, Any] = json.loads(json.dumps(found.to_json()))
    assert {key: again[key] for key in again if key != "provenance"} == {
        key: record[key] for key in record if key in again and key != "provenance"
    }
    assert [row["phase"] for row in record["reached"]] == [1, 2]


def test_what_cannot_be_diagnosed_is_told(
    store: TrajectoryStore, distilled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["diagnose", str(store.path), "--endpoint", "9", "--out", str(out), *FLAGS]) == 2
    assert "endpoint: expected one that is kept in" in capsys.readouterr().err
    other = DistilledSet.load(distilled)
    other = replace(other, provenance={**other.provenance, "store_sha256": "of others"})
    with pytest.raises(
        InputError, match=r"set: expected one that was distilled from the experts of .* found other ones"
    ):
        diagnose(SMALL, store, other)
    with pytest.raises(InputError, match="found none that is recorded"):
        diagnose(SMALL, store, replace(other, provenance={}))
    # As an ablation keeps them, with the batch of their students.
    real = {"method": "random", "store_sha256": store.fingerprint, "config": {"batch_size": 4}}
    with pytest.raises(InputError, match=r"set: expected one that was distilled .* found real pairs"):
        diagnose(SMALL, store, replace(other, provenance=real))
    with pytest.raises(InputError, match="pairs: expected at most the 24 training images, found 100; lower it"):
        diagnose(replace(SMALL, pairs=100), store)
    with pytest.raises(InputError, match="draws: expected at least 2, found 1"):
        diagnose(replace(SMALL, draws=1), store)
    with pytest.raises(InputError, match="batch_size: expected fewer than all 8 pairs, found 8"):
        diagnose(replace(SMALL, batch_size=8), store)
    last = TrajectoryStore(tmp_path / "last", store.layers, 3, (3,), store.settings)
    if store.tower is not None:
        last.add_file("tower.safetensors", store.tower)
    last.add(0, recorded([store.expert(0).raw().point(t) for t in range(4)], last, (3,)), {"losses": []})
    other = replace(other, provenance={**other.provenance, "store_sha256": last.fingerprint})
    with pytest.raises(
        InputError, match=r"set: expected phases to end at kept epochs \(3\), found phase 1 to end at 2"
    ):
        diagnose(SMALL, last, other)
    assert diagnose(SMALL, last).findings.enough is None
    assert main(["diagnose", str(store.path), "--out", str(store.path), *FLAGS]) == 2
    assert "holds a trajectory store already; choose another --out" in capsys.readouterr().err
    assert not out.exists()
