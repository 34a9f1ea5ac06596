"""How this process uses the machine, without importing torch."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
import time
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the C library keep freed memory (Linux with glibc; elsewhere nothing happens).

    A training step frees and allocates the same large buffers again and again. By default the
    system clears fresh pages for each, which takes a good part of a step on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def rank() -> int:
    """Return the rank of this process among those that torchrun or SLURM has started."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def local_rank() -> int:
    """Return the rank of this process among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def limit_spinning() -> None:
    """Let waiting OpenMP threads yield soon, if called before torch is loaded.

    GNU's OpenMP, which torch's packages for Linux contain, spins for longer than most operations of
    a small network take, which slows down training next to other programs. A shorter spin is
    slightly slower on an idle machine (docs/reference/benchmarks.md). The user's settings stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


class PipeTolerantStream:
    """A stream whose reader may exit: with ``python train.py | head`` the run continues.

    Args:
        stream: standard output or error.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())  # also for what is still in the buffer
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def end_with_parent() -> None:
    """End this process within a second once its parent has ended, even if that was killed."""
    process = multiprocessing.parent_process()  # which may have ended while this one started
    parent = process.pid if process else os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if not any(thread.name == "end_with_parent" for thread in threading.enumerate()):
        threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
