"""Directories of the data sets."""

from __future__ import annotations

import os
from pathlib import Path

DOWNLOADS = Path("data")
"""Common directory of the data sets that are downloaded."""


def find_root(root: str | Path | None) -> Path | None:
    """Return ``data.root``, or ``$STN_DATA`` if it is None. None if neither is set."""
    if root is None:
        root = os.environ.get("STN_DATA") or None
    return None if root is None else Path(root).expanduser()


def find_dataset(root: Path | None, name: str, file: str) -> Path:
    """Return the directory of a data set.

    Args:
        root: that directory, or the common directory of all data sets, which contains it. None is
            :data:`DOWNLOADS`.
        name: name of the data set's directory in the common directory.
        file: path of a file in the data set's directory.
    """
    if root is None:
        return DOWNLOADS / name
    is_common = (root / name).is_dir() and not (root / file).is_file()
    return root / name if is_common else root
