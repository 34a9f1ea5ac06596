"""Worker processes for many images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from ...utils.errors import UsageError

_PENDING = 32  # items per process whose results may wait: they must not fill the memory
T = TypeVar("T")
R = TypeVar("R")


def check_workers(workers: int | None) -> None:
    """Raise UsageError if ``data.workers`` is below 1."""
    if workers is not None and workers < 1:
        raise UsageError(f"data.workers must be a positive integer or null, got {workers}.")


def map_in_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int | None, description: str
) -> Iterator[R]:
    """Yield a function's results in the order of the items, with a progress bar in a terminal.

    Args:
        function: called with each item. It must be importable, as for any worker process.
        items: the items.
        workers: number of processes. None is one per core, at most 16. 1 uses this process.
        description: of the progress bar.
    """
    workers = workers or min(16, _count_cores())
    is_parallel = workers > 1 and len(items) > 1
    results = _map(function, items, workers) if is_parallel else map(function, items)
    console = Console(stderr=True)
    disable = not console.is_terminal
    yield from track(
        results, description, len(items), console=console, transient=True, disable=disable
    )


def _map(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    # Not forked, as there may be threads and a GPU. No fork server, as the path of its socket may
    # be too long in TMPDIR.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), context, _start_worker)
    try:
        for start in range(0, len(items), _PENDING * workers):
            yield from pool.map(function, items[start : start + _PENDING * workers])
    except BrokenProcessPool as error:
        raise UsageError(
            "A worker process was killed, most often because the memory is full. Use fewer "
            "processes (data.workers=1)."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit when the parent is gone, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _count_cores() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
