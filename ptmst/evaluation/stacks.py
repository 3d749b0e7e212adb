"""How many students train at once, as one stack."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from ptmst.config import EvaluateConfig
from ptmst.errors import Diverged, InputError
from ptmst.evaluation.scorer import RetrievalScorer
from ptmst.evaluation.students import see, train_students
from ptmst.students.student import Student
from ptmst.support import devices
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.synthetic.union import union

_LOG = logging.getLogger(__name__)
_GIB = 1 << 30
_SHARE = 0.9
"""Of a CUDA device's memory that students may take; the rest is CUDA's own, and the gaps between blocks."""


def students_at_once(
    distilled: DistilledSet, config: EvaluateConfig, device: torch.device, splits: Iterable[RetrievalScorer]
) -> int:
    """Students that train as one stack: on a CPU by what is faster (bench/results), on CUDA as many as fit, and told.

    How many fit depends on the device's memory, the set and the student alone: not on what other programs take.
    """
    if device.type != "cuda":
        return config.students if distilled.recipe.encoder.freeze_tower else 1
    if config.students == 1:
        return 1
    student = distilled.student((config.seed, "student", 0)).to(device)
    for split in splits:
        split.hold(student)
    for pairs in distilled:
        see(student, pairs.to(device))  # what the tower takes for it is no student's
    total = devices.total_bytes(device)
    room = int(_SHARE * total) - torch.cuda.memory_allocated(device)
    one = _stack_bytes(1, student, distilled, config)
    two = _stack_bytes(2, student, distilled, config) if 2 * one <= room else 2 * one
    at_once = students_that_fit(config.students, room, one, two)
    _LOG.info(
        "evaluate: %d of %d students at a time; one takes %.1f GiB, each more about %.1f, of the device's %.1f "
        "(--together sets another number)",
        at_once,
        config.students,
        one / _GIB,
        (two - one) / _GIB,
        total / _GIB,
    )
    return at_once


def groups(students: int, at_once: int) -> list[range]:
    """The numbers of the students that train together."""
    return [range(n, min(n + at_once, students)) for n in range(0, students, at_once)]


def students_that_fit(students: int, room: int, one: int, two: int) -> int:
    """How many of `students` train as one stack in `room` bytes, where a stack of one takes `one` and of two `two`.

    Each after the second takes what the second did. At least 1: there is no less.
    """
    return max(1, min(students, 1 + (room - one) // max(1, two - one)))


def _stack_bytes(count: int, student: Student, distilled: DistilledSet, config: EvaluateConfig) -> int:
    """Most bytes that so many students take on a CUDA device as they train as one stack."""
    device = student.device
    # The first epoch is then one of the largest batches.
    largest = max(distilled.phases, key=lambda phase: len(phase.pairs))
    if distilled.is_progressive:
        largest = replace(distilled.phases[-1], pairs=union(list(distilled)))
    seed_keys = [(config.seed, "student", number) for number in range(count)]
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    alone = replace(distilled, phases=(largest,))
    with room_for(count), suppress(Diverged):  # where phases are not in their order
        next(train_students(student, student.flatten().repeat(count, 1), alone, config, seed_keys))
    return torch.cuda.max_memory_allocated(device) - before


@contextmanager
def room_for(students: int) -> Iterator[None]:
    """Raises InputError, with advice, where a device's memory does not hold so many students."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = f"set --together {students // 2}" if students > 1 else "lower --batch-size"
        raise InputError(
            f"together {students}: expected room for so many students at once on the device, found its memory full; "
            f"{advice}, or end what else runs there"
        ) from error
