"""Progressive phases: the gradient beside earlier pairs, roll-outs by hand, resume, and students of the union."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from oracles import Outer, contrastive, relative_error
from ptmst import DistilledSet, EvaluateConfig, InputError, Phase, TrajectoryStore, distill, evaluate
from ptmst.config import LeafRates
from ptmst.distillation.draws import draw_batches, draw_mixing
from ptmst.distillation.progressive import OnUnion, Standing, rollout_steps
from ptmst.engine.outer_step import OuterStep
from ptmst.evaluation.students import train_students
from ptmst.exchange.export import export
from ptmst.students.losses import student_loss
from ptmst.support.seeds import generator
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import LowRankSimilarity
from ptmst.synthetic.union import of_the_last, union
from ptmst.trajectories.spans import RawSpan
from tiny import DISTILL, in_float64, outer_case, three_layers, tiny_store

PROGRESSIVE = replace(DISTILL, progressive=True, rollout_every=2)
FORMS: Any = ["full", "low-rank"]


@pytest.fixture(scope="module", params=[False, True], ids=["trained", "frozen"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return tiny_store(tmp_path_factory, request.param)


def moved(pairs: SyntheticPairs, seed: int) -> SyntheticPairs:
    draw = torch.Generator().manual_seed(seed)
    return pairs.replace(
        {name: leaf + 0.3 * torch.rand(leaf.shape, generator=draw).to(leaf) for name, leaf in pairs.leaves().items()}
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_union_matches_pairs_within_their_phases(form: str) -> None:
    c = outer_case(in_float64(three_layers()), 8, form)
    first, last = c.pairs, moved(c.pairs, 3)
    found = union([first, last])
    expected = torch.block_diag(first.similarity.dense(), last.similarity.dense())
    assert relative_error(found.similarity.dense(), expected) <= 1e-12
    assert torch.equal(found.images, torch.cat([first.images, last.images])) and torch.equal(found.lr, last.lr)
    back = of_the_last(found.leaves(), last)
    assert back.keys() == last.leaves().keys()
    assert all(torch.equal(back[name], leaf) for name, leaf in last.leaves().items())
    if isinstance(found.similarity, LowRankSimilarity):
        assert found.similarity.left.shape == (8, 4)


@pytest.mark.parametrize("adjoint", [0.0, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_is_that_of_the_new_pairs(form: str, adjoint: float) -> None:
    """By float64 autograd through S as one matrix that is put together from the leaves of the last phase."""
    c = outer_case(in_float64(three_layers()), 8, form)
    first, last = moved(c.pairs, 2), c.pairs
    batches = torch.tensor([[0, 5, 2, 7], [6, 1, 4, 3], [2, 5, 6, 0]])
    step = OnUnion(OuterStep(c.student, adjoint=adjoint), [first])
    span = RawSpan.between(c.start, c.target, c.student.layers)
    found = step(span, last, batches)
    assert not step.compiles

    leaves = {name: leaf.clone().requires_grad_() for name, leaf in last.leaves().items()}
    here = last.replace(leaves)
    whole = torch.block_diag(first.similarity.dense(), here.similarity.dense())
    together = {
        "images": torch.cat([first.images, here.images]),
        "texts": torch.cat([first.texts, here.texts]),
        "similarity": whole,
        "lr": here.lr,
    }
    image, text = c.student.layers.group_sizes
    oracle = Outer(
        loss_of=student_loss(c.student, "wbce", 0.07),
        start=c.start,
        target=c.target,
        group_sizes=(image, text),
        leaves={name: value.detach() for name, value in together.items()},
        alpha=1.0,
        batches=batches,
    )
    loss, exact = oracle.unrolled()
    of_all = exact if adjoint == 1 else oracle.recursion(adjoint, None)
    names = list(together)
    gradients = torch.autograd.grad([together[n] for n in names], list(leaves.values()), [of_all[n] for n in names])
    assert relative_error(found.loss, loss) <= 1e-11
    for name, value in zip(leaves, gradients, strict=True):
        assert found.grads[name].shape == leaves[name].shape
        assert relative_error(found.grads[name], value) <= 1e-9, name


def test_students_walk_to_where_the_next_phase_begins() -> None:
    phases = (Phase(8, 2, (0, 2)), Phase(10, 9, (2, 3)), Phase(10, 9, (5, 8)))
    config = replace(DISTILL, phases=phases, inner_steps=5)
    assert rollout_steps(config) == [10, 15]
    assert rollout_steps(replace(config, expert_epochs=2)) == [5, 7]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"chunk": 2}, {"blend": 1.0}])
def test_where_students_stand_is_by_hand(store: TrajectoryStore, how: dict[str, Any]) -> None:
    first, second = distill(replace(DISTILL, temperature=0.09), store)
    phases = (Phase(8, 2, (0, 2)), Phase(10, 3, (1, 3)), Phase(10, 3, (2, 3)))
    config = replace(PROGRESSIVE, phases=phases, temperature=0.09, **how)
    student, base = store.student((0,)), store.expert(1).base
    step = OuterStep.of(student, replace(config, keep="path", chunk=how.get("chunk")))
    standing = Standing(step, [first, second], config)
    found = standing.point(1, base, 3)
    rng, theta = generator(config.seed, "rollout", 2, 1, 1), base.clone()
    for phases_so_far, steps in (([first], 3), ([first, second], 3)):
        images, texts = (torch.cat([getattr(p, n) for p in phases_so_far]) for n in ("images", "texts"))
        dense = torch.block_diag(*(p.similarity.dense() for p in phases_so_far))
        sizes = list(store.layers.group_sizes)
        batches = draw_batches(len(images), 4, steps, rng)
        mixing = draw_mixing(4, steps, 1.0, rng) if "blend" in how else torch.eye(4).expand(steps, 4, 4)
        if store.recipe.encoder.freeze_tower:
            images = student.features(images).detach()
        for index, mix in zip(batches, mixing, strict=True):
            parts = [part.clone().requires_grad_() for part in theta.split(sizes)]
            whole = torch.cat(parts)
            mixed = (mix @ images[index].flatten(1)).view_as(images[index])
            heads = student.heads
            embeds = heads.embed_images(whole, mixed), heads.embed_texts(whole, mix @ texts[index])
            logits = F.normalize(embeds[0]) @ F.normalize(embeds[1]).T / 0.09
            contrastive("wbce", logits, dense[index][:, index]).backward()
            rates = phases_so_far[-1].lr.tolist()
            moves = [part.grad for part in parts]
            theta = torch.cat(
                [p.detach() - rate * g for p, rate, g in zip(parts, rates, moves, strict=True) if g is not None]
            )
    assert relative_error(found - base, theta - base) <= 1e-3
    # The same until it is rolled out again, on other batches; another expert stands elsewhere.
    assert torch.equal(standing.point(1, base, 2), found)
    other = standing.point(1, base, 4)
    assert not torch.equal(other, found) and torch.equal(standing.point(1, base, 5), other)
    assert torch.equal(Standing(step, [first, second], config).point(1, base, 3), found)
    assert not torch.equal(standing.point(0, base, 4), other)


@pytest.mark.slow
def test_the_first_phase_is_what_it_is_without(store: TrajectoryStore) -> None:
    plain, found = distill(DISTILL, store), distill(PROGRESSIVE, store)
    assert equal(plain[0], found[0]) and not equal(plain[1], found[1])


def equal(a: SyntheticPairs, b: SyntheticPairs) -> bool:
    return all(torch.equal(leaf, b.leaves()[name]) for name, leaf in a.leaves().items())


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 6])
@pytest.mark.parametrize(
    "changed",
    [{}, {"trajectory": "raw", "similarity": "low-rank", "rank": 2}, {"keep": "primals", "adjoint": 0.5, "blend": 1.0}],
)
def test_a_stopped_run_continues_to_the_same_bits(
    store: TrajectoryStore, changed: dict[str, Any], stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a phase, between two roll-outs and after one."""
    from ptmst.distillation import distill as module
    from ptmst.distillation import optimizer

    config = replace(PROGRESSIVE, **changed)
    expected = distill(config, store)
    steps, update = iter(range(100)), optimizer.outer_update

    def signalled(*arguments: Any) -> Any:
        state = update(*arguments)
        if next(steps) == stop:
            signal.raise_signal(signal.SIGINT)  # the loop takes a checkpoint, and stops
        return state

    with monkeypatch.context() as patch:
        patch.setattr(module, "outer_update", signalled)
        with pytest.raises(KeyboardInterrupt):
            distill(replace(config, out=tmp_path / "set"), store)
    assert any((tmp_path / "set").glob(f"checkpoint-1-{stop - 3:08d}.*"))
    found = distill(replace(config, out=tmp_path / "set"), store, resume=True)
    assert all(equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert DistilledSet.load(tmp_path / "set").is_progressive


@pytest.mark.slow
def test_what_is_matched_is_where_students_stand(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[Tensor, Tensor, Tensor]] = []
    original = OuterStep.__call__

    def spy(step: OuterStep, span: Any, pairs: SyntheticPairs, batches: Tensor, mixing: Any = None) -> Any:
        if isinstance(span, RawSpan):
            spans.append((span.start, span.target, batches))
            assert len(pairs) == 18
        return original(step, span, pairs, batches, mixing)

    monkeypatch.setattr(OuterStep, "__call__", spy)
    still = replace(PROGRESSIVE, rates=LeafRates(0.0, 0.0, 0.0, 0.0))
    made = distill(still, store)
    monkeypatch.undo()
    assert len(spans) == 4
    student = store.student((still.seed, "student"))
    standing = Standing(OuterStep.of(student, replace(still, keep="path", chunk=None)), [made[0]], still)
    starts = {(e, k): standing.point(e, store.expert(e).base, k).clone() for k in range(4) for e in (0, 1)}
    targets = {(e, t): store.expert(e).shortcut(3).point(t) for e in (0, 1) for t in (2, 3)}
    for step, (start, target, batches) in enumerate(spans):
        (expert,) = [e for e in (0, 1) if relative_error(start, starts[e, step]) < 1e-5]
        assert any(torch.equal(target, targets[expert, t]) for t in (2, 3))
        assert int(batches.max()) < 18
    assert any(int(batches.max()) >= 8 and int(batches.min()) < 8 for _, _, batches in spans)


@pytest.mark.slow
def test_students_learn_from_the_union(store: TrajectoryStore) -> None:
    made = distill(PROGRESSIVE, store)
    config = EvaluateConfig(students=1, epochs=2, lr_drop=1)
    student = store.student((0,))
    thetas = student.flatten()[None]
    # By hand: phases that hold all pairs so far, as a set of independent ones.
    by_hand = replace(
        made,
        phases=(made.phases[0], replace(made.phases[1], pairs=union(list(made)))),
        provenance={"config": {"batch_size": 4}},
    )
    found, expected = (
        [theta.clone() for _, theta in train_students(student, thetas, one, config, [(0, "student", 0)])]
        for one in (made, by_hand)
    )
    assert len(found) == 6 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    plain = replace(made, provenance={"config": {"batch_size": 4}})
    other = [theta.clone() for _, theta in train_students(student, thetas, plain, config, [(0, "student", 0)])]
    assert torch.equal(other[2], found[2]) and not torch.equal(other[3], found[3])
    assert len(evaluate(made, config).students) == 1


def test_a_single_phase_builds_on_nothing(store: TrajectoryStore) -> None:
    with pytest.raises(InputError, match="progressive: expected phases that follow one another, found a single one"):
        distill(replace(PROGRESSIVE, phases=PROGRESSIVE.phases[:1]), store)


def test_phases_that_do_not_go_on_are_refused(store: TrajectoryStore) -> None:
    back = (Phase(8, 2, (0, 2)), Phase(10, 3, (0, 3)))
    with pytest.raises(
        InputError, match=r"phases\[1\].start: expected progressive phases to begin later .* found epoch 0"
    ):
        distill(replace(PROGRESSIVE, phases=back), store)


def test_what_knows_phases_one_by_one_does_not_take_them(store: TrajectoryStore, tmp_path: Path) -> None:
    made = distill(replace(PROGRESSIVE, steps=1), store)
    with pytest.raises(
        InputError, match="ptm-st: expected phases that students learn from one by one, found progressive"
    ):
        export(made, tmp_path / "out", "ptm-st")
    pytest.importorskip("pyarrow")
    export(made, tmp_path / "hf", "hf")
    assert "students train on each together with those before it" in (tmp_path / "hf" / "README.md").read_text("utf-8")
