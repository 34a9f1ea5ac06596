"""CUB-200-2011's files: a given directory or the official download, and its annotations."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ...utils.directories import check_files
from ...utils.download import download_archive
from ...utils.errors import UsageError
from ..io.roots import find_dataset, find_root

SPECIES = 200
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"
COLUMNS = {
    "images.txt": "image file",
    "classes.txt": "species name",
    "image_class_labels.txt": "image species",
    "train_test_split.txt": "image training",
    "bounding_boxes.txt": "image left top width height",
    "parts/part_locs.txt": "image part x y visible",
    "parts/parts.txt": "part name more",
}
"""Columns of the text files, which have no header."""
_INTEGERS = {"image", "species", "training", "part", "visible"}
_TEXTS = {"file", "name", "more"}  # all other columns are floats


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
    _check_unique(chosen)
    return chosen


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
    """Read the images of the species that :func:`parse_species` returns."""
    classes = _read_table(root, "classes.txt")["name"].to_dict()
    numbers = _find_species(chosen, classes, root)
    files = _read_table(root, "images.txt")["file"]
    species = _read_all(root, "image_class_labels.txt", files.index)["species"]
    training = _read_all(root, "train_test_split.txt", files.index)["training"]
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
    return _read_rows(birds.root, "bounding_boxes.txt", birds.ids).to_numpy()


def read_parts(birds: Birds) -> np.ndarray:
    """Read each bird's parts, ``(N, 15, 3)``: x and y in pixels, and 1 if visible, else 0."""
    n = len(part_names(birds.root))
    index = pd.MultiIndex.from_product([birds.ids, range(1, n + 1)])
    return _read_rows(birds.root, "parts/part_locs.txt", index).to_numpy().reshape(-1, n, 3)


def part_names(root: Path) -> list[str]:
    """Read the names of the parts."""
    table = _read_table(root, "parts/parts.txt")
    return (table["name"] + " " + table["more"]).str.strip().tolist()


def check_images(birds: Birds) -> None:
    """Raise UsageError if image files are missing."""
    images = birds.root / "images"
    existing = {f"{path.parent.name}/{path.name}" for path in images.glob("*/*")}
    exists = np.array([file in existing for file in birds.files])
    if exists.all():
        return
    raise UsageError(
        f"CUB is incomplete: {images.absolute()} does not contain {(~exists).sum():,} of "
        f"{len(exists):,} files in images.txt, first {birds.files[exists.argmin()]!r}.\n"
        "Set data.root to the whole data set, or data.species to species that are complete."
    )


def _find_species(chosen: Sequence[int | str], classes: dict[int, str], root: Path) -> list[int]:
    """Return the numbers of the chosen species in ascending order."""
    known: dict[int | str, int] = {}
    for number, name in classes.items():
        known |= {number: number, name: number, name.partition(".")[2]: number}
    for item in set(chosen) - set(known):
        near = difflib.get_close_matches(str(item), map(str, known), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        path = (root / "classes.txt").absolute()
        raise UsageError(f"data.species: {item} does not exist in {path}.{hint}")
    numbers = [known[item] for item in chosen]
    _check_unique(numbers)
    return sorted(numbers)


def _check_unique(items: Sequence[int | str]) -> None:
    if len(set(items)) < len(items):
        raise UsageError(f"data.species must list each species once, got {items}.")


def _read_table(root: Path, file: str) -> pd.DataFrame:
    """Read a text file, indexed by its numbers of images, species or parts."""
    names = COLUMNS[file].split()
    types = {n: int if n in _INTEGERS else str if n in _TEXTS else float for n in names}
    # No quotes, and no words for missing values: a number that is missing is an error.
    options = {"quoting": csv.QUOTE_NONE, "na_filter": False, "encoding_errors": "replace"}
    numbers = [name for name in names if name in ("image", "part")] or ["species"]
    try:
        table = pd.read_csv(root / file, sep=" ", names=names, dtype=types, **options)
        table = table.set_index(numbers)
        if table.empty or table.index.has_duplicates:
            raise ValueError("it is empty, or lists something twice")
        return table
    except (OSError, ValueError, OverflowError) as error:
        raise _damaged(root, file, error) from error


def _read_all(root: Path, file: str, index: pd.Index) -> pd.DataFrame:
    table = _read_table(root, file)
    if not table.index.equals(index):
        raise _damaged(root, file, "it does not list the same images as images.txt")
    return table


def _read_rows(root: Path, file: str, index: Sequence[int] | pd.Index) -> pd.DataFrame:
    try:
        return _read_table(root, file).loc[index]
    except KeyError as error:
        raise _damaged(root, file, f"it does not list {error} of images.txt") from error


def _damaged(root: Path, file: str, reason: object) -> UsageError:
    return UsageError(
        f"CUB is damaged: {(root / file).absolute()}: {reason}.\n"
        "Unpack the archive CUB_200_2011.tgz again."
    )
