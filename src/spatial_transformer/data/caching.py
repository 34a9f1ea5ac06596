"""What is computed once from a data set's files, in parallel, and kept on disk from then on."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import UsageError
from ..files import locked

HOME_CACHE = Path("~/.cache/spatial_transformer")

_INCOMPLETE = "incomplete-"
_AHEAD = 48  # pieces of work done or under way; with pieces of some 12 MB up to 0.6 GB
_PROVED = 2_000_000  # bytes: files up to that are proved by checksums whenever a cache is opened; images are too large for it
T = TypeVar("T")
R = TypeVar("R")


# The cache


@dataclass(frozen=True)
class Cache(Generic[T]):
    """A folder of files made from a source. It is there as a whole or not at all."""

    dataset: str
    """The data set's name, for messages."""
    contents: str
    """What is kept, for messages, in the plural."""
    source: Path
    """The folder that it is made from. Its path does not decide: a copy that keeps times needs no cache of its own."""
    name: str
    """Tells what is kept of one source apart. Of one name only the latest state of a source is kept."""
    settings: dict
    """All that the contents depend on, the state of the source included, as JSON has it."""
    read: Callable[[Path, dict], T]
    """Opens the files in a folder, given what ``write`` returned. Raises OSError, ValueError, KeyError, TypeError or EOFError
    if they are not whole."""
    write: Callable[[Path], dict]
    """Makes the files in a folder; returns what ``read`` has to know of them, as JSON has it."""
    place: str = "data.cache"
    """The setting that names another folder, for messages."""


def open_cache(cache: Cache[T], folders: Sequence[Path]) -> T:
    """Opens a cache; makes it first where there is none yet, or none that fits.

    Args:
        cache: what is kept.
        folders: where it may be; it is made in the first that can be written to.

    Raises:
        UsageError: it cannot be written, or a process that makes it was ended from outside.
    """
    key = hashlib.sha256(json.dumps(cache.settings, sort_keys=True).encode()).hexdigest()[:12]
    for folder in folders:  # a cache that somebody else made serves, whether one could write there or not
        contents = _opened(cache, folder / f"{cache.name}-{key}")
        if contents is not None:
            return contents
    writable = [folder for folder in folders if _is_writable(folder)]
    return _made(cache, (writable or folders)[0] / f"{cache.name}-{key}")


def cache_folders(root: Path, cache: str | Path | None, name: str) -> list[Path]:
    """Where a data set's caches may be: in the folder ``cache``, or else in the root or at home, under ``name``."""
    folders = [Path(cache)] if cache is not None else [root / "cache", HOME_CACHE]
    return [folder.expanduser() / name for folder in folders]


def say(dataset: str, text: str) -> None:
    """Tells the user something about a data set."""
    print(f"{dataset}: {text}", file=sys.stderr)


