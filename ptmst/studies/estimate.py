"""What an experiment will take here, before it runs: seconds, memory and disk, from a few measured steps."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ptmst import schema
from ptmst.config import Device, EvaluateConfig, Experiment, TeachConfig
from ptmst.data import Pairs, load_split
from ptmst.distillation.budget import needed, settled
from ptmst.distillation.checkpoints import KEPT
from ptmst.distillation.choosing import most_of_search, stand_in
from ptmst.students.image_towers import prepared
from ptmst.students.student import Student
from ptmst.students.text_towers import text_tower
from ptmst.studies import cost
from ptmst.support import devices, progress
from ptmst.support.clock import in_words
from ptmst.teachers.side_by_side import PROCESS_BYTES, Lesson, at_once, seconds_of
from ptmst.teachers.training import Trial
from ptmst.trajectories.prefetch import expert_bytes
from ptmst.trajectories.store import TrajectoryStore

_QUICK_S = 3.0
"""Seconds, of an outer step or of a student's epoch, up to which whole ones are measured."""
_FEW = 64
"""Images, and captions, that seconds are measured with."""
_OF_FORWARD = 1 / 3
"""Of a training step, the share of its forward pass."""


@dataclass(frozen=True)
class Stage:
    """One command of an experiment."""

    name: str
    seconds: float
    """On the clock, if nothing is there yet, in the cache neither, and nothing else runs."""
    memory: float
    """Bytes that all its processes hold at most; of a CUDA device and the host together."""
    disk: float
    """Bytes that it writes, images in the cache included."""
    what: str
    passing: float = 0.0
    """Bytes that it writes beside these, and removes at its end: checkpoints."""


def estimate(settings: Experiment) -> Iterator[Stage]:
    """The stages teach, distill and evaluate, each as soon as it is known; without compilation.

    Raises InputError for settings that cannot be used and data that are not there.
    """
    schema.check(settings)
    teach = replace(settings.teach, data=prepared(settings.teach.data, settings.teach.encoder))
    pairs = load_split(teach.data, "train")
    with TemporaryDirectory() as folder, progress.switched_off():
        store = cost.store_of_noise(teach, Path(folder))
        student = store.student((0,)).to(devices.pick(teach.device))
        lesson = Lesson.blank(student, pairs, store.recipe.text_width, teach)
        tried = lesson.trial(student, teach)
        yield _teaching(teach, store, student, lesson, tried)
        yield _distilling(settings, store, tried)
        yield _evaluating(settings, store, pairs, tried)


def on(settings: Experiment, root: Path | None, device: Device) -> Experiment:
    """The experiment on data and a device that are elsewhere."""
    teach = replace(settings.teach, device=device)
    if root is not None:
        teach = replace(teach, data=replace(teach.data, root=root))
    distill, evaluate = replace(settings.distill, device=device), replace(settings.evaluate, device=device)
    return replace(settings, teach=teach, distill=distill, evaluate=evaluate)


