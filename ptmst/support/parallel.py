"""Many independent runs on the cores of one machine: a process each, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from ptmst.errors import InputError
from ptmst.support import memory, progress

_LAST_WORD_S = 1.0
A = TypeVar("A")
R = TypeVar("R")


class Workers:
    """Processes that begin with the first task and stay for those of later calls; they show no progress of their own,
    but warn as usual."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def completed(self, function: Callable[[A], R], tasks: Iterable[A]) -> Iterator[R]:
        """Results as they come, in any order. `function` is one of a module; tasks and results can be pickled."""
        with _starting(function):
            futures = [self._pool.submit(function, task) for task in tasks]
        for ended in as_completed(futures):
            yield ended.result()


@contextmanager
def processes(number: int) -> Iterator[Workers]:
    """That many workers. Where a task raises, or the caller stops or is killed, they are killed at once."""
    with _pool(number) as pool:
        yield Workers(pool)


def completed(function: Callable[[A], R], tasks: Iterable[A], workers: int) -> Iterator[R]:
    """`Workers.completed`, of workers for these tasks alone."""
    with processes(workers) as own:
        yield from own.completed(function, tasks)


def side_by_side(function: Callable[[A], R], tasks: Mapping[str, A], workers: int) -> dict[str, R]:
    """Results by name, of a few long tasks whose progress is shown, each under its name; else as `completed`."""
    with progress.bars() as bars:
        return dict(_named_results(function, tasks, workers, bars.show))


def results(
    function: Callable[[A], R], tasks: Mapping[str, A], workers: int, show: Callable[[progress.Told], object]
) -> Iterator[R]:
    """Results as they come, of long tasks by name; `show` gets their progress, on a thread of its own."""
    for _, result in _named_results(function, tasks, workers, show):
        yield result


def _named_results(
    function: Callable[[A], R], tasks: Mapping[str, A], workers: int, show: Callable[[progress.Told], object]
) -> Iterator[tuple[str, R]]:
    told = multiprocessing.get_context("spawn").Queue()
    with _pool(workers, told) as pool:
        showing = threading.Thread(target=_show, args=(told, show), daemon=True)
        showing.start()
        try:
            with _starting(function):
                futures = {pool.submit(_named, name, function, task): name for name, task in tasks.items()}
            for ended in as_completed(futures):
                yield futures[ended], ended.result()
        finally:
            told.cancel_join_thread()
            told.put(None)
            showing.join(_LAST_WORD_S)  # a worker that was killed may have the queue's lock


def _show(told: multiprocessing.Queue[progress.Told | None], show: Callable[[progress.Told], object]) -> None:
    while (one := told.get()) is not None:
        show(one)


def _named(name: str, function: Callable[[A], R], task: A) -> R:
    assert _told is not None
    progress.told_to(_told.put, name)
    try:
        return function(task)
    finally:
        progress.told_to(None)


_told: multiprocessing.Queue[progress.Told] | None = None
"""Of a worker: where its progress goes."""


@contextmanager
def _starting(function: Callable[[A], R]) -> Iterator[None]:
    """Let processes that start here not hear Ctrl-C, which is the parent's affair from their first moment on, nor run
    the program's main file again, unless the function is of that.

    It may be a user's script, which calls us without asking first whether it is the main one.
    """
    main = sys.modules["__main__"]
    if function.__module__ != "__main__":
        sys.modules["__main__"] = ModuleType("__main__")
    # A process inherits what is blocked; here the signal waits until it no longer is.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.modules["__main__"] = main


@contextmanager
def _pool(workers: int, told: multiprocessing.Queue[Any] | None = None) -> Iterator[ProcessPoolExecutor]:
    how = told, workers, memory.is_kept()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, how)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed (out of memory?); run the same command again to continue, with fewer "
            "--workers if it happens again"
        ) from error
    except BaseException:
        for worker in list((pool._processes or {}).values()):
            # An outer loop would only note a SIGTERM, and its worker begin the next task. Files are whole or absent.
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def at_once() -> int:
    """How many processes, this one among them, work side by side for one that started them."""
    return _at_once


_at_once = 1


def _begin(told: multiprocessing.Queue[Any] | None, workers: int, keep_memory: bool) -> None:
    global _told, _at_once
    _told, _at_once = told, workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if keep_memory:
        memory.keep_freed_memory()
    import torch

    torch.set_num_threads(1)
    progress.progress(False)


def _end_with_parent() -> None:
    """A parent that is killed cannot kill: its worker would go on for hours, and hold the folders that it writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
