"""Worker processes for many images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from ...utils.errors import UsageError
from ...utils.process import end_with_parent

_SERIAL_BELOW = 10  # items: one process is done before others have started
T = TypeVar("T")
R = TypeVar("R")


def map_in_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int | None, description: str
) -> Iterator[R]:
    """Yield a function's results in the order of the items, with a progress bar in a terminal.

    Args:
        function: called with each item. It must be importable, as for any worker process.
        items: the items.
        workers: number of processes. None is one per core, at most 16. 1 uses this process, and
            so does any number for a few items.
        description: of the progress bar.
    """
    if workers is None:
        has_affinity = hasattr(os, "sched_getaffinity")  # Linux
        workers = min(16, len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)
    is_parallel = workers > 1 and len(items) >= _SERIAL_BELOW
    results = DataLoader(
        _Results(function, items),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers if is_parallel else 0,
        multiprocessing_context="spawn" if is_parallel else None,  # there may be threads and a GPU
        worker_init_fn=_start_worker,
    )
    console = Console(stderr=True)
    for result in track(
        results,
        description,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ):
        if isinstance(result, UsageError):
            raise result
        yield result


class _Results(Dataset):
    """The results of a function, or the errors that it raised: a worker would add a traceback."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, n: int) -> Any:
        try:
            return self.function(self.items[n])
        except UsageError as error:
            return error


def _unchanged(result: Any) -> Any:
    return result


def _start_worker(worker_id: int) -> None:
    end_with_parent()
