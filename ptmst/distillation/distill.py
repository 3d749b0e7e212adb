"""Phased distillation: expert spans in, synthetic pairs out (docs/method.md §3–§5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ptmst import schema
from ptmst.config import DistillConfig, Phase
from ptmst.data import Pairs
from ptmst.distillation.budget import settled
from ptmst.distillation.checkpoints import Checkpoints
from ptmst.distillation.choosing import JUDGES, Choice, choose
from ptmst.distillation.draws import draw_batches, draw_mixing, expert_of, initial_phases
from ptmst.distillation.optimizer import OuterState, outer_update
from ptmst.distillation.progressive import OnUnion, Standing
from ptmst.distillation.tracking import Tracker, kept_step, recall_so_far, tell_if_turned
from ptmst.distillation.watching import Moment, Watcher, tracker
from ptmst.engine.outer_step import OuterStep, TakesOuterStep
from ptmst.engine.recursion import OuterGradient
from ptmst.errors import Diverged, InputError
from ptmst.evaluation.scorer import CHOOSING
from ptmst.students.student import Student
from ptmst.students.text_towers import nearest_captions
from ptmst.support import devices, folders, progress
from ptmst.support.devices import sent
from ptmst.support.provenance import versions
from ptmst.support.signals import interruptible
from ptmst.synthetic.distilled_set import FOLDER, INDEX, DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.trajectories.prefetch import ExpertCache
from ptmst.trajectories.shortcut import Expert, Trajectory
from ptmst.trajectories.spans import RawSpan, Span
from ptmst.trajectories.store import TrajectoryStore


def distill(
    config: DistillConfig, store: TrajectoryStore, *, resume: bool = False, watch: Watcher | None = None
) -> DistilledSet:
    """Distill every phase of `config` from the experts of `store`.

    With `config.out` the set is saved there, with checkpoints on the way; `resume` continues a stopped run, to the same
    bits. `watch` is told of every outer step (`Moment`); it changes nothing. Raises InputError for settings the store
    cannot serve, for a folder that is taken and for a tracker that is not installed, and Diverged with advice where a
    loss or gradient becomes non-finite; checkpoints stay.
    """
    schema.check(config)
    store = store.at(config)
    _check_against_store(config, store)
    out, tracked = None if config.out is None else Path(config.out), tracker(config)
    watchers = [one for one in (watch, tracked) if one is not None]
    with (
        nullcontext() if out is None else folders.claimed(out, FOLDER),
        nullcontext() if tracked is None else closing(tracked),
    ):
        checkpoints = Checkpoints(out, config, store, resume)
        if out is not None and (out / INDEX).exists():
            checkpoints.clear()
            return DistilledSet.load(out)
        student = store.student((config.seed, "student")).to(devices.pick(config.device))
        real = store.recipe.training_pairs(student.device)
        config, choice = settled(checkpoints.settled or config, store, student), checkpoints.choice
        outer_step = OuterStep.of(student, config)
        checkpoints.settle(config)
        with devices.threads(config.threads, student.device):
            if config.open_phases is not None:
                choice = _chosen(config, store, student, real, outer_step, checkpoints)
                checkpoints.keep_choice(choice)
                config = choice.applied(config)
            starts = initial_phases(config, student, real)
            checkpoints.begin()
            states = _distill_phases(config, store, student, outer_step, starts, checkpoints, watchers)
        distilled = _averaged(states, config, store, real, choice)
        if out is not None:
            distilled.save(out)
            checkpoints.clear()
        return distilled


def distill_with(outer_step: TakesOuterStep, config: DistillConfig, store: TrajectoryStore) -> DistilledSet:
    """`distill`, into memory, by an outer step that is there: one that is compiled already, or is itself studied.

    How the gradient is taken is its affair; `config` says the rest.
    """
    return averaged_and_last(outer_step, config, store)[0]


def averaged_and_last(
    outer_step: TakesOuterStep, config: DistillConfig, store: TrajectoryStore
) -> tuple[DistilledSet, DistilledSet]:
    """The set of `distill_with`, and that of the same run's last leaves without an average.

    Later ones of progressive phases stand on the averages of those before, in both.
    """
    schema.check(config)
    config, store, choice = config.sized(), store.at(config), None
    _check_against_store(config, store)
    device = devices.pick(config.device)
    student, real = store.student((config.seed, "student")).to(device), store.recipe.training_pairs(device)
    checkpoints = Checkpoints(None, config, store, resume=False)
    if config.open_phases is not None:
        choice = _chosen(config, store, student, real, outer_step, checkpoints)
        config = choice.applied(config)
    states = _distill_phases(config, store, student, outer_step, initial_phases(config, student, real), checkpoints)
    looked = torch.empty(0)
    last = [replace(state, average=state.pairs, best=state.pairs, recall=looked) for state in states]
    as_they_are = replace(config, ema=0.0, track_recall=0)
    return _averaged(states, config, store, real, choice), _averaged(last, as_they_are, store, real, choice)


def _chosen(
    config: DistillConfig,
    store: TrajectoryStore,
    student: Student,
    real: tuple[Pairs, Tensor],
    outer_step: TakesOuterStep,
    checkpoints: Checkpoints,
) -> Choice:
    """The phases for a config whose phases are open; short runs take the steps of the whole one."""

    def recall_of(short: DistillConfig) -> float:
        nowhere = Checkpoints(None, short, store, resume=False)
        try:
            states = _distill_phases(
                short, store, student, outer_step, initial_phases(short, student, real), nowhere, label="search"
            )
        except Diverged:
            return 0.0
        *before, last = (state.average for state in states)
        judges = [(short.seed, "judge", number) for number in range(JUDGES)]
        return Tracker(short, store, student.device, judges).recall(before, last)

    choice = choose(config, store, student.device, recall_of, checkpoints.trials, checkpoints.keep_trials)
    _check_against_store(choice.applied(config), store)
    return choice


def _distill_phases(
    config: DistillConfig,
    store: TrajectoryStore,
    student: Student,
    outer_step: TakesOuterStep,
    starts: list[SyntheticPairs],
    checkpoints: Checkpoints,
    watchers: Sequence[Watcher] = (),
    label: str = "distill",
) -> list[OuterState]:
    device, states = devices.pick(config.device), list[OuterState]()
    quick = Tracker(config, store, device) if config.track_recall else None
    with progress.bar(label, config.steps * len(config.phases), checkpoints.steps_done) as bar:
        course = _Course(config, store, checkpoints, watchers, bar)
        for pairs in starts:
            before = [state.best for state in states]
            judge = None if quick is None else partial(quick.recall, before)
            standing, step = None, outer_step
            if config.progressive and before:
                walks = outer_step if isinstance(outer_step, OuterStep) else OuterStep.of(student, config)
                standing, step = Standing(walks, before, config), OnUnion(outer_step, before)
            drawn = partial(_drawn, len(states), config=config, store=store, standing=standing)
            states.append(_distill_phase(len(states), course, step, drawn, pairs.to(device), judge))
    return states


@dataclass(frozen=True)
class _Course:
    """What the phases of a run have in common."""

    config: DistillConfig
    store: TrajectoryStore
    checkpoints: Checkpoints
    watchers: Sequence[Watcher]
    bar: progress.Bar

    def tell(self, number: int, state: OuterState, seen: _Seen, recall: float | None = None) -> None:
        """Tell watchers of a phase."""
        names = self.store.layers.group_names

        def by_group(values: Sequence[float]) -> dict[str, float]:
            return dict(zip(names, values, strict=True)) if values else {}

        lr, loss = by_group(seen.eta), by_group(seen.losses)
        moment = Moment(number, state.step, self.config.steps, lr, loss, seen.norms, recall, state.average)
        for watch in self.watchers:
            watch(moment)


def _averaged(
    states: Sequence[OuterState],
    config: DistillConfig,
    store: TrajectoryStore,
    real: tuple[Pairs, Tensor],
    choice: Choice | None,
) -> DistilledSet:
    """The set of every phase's average, at the end or at the best look."""
    provenance = {
        "method": "trajectory matching",
        "config": schema.decisive(config),
        "store_sha256": store.fingerprint,
        "versions": versions(),
    }
    if choice is not None:
        provenance["choice"] = choice.to_json()
    if config.track_recall:
        kept = [kept_step(state, config) for state in states]
        looks = {"split": CHOOSING, "protocol": Tracker.PROTOCOL, "every": config.track_recall}
        provenance["select"] = {**looks, "steps": kept}
    phases = tuple(_finished(state, *real) for state in states)
    return DistilledSet(phases, provenance, store.settings, store.tower)


