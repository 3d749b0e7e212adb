"""Several experts at a time: processes of a few threads each, on one machine.

An expert is a function of its number and the settings, computed by `threads` threads wherever that is: how many are
trained at a time, and in which order, changes no bit. Features of a frozen tower come from the cache; where that cannot
be written, each process computes them by itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ptmst.config import Places, TeachConfig
from ptmst.data import Pairs, load_split
from ptmst.data.pixels import decoded_once
from ptmst.students.student import Student
from ptmst.students.text_towers import TextTower, embed_captions, text_tower
from ptmst.support import devices, parallel, progress
from ptmst.support.seeds import generator
from ptmst.teachers.training import Trial, epoch_batches, seen_features, train_on_pairs, trial
from ptmst.trajectories.recorder import Recorder
from ptmst.trajectories.store import TrajectoryStore, Written

_LOG = logging.getLogger(__name__)
_PAYS_S = 20.0
"""Seconds of work that are left, beyond which it pays to start processes: each takes some until it begins."""
PROCESS_BYTES = 1 << 30
"""Of a process that has loaded torch and has begun."""
_OF_FREE = 0.8
"""Memory that workers may take."""
_BAR = "teach"


@dataclass(frozen=True)
class Lesson:
    """What experts are trained on, on its device."""

    pairs: Pairs
    texts: Tensor
    """Embedded captions [T, D]."""
    features: Tensor | None
    """What a frozen tower sees in every epoch, [I, Z]."""

    @classmethod
    def of(
        cls, store: TrajectoryStore, config: TeachConfig, pairs: Pairs, tower: TextTower, device: torch.device
    ) -> Lesson:
        """Captions, features and pixels come from the cache where they are there."""
        texts = embed_captions(tower, pairs.captions, device).to(device)
        student = store.student((config.seed, "lesson")).to(device)  # its tower is that of all
        features = seen_features(student, pairs, config, device)
        if features is None and not config.augment:
            pairs = decoded_once(pairs)
        return cls(pairs, texts, features)

    @classmethod
    def blank(cls, student: Student, pairs: Pairs, text_width: int, config: TeachConfig) -> Lesson:
        """One that takes as long: what is in captions and features does not matter to the time of a batch."""
        features, device = None, student.device
        if student.frozen is not None and not config.augment:
            seen = student.features(torch.zeros(1, 3, pairs.image_size, pairs.image_size, device=device))
            features = seen.detach().cpu().expand(len(pairs.image_names), -1)
        texts = torch.randn(len(pairs), text_width, generator=generator("lesson"))
        return cls(pairs, texts.to(device), features)

    def trial(self, student: Student, config: TeachConfig, clock: Callable[[], float] = time.perf_counter) -> Trial:
        """What an expert like the student takes, by a few batches."""
        with devices.threads(config.threads, student.device):
            tried = trial(student, self.pairs, self.texts, config, self.features, clock)
        return replace(tried, bytes=tried.bytes + _held(self.pairs, config, self.features))


def train_experts(
    numbers: Sequence[int],
    store: TrajectoryStore,
    config: TeachConfig,
    pairs: Pairs,
    tower: TextTower,
    device: torch.device,
) -> None:
    """Train the experts of these numbers and add them to the store, each as soon as it is there."""
    done, total = len(store) * config.epochs, (len(store) + len(numbers)) * config.epochs
    with progress.bar(_BAR, total, done) as bar:
        lesson = Lesson.of(store, config, pairs, tower, device)
        if config.augment:
            bar.note("augmented: images are decoded, and seen differently, in every epoch; no features are kept")
        elif lesson.features is None and not lesson.pairs.fits_in_memory:
            bar.note("the decoded images are more than half of the free memory: decoding them again in every epoch")
        workers = _workers(len(numbers), store, config, lesson, device)
        if workers > 1:
            bar.note(f"{workers} experts at a time, a process each")
            trained = _side_by_side(numbers, workers, store.recipe.places, config, bar)
        else:
            trained = _one_by_one(numbers, store, config, lesson, device, bar)
        for number, written in trained:
            store.adopt(number, written)


def _side_by_side(
    numbers: Sequence[int], workers: int, places: Places, config: TeachConfig, bar: progress.Bar
) -> Iterator[tuple[int, Written]]:
    """Whichever is there first."""
    tasks = {_name(number, config): _Task(config, places, number) for number in numbers}
    return parallel.results(_taught, tasks, workers, progress.Together(_BAR, bar).show)


def _one_by_one(
    numbers: Sequence[int],
    store: TrajectoryStore,
    config: TeachConfig,
    lesson: Lesson,
    device: torch.device,
    bar: progress.Bar,
) -> Iterator[tuple[int, Written]]:
    with devices.threads(config.threads, device):
        for number in numbers:
            yield number, _train(number, store, config, lesson, device, bar, f"{_name(number, config)}, ")


def _name(number: int, config: TeachConfig) -> str:
    return f"expert {number + 1}/{config.experts}"


def _held(pairs: Pairs, config: TeachConfig, features: Tensor | None) -> int:
    """Bytes of decoded images that each process holds for itself."""
    if features is not None or config.augment or pairs.decoded is not None:
        return 0
    return 3 * len(pairs.image_names) * pairs.image_size**2


def _workers(experts: int, store: TrajectoryStore, config: TeachConfig, lesson: Lesson, device: torch.device) -> int:
    # A process that works for another leaves it to that one how many there are.
    alone = device.type == "cuda" or multiprocessing.parent_process() is not None
    if config.workers is not None or alone:
        return min(config.workers or 1, experts)
    tried = lesson.trial(store.student((config.seed, "trial")).to(device), config)
    workers = at_once(experts, tried, len(lesson.pairs), config, device)
    if workers * config.threads < devices.cores() and seconds_of(experts, tried, len(lesson.pairs), config) > _PAYS_S:
        used = f"{workers * config.threads} of {devices.cores()} cores"
        _LOG.info("teach: %s, %d at a time; --threads and --workers set others", used, workers)
    return workers


def at_once(experts: int, tried: Trial, pairs: int, config: TeachConfig, device: torch.device) -> int:
    """How many processes train so many experts on a CPU, by what a trial took; 1 is this one alone."""
    if seconds_of(experts, tried, pairs, config) < _PAYS_S:
        return 1
    room = int(_OF_FREE * devices.free_bytes(device)) // (tried.bytes + PROCESS_BYTES)
    return max(1, min(experts, devices.cores() // config.threads, room))


def seconds_of(experts: int, tried: Trial, pairs: int, config: TeachConfig) -> float:
    """Of so many experts, one by one."""
    return tried.seconds * experts * config.epochs * len(epoch_batches(torch.arange(pairs), config))


@dataclass(frozen=True)
class _Task:
    config: TeachConfig
    places: Places
    number: int


def _taught(task: _Task) -> tuple[int, Written]:
    """In a worker: train an expert and write its files."""
    config, device = task.config, devices.pick(task.config.device)
    with devices.arithmetic(config.precision), devices.threads(config.threads, device):
        store, lesson = _lesson(config, task.places)
        with progress.bar(_BAR, config.epochs) as bar:
            return task.number, _train(task.number, store, config, lesson, device, bar)


@lru_cache(1)
def _lesson(config: TeachConfig, places: Places) -> tuple[TrajectoryStore, Lesson]:
    """Of a worker, for all its tasks."""
    store, pairs = TrajectoryStore.open(config.out).at(places), load_split(config.data, "train")
    if (content := store.recipe.fingerprints.images) is not None:
        pairs.take_content_hash(content)
    return store, Lesson.of(store, config, pairs, text_tower(config.encoder), devices.pick(config.device))


def _train(
    number: int,
    store: TrajectoryStore,
    config: TeachConfig,
    lesson: Lesson,
    device: torch.device,
    bar: progress.Bar,
    name: str = "",
) -> Written:
    draw = (config.seed, "expert", number)
    student: Student = store.student(draw).to(device)
    recorder, losses = Recorder(student.layers, config.kept_endpoints), list[float]()
    for epoch in train_on_pairs(student, lesson.pairs, lesson.texts, config, number, lesson.features):
        recorder.record(epoch.theta)
        if epoch.number:
            losses.append(epoch.loss)
            bar.advance(f"{name}loss {epoch.loss:.3f}")
    record = {"losses": losses, "pairs": len(lesson.pairs)}
    return store.write_expert(number, recorder.expert(), record, None if config.keep_start else draw)
