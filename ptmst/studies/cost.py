"""What experts, outer steps and students take on this machine: measured on a few, in CPU seconds of this process
unless another clock is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ptmst.config import DistillConfig, EvaluateConfig, LeafRates, TeachConfig
from ptmst.data import Pairs, load_split
from ptmst.distillation.budget import settled
from ptmst.distillation.choosing import most_of_search, stand_in
from ptmst.distillation.distill import distill_with
from ptmst.distillation.progressive import Standing, rollout_steps
from ptmst.distillation.tracking import Tracker
from ptmst.engine.outer_step import OuterStep
from ptmst.evaluation.baselines import random_pairs
from ptmst.evaluation.evaluate import evaluate
from ptmst.recipe import Recipe
from ptmst.students.student import Student
from ptmst.students.text_towers import text_tower
from ptmst.support import devices
from ptmst.support.seeds import generator
from ptmst.teachers.side_by_side import Lesson
from ptmst.trajectories.recorder import Recorder
from ptmst.trajectories.store import TrajectoryStore

Clock = Callable[[], float]
"""Tells seconds."""
_LR = 1e-4
"""Student learning rate that no student diverges at."""
_NO_RATES = LeafRates(images=0.0, texts=0.0, lr=0.0, similarity=0.0)


@dataclass(frozen=True)
class Between:
    """A number that is not known exactly: what it is at least and at most. Numbers are not negative."""

    least: float
    most: float

    @classmethod
    def exactly(cls, value: float) -> Between:
        return cls(value, value)

    def __add__(self, other: Between) -> Between:
        return Between(self.least + other.least, self.most + other.most)

    def __mul__(self, other: Between | float) -> Between:
        by = other if isinstance(other, Between) else Between.exactly(other)
        return Between(self.least * by.least, self.most * by.most)

    def without(self, done: float) -> Between:
        """What is left after that much."""
        return Between(max(0, self.least - done), max(0, self.most - done))

    def __format__(self, style: str) -> str:
        least, most = format(self.least, style), format(self.most, style)
        return least if least == most else f"{least} to {most}"


def hours(seconds: Between) -> str:
    """In words, as exactly as is known."""
    return format(seconds * (1 / 3600), ".0f" if seconds.least >= 10 * 3600 else ".2g")


def total(numbers: Iterable[Between]) -> Between:
    return sum(numbers, Between(0, 0))


def teaching(config: TeachConfig, clock: Clock = time.process_time) -> float:
    """Seconds of the experts of one store, one by one, from a few batches. `config.data` must have an image size."""
    return warming_up(config, clock) + config.experts * an_expert(config, clock)


def an_expert(config: TeachConfig, clock: Clock) -> float:
    """Seconds of one of them."""
    pairs, tower = load_split(config.data, "train"), text_tower(config.encoder)
    student = Recipe.of(config.data, config.encoder, pairs, tower, config).student((0,))
    return config.epochs * len(pairs) * _per_pair(student, pairs, tower.width, config, clock)


def warming_up(config: TeachConfig, clock: Clock) -> float:
    """Seconds of the warm-up of their image tower."""
    if not config.encoder.warmup_epochs:
        return 0.0
    trained = replace(config, encoder=replace(config.encoder, freeze_tower=False))
    seen = trained.encoder.warmup_epochs * len(load_split(config.data, "warmup").image_names)
    return seen * an_expert(replace(trained, epochs=1), clock) / len(load_split(config.data, "train"))


def store_of_noise(config: TeachConfig, folder: Path) -> TrajectoryStore:
    """A store like that of `config`, with one expert that is nothing but noise: what it costs to use is the same."""
    pairs, tower = load_split(config.data, "train"), text_tower(config.encoder)
    recipe = Recipe.of(config.data, config.encoder, pairs, tower, config)
    student = recipe.student((0,))
    record = recipe.to_json()
    store = TrajectoryStore(folder, student.layers, config.epochs, config.kept_endpoints, record, config.coding)
    recorder, theta, noise = Recorder(student.layers, config.kept_endpoints), student.flatten(), generator("cost")
    for _ in range(config.epochs + 1):
        recorder.record(theta)
        theta = theta + 0.01 * torch.randn(theta.shape, generator=noise)
    store.add(0, recorder.expert(), {"losses": []}, None if config.keep_start else (0,))
    return store


def distilling(config: DistillConfig, store: TrajectoryStore, clock: Clock = time.process_time) -> float:
    """Seconds of a distillation, from a few eager outer steps of every phase, a look and a roll-out; with the most
    that a search for phases takes."""
    (searching, judges), config = most_of_search(config), stand_in(config, store)
    # The same work, but nothing moves: settings that diverge can be measured too.
    config = replace(config, compile="off", rates=_NO_RATES)
    student = store.student((config.seed, "student")).to(devices.pick(config.device))
    config = settled(config, store, student)
    step = OuterStep.of(student, config)
    plain = replace(config, track_recall=0, progressive=False)
    steps = _extrapolated(lambda steps: distill_with(step, replace(plain, steps=steps), store), config.steps, clock)
    judged = judges * _a_look(config, store, step, clock) if judges else 0.0
    return (1 + searching / config.steps) * steps + judged + _on_the_way(config, store, step, clock)


def _a_look(config: DistillConfig, store: TrajectoryStore, step: OuterStep, clock: Clock) -> float:
    """Seconds of a student that is trained on a phase and scored on val."""
    still = distill_with(step, replace(config, steps=1, track_recall=0, progressive=False), store)
    device = devices.pick(config.device)
    tracker, pairs = Tracker(config, store, device), still[0].to(device)
    tracker.recall([], pairs)  # what is kept from now on
    return _seconds(lambda: tracker.recall([], pairs), clock)


def _on_the_way(config: DistillConfig, store: TrajectoryStore, step: OuterStep, clock: Clock) -> float:
    """Seconds of looks at recall, and of roll-outs, that are taken beside outer steps."""
    if not config.track_recall and not config.progressive:
        return 0.0
    still = distill_with(step, replace(config, steps=1, track_recall=0, progressive=False), store)
    device = devices.pick(config.device)
    phases = [pairs.to(device) for pairs in still]
    seconds = 0.0
    if config.track_recall:
        look = _a_look(config, store, step, clock)
        # A student goes through the phases before, too.
        looks = -(-config.steps // config.track_recall)
        seconds += looks * look * sum(number + 1 for number in range(len(phases)))
    if config.progressive:
        base = store.expert(min(store.experts)).base.to(device)
        standing = Standing(step, phases[:1], config)
        walked = rollout_steps(config)
        once = _seconds(lambda: standing.point(0, base, 0), clock) / max(1, walked[0])
        draws = min(len(store.experts) * -(-config.steps // config.rollout_every), config.steps)
        seconds += once * draws * sum(sum(walked[: number + 1]) for number in range(len(walked)))
    return seconds


def distilling_by_parts(config: DistillConfig, store: TrajectoryStore, clock: Clock) -> float:
    """As `distilling`, from shorter outer steps: of one and two inner steps, on batches of two and four images."""

    def of_a_step(inner: int, batch: int) -> float:
        short = replace(config, inner_steps=inner, batch_size=batch, chunk=None, steps=2)
        short = replace(short, track_recall=0, progressive=False)
        # What comes before the first step is in both.
        return distilling(short, store, clock) - distilling(replace(short, steps=1), store, clock)

    searching, _ = most_of_search(config)
    config = stand_in(config, store)
    least, larger, longer = of_a_step(1, 2), of_a_step(1, 4), of_a_step(2, 2)
    an_image, an_inner_step = max(0.0, larger - least) / 2, max(0.0, longer - least)
    inner = an_inner_step + an_image * (config.batch_size - 2)
    # Of all phases.
    return (config.steps + searching) * (max(0.0, least - an_inner_step) + config.inner_steps * inner)


def students(num_pairs: int, config: EvaluateConfig, store: TrajectoryStore, clock: Clock = time.process_time) -> float:
    """Seconds of `config.students` students, trained one by one on `num_pairs` pairs and scored on the split."""
    pairs = random_pairs(store, num_pairs, _LR, 0)
    one = replace(config, students=1)
    evaluate(pairs, replace(one, epochs=0))  # what is kept of the split from now on
    return config.students * _extrapolated(
        lambda epochs: evaluate(pairs, replace(one, epochs=epochs - 1)), one.epochs, clock
    )


def _per_pair(student: Student, pairs: Pairs, text_width: int, config: TeachConfig, clock: Clock) -> float:
    """Seconds of an expert's training, for each pair of an epoch."""
    student = student.to(devices.pick(config.device))
    tried = Lesson.blank(student, pairs, text_width, config).trial(student, config, clock)
    return tried.seconds / min(len(pairs), config.batch_size)


def _extrapolated(work: Callable[[int], object], steps: int, clock: Clock) -> float:
    """Seconds of `work(steps)`, from that of one step and of three."""
    work(1)
    one, three = (_seconds(partial(work, count), clock) for count in (1, 3))
    return one + max(0.0, three - one) / 2 * (steps - 1)


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    began = clock()
    work()
    return clock() - began