def _distill_phase(
    number: int,
    course: _Course,
    outer_step: TakesOuterStep,
    drawn_on: Callable[[int, ExpertCache], Drawn],
    start: SyntheticPairs,
    judge: Callable[[SyntheticPairs], float] | None,
) -> OuterState:
    config, checkpoints, bar = course.config, course.checkpoints, course.bar
    phase, device = config.phases[number], start.lr.device
    state = checkpoints.newest(number, OuterState.begin(start, config))
    if state.step == 0:
        # Leaves are updated in place: where the first update breaks them, this is the last good state.
        checkpoints.save(number, state)
    if outer_step.compiles and state.step < config.steps:
        bar.note("compiling the outer step: once, for minutes with a big tower")
    with interruptible() as interrupted, _expert_cache(config, phase, course.store, device) as cache:
        begun = _look(state)
        eta = begun.eta
        if state.step < config.steps:
            course.tell(number, state, begun)
        spans = config.spans_per_step
        ahead = [drawn_on(state.step * spans, cache)] if state.step < config.steps else []

        def next_gradient(part: int) -> OuterGradient:
            span, batches, mixing = ahead.pop()
            found = outer_step(span, state.pairs, batches, mixing)
            del span  # an expert's memory, before the next one is there
            following = state.step * spans + part + 1
            if following < config.steps * spans:
                ahead.append(drawn_on(following, cache))  # while the device works
            return found

        while state.step < config.steps:
            gradient = next_gradient(0)
            if spans > 1:
                gradient = gradient.kept()
            for part in range(1, spans):
                gradient.add_share(next_gradient(part), 1 / (part + 1))
            seen = _look(state, gradient)
            if seen.broken_state:
                raise _diverged(number, state.step - 1, eta, seen.broken_state, config)
            eta = seen.eta
            if seen.broken_gradient:
                checkpoints.save(number, state)
                raise _diverged(number, state.step, eta, seen.broken_gradient, config)
            state = outer_update(state, gradient, config)
            bar.advance(f"phase {number + 1}/{len(config.phases)}, loss {seen.loss:.3f}{recall_so_far(state)}")
            recall = None
            if judge is not None and (state.step % config.track_recall == 0 or state.step == config.steps):
                recall = judge(state.average)
                state.look(recall)
                tell_if_turned(number, state, config)
            course.tell(number, state, seen, recall)
            stop = interrupted()
            if stop or state.step == config.steps or checkpoints.due:
                if broken := _look(state).broken_state:
                    raise _diverged(number, state.step - 1, eta, broken, config)
                checkpoints.save(number, state)
            if stop:
                raise KeyboardInterrupt
    return state