@contextmanager
def room_for(needed: int, folder: Path) -> Iterator[None]:
    """Writing into a folder, with an error that tells how many bytes are needed where the disk has not so much room.

    Raises:
        OSError: the disk is too full, told before the work where that can be known.
    """
    try:
        if shutil.disk_usage(folder).free < needed:  # better told now than after minutes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"{needed:,} bytes are needed: {error}") from error
        raise


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of an .npy file of bytes in that shape: NumPy makes it as long for any length, so that files can grow.

    What follows is appended, not written through a memory map: a full disk is an error then, and would be a crash otherwise.
    """
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _is_writable(folder: Path) -> bool:
    """Whether a folder, or the nearest above it that exists, can be written to, and is meant to be."""
    if not folder.exists():
        return _is_writable(folder.parent)
    # The system's superuser, which one is in many containers, could write anywhere: what is marked read-only is left alone.
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _opened(cache: Cache[T], folder: Path, tell: bool = True) -> T | None:
    """The contents in a folder; None where there are none that are whole."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["settings"] != cache.settings:
            raise ValueError("it is another's")
        for name, digest in meta.get("sha256", {}).items():
            if _sha256(folder / name) != digest:
                raise ValueError(f"the checksum of {name} is wrong")
        return cache.read(folder, meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
        if tell:
            say(cache.dataset, f"the cache {folder} is broken ({error}) and will be made anew")
        return None


def _made(cache: Cache[T], target: Path) -> T:
    """Made in a folder beside the final one, which gets its name only when all is written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"{cache.dataset}: waiting for another run, which makes what is kept in {target.parent}"
        with locked(target.parent, waiting) as alone:
            there = _opened(cache, target, tell=False)
            if there is not None:  # another process has made it meanwhile
                return there
            if alone:  # what processes left that were killed
                for folder in target.parent.glob(f"{_INCOMPLETE}*"):
                    shutil.rmtree(folder, ignore_errors=True)
            workplace = Path(tempfile.mkdtemp(dir=target.parent, prefix=_INCOMPLETE))
            try:
                made = workplace / target.name
                made.mkdir()  # with the permissions that others are to have, as the workplace has not
                meta = {"settings": cache.settings, "source": str(cache.source.resolve()), **cache.write(made)}
                small = [file for file in sorted(made.iterdir()) if file.stat().st_size <= _PROVED]
                meta["sha256"] = {file.name: _sha256(file) for file in small}
                (made / "meta.json").write_text(json.dumps(meta, indent=1))
                stale = _stale(cache, target)
                if stale:
                    text = f"{cache.source.absolute()} has changed since its {cache.contents} were made; they are replaced"
                    say(cache.dataset, text)
                for folder in stale:
                    shutil.rmtree(folder, ignore_errors=True)
                if target.exists():
                    shutil.rmtree(target)
                os.rename(made, target)
            finally:
                shutil.rmtree(workplace, ignore_errors=True)
        contents = _opened(cache, target)
        if contents is None:
            raise OSError(f"{target} was damaged meanwhile")
        return contents
    except OSError as error:
        raise UsageError(
            f"{cache.dataset}'s {cache.contents} cannot be written to {target.parent.absolute()}: {error}.\nWay out: name a "
            f"folder with room that can be written to ({cache.place}=FOLDER)."
        ) from error
    except BrokenProcessPool as error:
        raise UsageError(
            f"A process that made {cache.dataset}'s {cache.contents} of {cache.source.absolute()} was ended from outside, most "
            "often for lack of memory.\nWay out: fewer processes (data.workers=1)."
        ) from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _stale(cache: Cache, target: Path) -> list[Path]:
    """Caches of the same name that were made from an earlier state of the same source."""
    stale = []
    for folder in target.parent.glob(f"{cache.name}-*"):
        try:
            earlier = json.loads((folder / "meta.json").read_text())["source"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if earlier == str(cache.source.resolve()) and folder != target:
            stale.append(folder)
    return stale


# The work


def check_workers(workers: int | None, contents: str) -> None:
    """Refuses ``data.workers`` below 1.

    Raises:
        UsageError: it is.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"data.workers={workers} cannot make {contents}. Way out: 1 or more, or null for one to each core.")


@contextmanager
def processes(workers: int | None, images: int, few: int, module: str) -> Iterator[ProcessPoolExecutor | None]:
    """A pool of processes; None where one process is done with that many images before others have started.

    Args:
        workers: number of processes; None is one for each core, 16 at most.
        images: how many there are to do.
        few: so many images one process does by itself.
        module: full name of the module that each process needs.
    """
    workers = workers or min(16, _cores())
    if workers == 1 or images <= few:
        yield None
        return
    # Not forked from here, where there may be threads and a GPU by now. A fork server imports what is slow to import once.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([module])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process once the one that it works for has: killed, that could not end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def mapped(function: Callable[[T], R], pieces: Sequence[T], pool: ProcessPoolExecutor | None, description: str) -> Iterator[R]:
    """Results of a function for pieces of work, in order, with a progress bar in a terminal."""
    results = map(function, pieces) if pool is None else _results(function, pieces, pool)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(results, len(pieces), description=description)


def _results(function: Callable[[T], R], pieces: Sequence[T], pool: ProcessPoolExecutor) -> Iterator[R]:
    waiting = iter(pieces)
    # No more than that ahead of what is taken: results must not pile up in memory.
    futures = deque(pool.submit(function, piece) for piece in islice(waiting, _AHEAD))
    while futures:
        yield futures.popleft().result()
        futures.extend(pool.submit(function, piece) for piece in islice(waiting, 1))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
