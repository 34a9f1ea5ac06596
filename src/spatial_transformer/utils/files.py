"""Files that are complete or absent."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: Path, durable: bool = False, keep: Path | None = None) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to, and rename it to ``path`` if all went well.

    Args:
        path: the file. Its directory is created.
        durable: wait until the content is on the disk, so that a power failure leaves the old
            file or the new one. It can take a good part of a second.
        keep: where an earlier file at ``path`` is moved to, once the new one is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed processes left of :func:`atomic_write`; no process may be writing."""
    for path in (*folder.glob(".*"), *folder.glob("*/.*")):
        if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_json(value: Any, path: Path, durable: bool = False) -> None:
    """Write ``value`` as indented JSON, with each list of numbers on one line.

    Args:
        value: what to write.
        path: the file.
        durable: as for :func:`atomic_write`.

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
    """
    text = json.dumps(value, indent=1, allow_nan=False)
    text = re.sub(r"\[[\d\s.,eE+-]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    with atomic_write(path, durable) as temporary:
        temporary.write_text(text + "\n")


def free_path(path: Path) -> Path:
    """Return the first of ``NAME.1.EXT``, ``NAME.2.EXT``, ... that does not exist yet."""
    paths = (path.with_suffix(f".{n}{path.suffix}") for n in itertools.count(1))
    return next(candidate for candidate in paths if not candidate.exists())
