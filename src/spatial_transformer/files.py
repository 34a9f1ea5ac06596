"""Files that are whole or not there, and where else one is."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def remove_half_written(folder: Path) -> None:
    """Removes what a process that was killed left of :func:`replacing`; none may be at work in the folder now."""
    for path in (*folder.glob(".*"), *folder.glob("*/.*")):
        if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def rather(root: Path, file: str) -> str:
    """What to add to the way out of a folder without a file: the folder in it or the one above that has it, if there is one."""
    try:
        below = sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        below = []
    places = [place for place in (*below, *root.absolute().parents[:2]) if (place / file).is_file()]
    return f" Did you mean data.root={places[0]}?" if places else ""


@contextmanager
def locked(folder: Path, wait: str = "") -> Iterator[bool]:
    """Keeps other processes that ask for it out of a folder meanwhile. What a process holds is free once it has ended.

    Gives whether that is so: a file system may have no locks.

    Args:
        folder: it exists.
        wait: what to tell while another process is waited for; "" does not wait.

    Raises:
        BlockingIOError: another process holds it, and none is waited for.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            if not wait:
                raise
            print(wait, file=sys.stderr)
            fcntl.flock(place, fcntl.LOCK_EX)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(place)


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Gives a path beside ``path`` to write to, and renames it to ``path`` when all went well.

    Args:
        path: the file.
        durable: waits until what was written is on the disk, so that even after a power failure there is the old file or
            the new one. It can take a good part of a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(value: Any, path: Path, durable: bool = False) -> None:
    """Write ``value`` as indented JSON, with each list of numbers on one line.

    Args:
        value: what to write.
        path: the file.
        durable: as for :func:`replacing`.
    """
    text = json.dumps(value, indent=1)
    text = re.sub(r"\[[\d\s.,eE+-]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    with replacing(path, durable) as temporary:
        temporary.write_text(text + "\n")


def free_path(path: Path) -> Path:
    """Return the first of ``NAME.1.EXT``, ``NAME.2.EXT``, ... next to ``path`` that does not exist."""
    paths = (path.with_suffix(f".{n}{path.suffix}") for n in itertools.count(1))
    return next(candidate for candidate in paths if not candidate.exists())
