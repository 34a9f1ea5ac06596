"""CUB-200-2011's files: a given directory or the official download, and its annotations."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ...utils.directories import check_files
from ...utils.download import download_archive
from ...utils.errors import UsageError, did_you_mean
from ..io.roots import find_dataset, find_root

SPECIES = 200
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"
_BOX = {"left": float, "top": float, "width": float, "height": float}
COLUMNS: dict[str, dict[str, type]] = {
    "images.txt": {"image": int, "file": str},
    "classes.txt": {"species": int, "name": str},
    "image_class_labels.txt": {"image": int, "species": int},
    "train_test_split.txt": {"image": int, "training": int},
    "bounding_boxes.txt": {"image": int, **_BOX},
    "parts/part_locs.txt": {"image": int, "part": int, "x": float, "y": float, "visible": int},
    "parts/parts.txt": {"part": int, "name": str, "more": str},
}
"""Columns of the text files, which have no header."""


class Birds(NamedTuple):
    """The images of some species, in the order of ``images.txt``."""

    root: Path
    ids: np.ndarray  # (N,) int64, official numbers of the images
    files: list[str]  # their paths in images/
    labels: np.ndarray  # (N,) int64 from 0, in the order of the species' official numbers
    training: np.ndarray  # (N,) bool, else it is a test image
    numbers: list[int]  # official number of each label's species
    names: list[str]  # name of each label's species, without its number


def parse_species(species: str | int | Iterable[str | int] | None) -> list[int | str]:
    """Parse the setting ``data.species`` to numbers and names. No file is read.

    None is all 200. Otherwise it is a number, a range such as "1-50", a name with or without its
    number, or several of these in a list or in a string with commas.
    """
    if species is None:
        return list(range(1, SPECIES + 1))
    items = [species] if isinstance(species, (str, int)) else list(species)
    chosen: list[int | str] = []
    for piece in ",".join(map(str, items)).split(","):
        match = re.fullmatch(r"([0-9]+)(?:\s*-\s*([0-9]+))?", piece.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 1)
        if not piece.strip() or not 1 <= first <= last <= SPECIES:
            raise UsageError(
                f"data.species must be names, and numbers from 1 to {SPECIES}, got {piece!r}."
            )
        chosen += range(first, last + 1) if match else [piece.strip()]
    return list(dict.fromkeys(chosen))


def prepare(root: str | Path | None) -> Path:
    """Check that CUB's text files exist, and return its directory.

    Args:
        root: directory of CUB, or of all data sets. None is ``$STN_DATA``. Without that, CUB is
            downloaded to ``data/CUB_200_2011`` if it is missing.

    Raises:
        UsageError: a file is missing, or the download failed.
    """
    given = find_root(root)
    directory = find_dataset(given, "CUB_200_2011", "images.txt")
    if given is None and not directory.is_dir():
        download_archive(URL, directory, "images.txt", f"md5:{MD5}")
    check_files("CUB", directory, list(COLUMNS))
    return directory


def read_birds(root: Path, chosen: Sequence[int | str]) -> Birds:
    """Read the images of the species that :func:`parse_species` returns.

    Raises:
        UsageError: a species does not exist or is chosen twice, or a text file is damaged.
    """
    classes = _read_table(root, "classes.txt")["name"].to_dict()
    known: dict[int | str, int] = {}
    for number, name in classes.items():
        known |= {number: number, name: number, name.partition(".")[2]: number}
    for item in chosen:
        if item not in known:
            hint = did_you_mean(item, known)
            raise UsageError(f"data.species: {item} is not in {root / 'classes.txt'}.{hint}")
    numbers = sorted(known[item] for item in chosen)
    if len(set(numbers)) < len(numbers):  # by its number and its name: there would be two classes
        raise UsageError(f"data.species must be different species, got the numbers {numbers}.")
    files = _read_table(root, "images.txt")["file"]
    species = _read_table(root, "image_class_labels.txt", files.index)["species"]
    training = _read_table(root, "train_test_split.txt", files.index)["training"]
    is_chosen = species.isin(numbers)
    return Birds(
        root,
        np.array(files.index[is_chosen]),  # a copy: pandas gives read-only views
        files[is_chosen].tolist(),
        np.searchsorted(numbers, species[is_chosen]),
        training[is_chosen].to_numpy() == 1,
        numbers,
        [classes[number].partition(".")[2] for number in numbers],
    )


def read_boxes(birds: Birds) -> np.ndarray:
    """Read the box around each bird, ``(N, 4)``: left, top, width and height in pixels."""
    return _read_table(birds.root, "bounding_boxes.txt", birds.ids).to_numpy()


def read_parts(birds: Birds) -> np.ndarray:
    """Read each bird's parts, ``(N, 15, 3)``: x and y in pixels, and 1 if visible, else 0."""
    n = len(part_names(birds.root))
    index = pd.MultiIndex.from_product([birds.ids, range(1, n + 1)])
    return _read_table(birds.root, "parts/part_locs.txt", index).to_numpy().reshape(-1, n, 3)


def part_names(root: Path) -> list[str]:
    """Read the names of the parts."""
    table = _read_table(root, "parts/parts.txt")
    return (table["name"] + " " + table["more"]).str.strip().tolist()


def _read_table(root: Path, file: str, index: Any = None) -> pd.DataFrame:
    """Read a text file, indexed by its numbers of images, species or parts.

    Args:
        root: directory of CUB.
        file: one of :data:`COLUMNS`.
        index: the rows to return, in this order. None is all.

    Raises:
        UsageError: the file is damaged, or lacks one of the rows.
    """
    types = COLUMNS[file]
    # No quotes, and no words for missing values: a number that is missing is an error.
    options: Any = {"quoting": csv.QUOTE_NONE, "na_filter": False, "encoding_errors": "replace"}
    keys = [name for name in types if name in ("image", "part")] or ["species"]
    try:
        table = pd.read_csv(root / file, sep=" ", names=list(types), dtype=types, **options)
        table = table.set_index(keys)
        if table.empty or not table.index.is_unique:
            raise ValueError("it is empty, or lists something twice")
        return table if index is None else table.loc[index]
    except (OSError, ValueError, KeyError, OverflowError) as error:
        raise UsageError(
            f"CUB is damaged: {(root / file).absolute()}: {error}.\n"
            "Unpack the archive CUB_200_2011.tgz again."
        ) from error
