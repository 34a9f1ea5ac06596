"""Caches: files that are computed once from a data set and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...utils.directories import create_directory
from ...utils.errors import UsageError

logger = logging.getLogger(__name__)
T = TypeVar("T")


def open_cache(
    name: str,
    settings: dict,
    directories: Sequence[Path],
    write: Callable[[Path], dict],
    read: Callable[[Path, dict], T],
) -> T:
    """Open a cache in one of the directories. Write it to the first writable one if missing.

    A cache is a directory that is complete or absent. Its files are verified when it is opened.

    Args:
        name: the directory is called this and a hash of the settings.
        settings: all that the contents depend on, as JSON. Without paths, so that copies are valid.
        directories: where the cache may be, the preferred place first.
        write: writes the files to a directory, and returns the metadata needed to read them.
        read: returns the contents of a directory, given the metadata. Raises OSError, ValueError,
            KeyError or TypeError if they are damaged.

    Raises:
        UsageError: the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    places = [directory / f"{name}-{key}" for directory in directories]
    for place in places:
        contents = _read(place, read)
        if contents is not None:
            return contents
    target = next((place for place in places if _is_writable(place)), places[0])
    try:
        is_complete = lambda path: _read(path, read) is not None  # noqa: E731
        with create_directory(target, is_complete) as new:
            if new is not None:
                if target.exists():
                    logger.warning("The cache %s is damaged and will be replaced.", target)
                meta = {"settings": settings, **write(new)}
                meta["crc32"] = {file.name: _crc32(file) for file in sorted(new.iterdir())}
                (new / "meta.json").write_text(json.dumps(meta, indent=1))
        return read(target, json.loads((target / "meta.json").read_text()))
    except OSError as error:
        raise UsageError(
            f"The cache {target.absolute()} cannot be written: {error}.\n"
            "Set data.cache (task.cache for an encoder) to a writable directory with enough space."
        ) from error


def cache_directories(root: Path, cache: str | Path | None, name: str) -> list[Path]:
    """Return the directories that may contain the caches of a data set, the preferred one first.

    They are the subdirectory ``name`` of ``cache``. None is ``cache`` in the root, or
    ``~/.cache/spatial_transformer`` if the root is not writable.
    """
    if cache is not None:
        return [Path(cache).expanduser() / name]
    directories = [root / "cache" / name]
    with suppress(RuntimeError):  # there is no home directory
        directories.append(Path.home() / ".cache" / "spatial_transformer" / name)
    return directories


def _read(directory: Path, read: Callable[[Path, dict], T]) -> T | None:
    """Return the contents of a directory, or None if it does not exist or is damaged."""
    try:
        meta = json.loads((directory / "meta.json").read_text())
        is_intact = all(_crc32(directory / name) == crc for name, crc in meta["crc32"].items())
        return read(directory, meta) if is_intact else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _crc32(file: Path) -> int:
    """Return a checksum that detects accidental changes. A gigabyte takes about a second."""
    return zlib.crc32(np.memmap(file, mode="r").data)


def _is_writable(directory: Path) -> bool:
    """Return whether a directory, or its closest existing parent, may be written to."""
    # Path.exists raises an error where a parent cannot be searched.
    existing = next(path for path in (directory, *directory.parents) if os.path.exists(path))
    return os.access(existing, os.W_OK)
