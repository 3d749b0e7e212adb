"""Many independent runs on the cores of one machine: a process each, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ptmst.errors import InputError
from ptmst.support import progress

A = TypeVar("A")
R = TypeVar("R")


def completed(function: Callable[[A], R], tasks: Iterable[A], workers: int) -> Iterator[R]:
    """Results as they come, in any order; workers show no progress of their own, but warn as usual.

    `function` is one of a module, and tasks and results can be pickled. Where one raises, or the caller stops or is
    killed, the running workers are killed at once.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    try:
        for ended in as_completed([pool.submit(function, task) for task in tasks]):
            yield ended.result()
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


def _begin() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    torch.set_num_threads(1)
    progress.progress(False)


def _end_with_parent() -> None:
    """A parent that is killed cannot kill: its worker would go on for hours, and hold the folders that it writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