Drawn = tuple[Span, Tensor, Tensor | None]
"""What an outer step is taken on: its span, batches and mixing."""


def _drawn(
    number: int,
    draw: int,
    cache: ExpertCache,
    *,
    config: DistillConfig,
    store: TrajectoryStore,
    standing: Standing | None,
) -> Drawn:
    """Span, batches and mixing of a draw, of which every outer step has as many as spans, by its number alone; the
    expert of the next one is read meanwhile."""
    experts, phase, spans = sorted(store.experts), config.phases[number], config.spans_per_step
    step, part = divmod(draw, spans)
    here, rng = expert_of(experts, config.seed, number, step, part)
    following = None
    if draw + 1 < config.steps * spans:
        following, _ = expert_of(experts, config.seed, number, *divmod(draw + 1, spans))
    first = int(torch.randint(*phase.start, (1,), generator=rng))
    trajectory, last = cache.get(here, prefetch=following), first + config.expert_epochs
    if standing is None:
        span, pairs = trajectory.span(first, last), phase.pairs
    else:
        start, pairs = standing.point(here, trajectory.point(0), step), config.pairs_up_to(number)
        span = RawSpan.between(start, trajectory.point(last), store.layers)
    batches = draw_batches(pairs, config.batch_size, config.inner_steps, rng)
    mixing = draw_mixing(config.batch_size, config.inner_steps, config.blend, rng) if config.blend else None
    return span, sent(batches, cache.device), None if mixing is None else sent(mixing, cache.device)


@dataclass(frozen=True)
class _Seen:
    """What is to be known of an outer step on the host."""

    broken_state: list[str]
    """What is wrong with the state that it began with, so with the update before it."""
    broken_gradient: list[str]
    loss: float
    losses: list[float]
    """Its terms by group, [G]; none without a gradient."""
    norms: dict[str, float]
    """Of the gradient in each leaf; likewise."""
    eta: list[float]
    """η that it began with, [G]."""


