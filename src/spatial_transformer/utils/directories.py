"""Create directories atomically, check them and remove unused ones."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UsageError

logger = logging.getLogger(__name__)


@contextmanager
def create_directory(
    target: Path, is_complete: Callable[[Path], bool] = Path.exists
) -> Iterator[Path | None]:
    """Yield a temporary directory that becomes ``target`` when the block ends without an error.

    Processes that create the same directory wait for each other. Those that find it complete get
    None. An incomplete one is replaced. The next process removes what a killed one left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"incomplete-{target.name}")
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.warning("Waiting for another process that creates %s", target)
        lock.acquire()
    try:
        if is_complete(target):
            yield None
            return
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()


def check_files(dataset: str, root: Path, files: Sequence[str]) -> None:
    """Raise UsageError if a data set's files, by their paths in ``root``, are missing."""
    missing = [file for file in files if not (root / file).is_file()]
    if missing:
        raise UsageError(
            f"{dataset} is incomplete: {root.absolute()} does not contain {', '.join(missing)}.\n"
            "Set data.root or STN_DATA to the directory that contains them. Without both, "
            f"{dataset} is downloaded to data/ if nothing of it is in there."
        )


def remove_unused_run_dir(path: Path) -> None:
    """Remove a run directory with nothing but a log, and directories above it that are then empty.

    A directory in which another process is working, and the working directory, stay.
    """
    files = {".lock", "train.log"}
    directories = [d for d in (path, *path.parents) if not Path.cwd().is_relative_to(d)]
    if not directories or not path.is_dir() or {file.name for file in path.iterdir()} - files:
        return
    with suppress(OSError, NotImplementedError), FileLock(path / ".lock", timeout=0):
        for file in files:
            (path / file).unlink(missing_ok=True)
        for directory in directories:
            directory.rmdir()