def shown(stage: Stage) -> tuple[str, str, str]:
    """Time, memory and disk in words."""
    return in_words(stage.seconds), _size(stage.memory), _size(stage.disk) if stage.disk else "–"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _teaching(config: TeachConfig, store: TrajectoryStore, student: Student, lesson: Lesson, tried: Trial) -> Stage:
    device, pairs, features = student.device, lesson.pairs, lesson.features
    images, an_expert = len(pairs.image_names), seconds_of(1, tried, len(pairs), config)
    warm_up = cost.warming_up(config, time.perf_counter)
    workers = config.workers or 1
    if config.workers is None and device.type != "cuda":
        workers = at_once(config.experts, tried, len(pairs), config, device)
    workers = min(workers, config.experts)
    seconds = warm_up + an_expert * -(-config.experts // workers) + _seconds_of_captions(config, pairs, device)
    sizes = {name: (store.path / name).stat().st_size for name in store.hashes}
    disk = config.experts * sum(size for name, size in sizes.items() if name.startswith("expert-"))
    disk += sum(size for name, size in sizes.items() if not name.startswith("expert-"))
    if not config.augment:
        # What the cache keeps: features, or pixels.
        kept = 3 * pairs.image_size**2 if features is None else 4 * features.shape[1]
        seconds += images * (_seconds_an_image(student, pairs.image_size) + _seconds_a_picture(pairs))
        disk += images * kept
    memory = _held() + tried.bytes + (workers - 1) * (PROCESS_BYTES + tried.bytes)
    what = f"{config.experts} experts × {config.epochs} epochs" + f", {workers} at a time" * (workers > 1)
    return Stage("teach", seconds, memory, disk, what)


def _seconds_of_captions(config: TeachConfig, pairs: Pairs, device: torch.device) -> float:
    """Of all captions in the text tower."""
    tower, some = text_tower(config.encoder), pairs.captions[:_FEW]
    tower.embed(some[:2], device)
    began = time.perf_counter()
    tower.embed(some, device)
    return (time.perf_counter() - began) * len(pairs.captions) / len(some)


def _seconds_a_picture(pairs: Pairs) -> float:
    """Of reading and decoding it."""
    some = torch.arange(min(_FEW, len(pairs.image_names)))
    began = time.perf_counter()
    pairs.decode(some)
    return (time.perf_counter() - began) / len(some)


def _seconds_an_image(student: Student, size: int) -> float:
    """Of the frozen tower; none where it is trained."""
    if student.frozen is None:
        return 0.0
    few = torch.zeros(_FEW, 3, size, size, device=student.device)
    with torch.no_grad():
        student.features(few[:2])
        began = time.perf_counter()
        student.features(few).cpu()
    return (time.perf_counter() - began) / _FEW


def _distilling(settings: Experiment, store: TrajectoryStore, tried: Trial) -> Stage:
    config = replace(settings.distill, out=None)
    student = store.student((config.seed, "student")).to(devices.pick(config.device))
    asked, (searching, _) = config, most_of_search(config)
    config, size, width = (
        settled(stand_in(config, store), store, student),
        store.recipe.data.image_size,
        store.recipe.text_width,
    )
    assert size is not None
    # An inner step with its gradient is about four steps of an expert; behind a frozen tower, three of its passes.
    frozen = student.frozen is not None
    an_image = 3 * _seconds_an_image(student, size) if frozen else 4 * tried.seconds / settings.teach.batch_size
    quick = an_image * config.inner_steps * config.batch_size <= _QUICK_S
    asked = replace(config, phases=asked.phases)
    seconds = (cost.distilling if quick else cost.distilling_by_parts)(asked, store, time.perf_counter)
    experts = settings.teach.experts * expert_bytes(store.layers.num_params, len({p.endpoint for p in config.phases}))
    memory = _held() + needed(config, store, student) + min(experts, devices.free_bytes(student.device) / 2)
    labels = [phase.pairs if config.similarity == "full" else 2 * config.rank + 1 for phase in config.phases]
    image = 3 * size * size
    if config.image_leaves == "features":
        image = student.features(torch.zeros(1, 3, size, size, device=student.device)).shape[1]
    numbers = [p.pairs * (image + width + s) for p, s in zip(config.phases, labels, strict=True)]
    # A checkpoint has leaves, their average, the optimizer's moments and, where recall is tracked, the best leaves.
    states = 3 + (config.optimizer == "adam") + (config.track_recall > 0)
    passing = 4 * sum(numbers) * KEPT * states
    chunk = "" if config.chunk is None else f", chunks of {config.chunk}"
    search = f", up to {searching:,} more to choose phases" if searching else ""
    steps = f"{config.steps * len(config.phases):,} outer steps{search}"
    return Stage(
        "distill",
        seconds,
        memory,
        4 * sum(numbers),
        f"{config.pairs} pairs, {steps}, keep {config.keep}{chunk}",
        passing,
    )


def _evaluating(settings: Experiment, store: TrajectoryStore, pairs: Pairs, tried: Trial) -> Stage:
    config, count = settings.evaluate, settings.distill.pairs
    scored = len(load_split(store.recipe.data, config.split).image_names)
    a_pair = tried.seconds / min(len(pairs), settings.teach.batch_size)
    if count * a_pair <= _QUICK_S:
        seconds = cost.students(count, config, store, time.perf_counter)
    else:
        images = _OF_FORWARD * scored * _scorings(config)
        seconds = config.students * a_pair * ((config.epochs + 1) * count + images)
    return Stage(
        "evaluate", seconds, _held(), 0, f"{config.students} students × {config.epochs} epochs, {scored:,} images"
    )


def _scorings(config: EvaluateConfig) -> int:
    return 1 if config.select == "last" else config.epochs // config.every + 1


def _held() -> int:
    """Most bytes that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