def _look(state: OuterState, gradient: OuterGradient | None = None) -> _Seen:
    """All of it in one answer: each would wait for the device."""
    lr, begun, computed = state.pairs.lr, state.optimized(), {"loss": torch.zeros_like(state.pairs.lr[0])}
    losses, norms = lr[:0], dict[str, Tensor]()
    if gradient is not None:
        computed = {"loss": gradient.loss, **{f"gradient of {name}": value for name, value in gradient.grads.items()}}
        losses, norms = gradient.per_group, {name: value.norm() for name, value in gradient.grads.items()}
    flags = [*(torch.isfinite(value).all() for value in (*begun.values(), *computed.values())), (lr > 0).all()]
    numbers = [torch.stack(flags), computed["loss"].view(1), losses, *(norm.view(1) for norm in norms.values()), lr]
    host_values = iter(torch.cat([part.double() for part in numbers]).tolist())
    answers, (loss,), per_group, of_leaves, eta = (
        list(islice(host_values, count)) for count in (len(flags), 1, len(losses), len(norms), len(lr))
    )
    good = dict(zip((*begun, *computed), answers, strict=False))
    broken_state, broken_gradient = (
        [f"non-finite {name}" for name in part if not good[name]] for part in (begun, computed)
    )
    if not broken_state and not answers[-1]:
        broken_state = ["η that is no longer positive"]
    return _Seen(broken_state, broken_gradient, loss, per_group, dict(zip(norms, of_leaves, strict=True)), eta)


def _diverged(number: int, step: int, eta: list[float], problems: list[str], config: DistillConfig) -> Diverged:
    saved = f"the last good checkpoint is kept in {config.out}" if config.out else "nothing was saved"
    return Diverged(
        f"phase {number + 1}, outer step {step}: found {', '.join(problems)} after η = "
        f"{', '.join(f'{rate:.3g}' for rate in eta)}; begin again in another folder with lower rates.lr, "
        f"rates.images or student_lr, or with adjoint_clip; {saved}"
    )


def _finished(state: OuterState, pairs: Pairs, texts: Tensor) -> DistilledPhase:
    kept, tracked = _on_host(state.best), len(state.recall) > 0
    return DistilledPhase(
        pairs=kept,
        last_lr=(state.best_lr if tracked else state.pairs.lr).cpu(),
        captions=nearest_captions(kept.texts, texts, pairs.captions),
        history={"loss": state.loss.cpu(), "lr": state.lr.cpu(), **({"recall": state.recall} if tracked else {})},
        at_end=_on_host(state.average) if tracked else None,
    )


def _on_host(pairs: SyntheticPairs) -> SyntheticPairs:
    return pairs.replace({name: leaf.cpu() for name, leaf in pairs.leaves().items()})


def _expert_cache(config: DistillConfig, phase: Phase, store: TrajectoryStore, device: torch.device) -> ExpertCache:
    def make(expert: Expert) -> Trajectory:
        return expert.shortcut(phase.endpoint) if config.trajectory == "shortcut" else expert.raw()

    return ExpertCache(store, make, tuple(sorted(_needed_endpoints(config, phase))), device)


def _needed_endpoints(config: DistillConfig, phase: Phase) -> set[int]:
    if config.trajectory == "shortcut":
        return {phase.endpoint}
    starts = range(*phase.start)
    return {t for s in starts for t in (s, s + config.expert_epochs)} - {0}


def _check_against_store(config: DistillConfig, store: TrajectoryStore) -> None:
    """Raises InputError; phases that are open are chosen so that they fit."""
    if not len(store):
        raise InputError(f"{store.path}: expected at least one expert, found none; run `ptmst teach` to its end")
    if config.image_leaves == "features" and store.settings and not store.recipe.encoder.freeze_tower:
        raise InputError(
            f"image_leaves features: expected experts behind a frozen image tower, found in {store.path} those that "
            "train it; distill pixels, or teach with --encoder.freeze-tower"
        )
    for number, phase in enumerate(config.phases if config.open_phases is None else (), start=1):
        needed = _needed_endpoints(config, phase)
        past = sorted(k for k in needed if k > store.epochs)
        if past:
            raise InputError(
                f"phase {number}: expected epochs within the {store.epochs} recorded in {store.path}, found {past[0]}; "
                "lower the end point or start range, or teach more epochs"
            )
        if missing := sorted(needed - set(store.endpoints)):
            raise InputError(
                f"phase {number}: expected end points kept in {store.path} ({', '.join(map(str, store.endpoints))}), "
                f"found {', '.join(map(str, missing))}; use a kept one, or teach with --endpoints "
                f"{'all' if config.trajectory == 'raw' else missing[0]}"
            )
