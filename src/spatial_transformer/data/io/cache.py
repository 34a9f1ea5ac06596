"""Caches: files that are computed once from a data set and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ...utils.directories import create_directory
from ...utils.errors import UsageError

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Cache(Generic[T]):
    """A directory of files that is complete or absent, and verified when opened.

    Attributes:
        dataset: name of the data set, for messages.
        contents: what the files are, for messages.
        name: the directory is called this and a hash of the settings.
        settings: all that the contents depend on, as JSON. Without paths, so that copies are valid.
        write: writes the files to a directory, and returns the metadata needed to read them.
        read: returns the contents of a directory, given the metadata. Raises OSError, ValueError,
            KeyError or TypeError if they are damaged.
        option: the setting that chooses another directory, for messages.
    """

    dataset: str
    contents: str
    name: str
    settings: dict
    write: Callable[[Path], dict]
    read: Callable[[Path, dict], T]
    option: str = "data.cache"


def open_cache(cache: Cache[T], directories: Sequence[Path]) -> T:
    """Open a cache in one of the directories. Write it to the first writable one if missing."""
    key = hashlib.sha256(json.dumps(cache.settings, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{cache.name}-{key}"
    for directory in directories:
        contents = _read(cache, directory / name, warn=True)
        if contents is not None:
            return contents
    writable = [directory for directory in directories if _is_writable(directory)]
    target = (writable or directories)[0] / name
    try:
        with create_directory(target, lambda path: _read(cache, path) is not None) as new:
            if new is not None:
                meta = {"settings": cache.settings, **cache.write(new)}
                meta["crc32"] = {file.name: _crc32(file) for file in sorted(new.iterdir())}
                (new / "meta.json").write_text(json.dumps(meta, indent=1))
        return cache.read(target, json.loads((target / "meta.json").read_text()))
    except OSError as error:
        raise UsageError(
            f"{cache.dataset}'s {cache.contents} cannot be written to "
            f"{target.parent.absolute()}: {error}.\n"
            f"Set {cache.option} to a writable directory with enough space."
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


def _read(cache: Cache[T], directory: Path, warn: bool = False) -> T | None:
    """Return the contents of a directory, or None if it does not exist or is damaged."""
    if not directory.is_dir():
        return None
    try:
        meta = json.loads((directory / "meta.json").read_text())
        if meta["settings"] != cache.settings:
            raise ValueError("it has other settings")
        for name, crc in meta["crc32"].items():
            if _crc32(directory / name) != crc:
                raise ValueError(f"the checksum of {name} is wrong")
        return cache.read(directory, meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        if warn:
            logger.warning("The cache %s is damaged (%s) and will be replaced.", directory, error)
        return None


def _crc32(file: Path) -> int:
    """Return a checksum that detects accidental changes. A gigabyte takes about a second."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _is_writable(directory: Path) -> bool:
    """Return whether a directory, or its closest existing parent, may be written to."""
    while not directory.exists():
        directory = directory.parent
    # The superuser of a container may write everywhere, so respect the permission bits.
    return os.access(directory, os.W_OK) and bool(directory.stat().st_mode & 0o222)
