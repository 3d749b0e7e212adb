"""Many independent runs on the cores of one machine: a process each, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from typing import TypeVar

from ptmst.errors import InputError

A = TypeVar("A")
R = TypeVar("R")


def completed(function: Callable[[A], R], tasks: Iterable[A], workers: int) -> Iterator[R]:
    """Results as they come, in whatever order; the runs' own progress stays unseen.

    `function` is one of a module, and tasks and results can be pickled. Where one raises, or the caller stops, the
    runs that are under way are ended at once.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    try:
        for ended in as_completed([pool.submit(_quietly, function, task) for task in tasks]):
            yield ended.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker was ended from outside, for want of memory perhaps; the same command continues, with fewer "
            "--workers if need be"
        ) from error
    except BaseException:
        for worker in list((pool._processes or {}).values()):
            # A SIGTERM would only be noted inside an outer loop, and the next run begun. Files are whole or absent.
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    torch.set_num_threads(1)


def _quietly(function: Callable[[A], R], task: A) -> R:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        return function(task)
