"""Where CUB-200-2011 comes from: a given folder or the official download; and what its text files say.

The root is the folder that holds ``images.txt``. Each line of a text file begins with a number: of an image, of a species or
of a part. The files of boxes and splits have the images in the order of ``images.txt``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UsageError
from ..files import rather
from .download import Archive, fetch

SPECIES = 200
DEFAULT_ROOT = Path("data") / "CUB_200_2011"
URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"

_NUMBER = r"(-?[0-9]+\.[0-9]+)"  # always with a point, so that one cut short is seen
_LINES = {
    "images.txt": (r"([0-9]+) ([^/\s]+)/([^/\s]+\.jpg)", "ID SPECIES/NAME.jpg"),
    "classes.txt": (r"([0-9]+) ([0-9]+\.\w[^/\s]*)", "NUMBER NUMBER.NAME"),
    "image_class_labels.txt": (r"([0-9]+) ([0-9]+)", "ID NUMBER"),
    "train_test_split.txt": (r"([0-9]+) ([01])", "ID 1 (training) or 0 (test)"),
    "bounding_boxes.txt": (rf"([0-9]+) {_NUMBER} {_NUMBER} {_NUMBER} {_NUMBER}", "ID LEFT TOP WIDTH HEIGHT"),
    "parts/parts.txt": (r"([0-9]+) (\w.*)", "PART NAME"),
    "parts/part_locs.txt": (rf"([0-9]+) ([0-9]+) {_NUMBER} {_NUMBER} ([01])", "ID PART X Y VISIBLE"),
}
TEXTS = tuple(_LINES)
"""The text files, by their paths in the root."""


class Birds(NamedTuple):
    """The images of some species, in the order of ``images.txt``."""

    root: Path
    ids: np.ndarray
    """``(N,)`` int64, the official numbers of the images."""
    files: list[str]
    """Their paths in ``images``."""
    labels: np.ndarray
    """``(N,)`` int64: dense, from 0, in the order of the species' official numbers."""
    training: np.ndarray
    """``(N,)`` bool: of the training images or of the test images."""
    numbers: list[int]
    """Official number of each label's species."""
    names: list[str]
    """Name of each label's species, as in ``classes.txt`` but for the number."""
    rows: np.ndarray
    """``(N,)`` int64, their lines in ``images.txt``, counted from 0."""
    listed: np.ndarray
    """Official numbers of all images in ``images.txt``, chosen or not."""


# Species


def selection(species: str | int | Iterable[str | int] | None) -> list[int | str]:
    """The species that a setting chooses, as numbers and names in the order given. Nothing is read for it.

    Args:
        species: None (all 200), or one or several of: a number from 1 to 200, a range such as "1-50", a name with or without
            its number; several are parts of a string, with commas, or a list.

    Raises:
        UsageError: a number that does not exist, a species listed twice, or none. Names are not known here yet.
    """
    if species is None:
        return list(range(1, SPECIES + 1))
    items = [species] if isinstance(species, (str, int)) else list(species)
    given = ",".join(map(str, items))
    chosen: list[int | str] = []
    for piece in given.split(","):
        chosen += _numbers_or_name(piece.strip(), given)
    seen: set[int | str] = set()
    for item in chosen:
        if item in seen:
            raise _listed_twice(item)
        seen.add(item)
    return chosen


def _numbers_or_name(piece: str, given: str) -> list[int | str]:
    if not piece:
        where = f"data.species={given!r} names no species" + (" between two commas or at an end" if given.strip(" ,") else "")
        raise UsageError(f"{where}. Way out: numbers, ranges or names (data.species=1-50), or null for all.")
    numbers = re.fullmatch(r"([0-9]+)(?:\s*-\s*([0-9]+))?", piece)
    if numbers is None:
        return [piece]
    first, last = int(numbers[1]), int(numbers[2] or numbers[1])
    if not 1 <= first <= last <= SPECIES:
        raise UsageError(
            f"data.species={given!r}: {piece} does not exist. Way out: numbers from 1 to {SPECIES}, ranges from the lower to "
            "the higher."
        )
    return list(range(first, last + 1))


def _listed_twice(item: int | str) -> UsageError:
    return UsageError(f"data.species lists {item} twice. Way out: list each species once.")


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers in short: "1-3,7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _choosing(numbers: Iterable[int]) -> str:
    """The setting that chooses species, as one writes it on the command line."""
    text = ranges(numbers)
    return f"'data.species=[{text}]'" if "," in text else f"data.species={text}"


def _resolved(chosen: list[int | str], classes: dict[int, str], root: Path) -> list[int]:
    """Numbers of the chosen species in ascending order."""
    known: dict[int | str, int] = {}
    for number, name in classes.items():
        known |= {number: number, name: number, name.partition(".")[2]: number}
    numbers: list[int] = []
    for item in chosen:
        if item not in known:
            near = difflib.get_close_matches(str(item), [name for name in known if isinstance(name, str)], n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"{_choosing(classes)} is all that there is."
            raise UsageError(f"data.species: {item} does not exist in {(root / 'classes.txt').absolute()}. Way out: {hint}")
        if known[item] in numbers:
            raise _listed_twice(classes[known[item]])
        numbers.append(known[item])
    return sorted(numbers)


# The folder


def prepare(root: str | Path | None) -> Path:
    """Makes sure that CUB's text files are there.

    Args:
        root: folder that holds ``images.txt``. Nothing is downloaded into a folder that the user named. None:
            ``data/CUB_200_2011`` in the current folder, which is downloaded if it is not there.

    Returns:
        The root.

    Raises:
        UsageError: a text file is missing, or the archive cannot be downloaded.
    """
    folder = Path(root if root is not None else DEFAULT_ROOT).expanduser()
    if root is None and not folder.exists():
        download(folder.parent)
    missing = [text for text in TEXTS if not (folder / text).is_file()]
    if missing:
        raise UsageError(
            f"CUB is incomplete: {folder.absolute()} lacks {', '.join(missing)}.\nWay out: {_get_whole()}."
            + rather(folder, "images.txt")
        )
    return folder


def _get_whole() -> str:
    return (
        "name the folder that holds images.txt of CUB-200-2011 as its archive has it (data.root=FOLDER); or leave data.root "
        f"out, with no folder {DEFAULT_ROOT} there, to have all downloaded"
    )


def download(folder: Path, url: str = URL, md5: str = MD5) -> None:
    """Downloads and unpacks the official archive into ``folder/CUB_200_2011``, see :func:`.download.fetch`.

    Raises:
        UsageError: the server cannot be reached or breaks off, the archive is damaged or unsafe, or the disk is full.
    """
    otherwise = "unpack the archive elsewhere and name the folder that holds images.txt (data.root=FOLDER)"
    fetch(Archive("CUB", url, DEFAULT_ROOT.name, "images.txt", otherwise, f"md5:{md5}"), folder)


def check_images(birds: Birds) -> None:
    """Makes sure that each image has its file.

    Raises:
        UsageError: some are absent; it tells how many, and which of the species are complete.
    """
    folders = {file.partition("/")[0] for file in birds.files}
    there = {f"{folder}/{name}" for folder in folders for name in _names_in(birds.root / "images" / folder)}
    absent = np.array([file not in there for file in birds.files])
    if not absent.any():
        return
    incomplete = set(birds.labels[absent].tolist())
    complete = [number for label, number in enumerate(birds.numbers) if label not in incomplete]
    some = [file for file, is_absent in zip(birds.files, absent) if is_absent][:3]
    raise UsageError(
        f"CUB is incomplete: {(birds.root / 'images').absolute()} lacks {absent.sum():,} of the {len(absent):,} images of the "
        f"chosen species, among them {', '.join(some)}. "
        + (f"Complete are the species {ranges(complete)}.\n" if complete else "None of these species is complete.\n")
        + (f"Way out: do with these ({_choosing(complete)}); or " if complete else "Way out: ")
        + f"{_get_whole()}."
    )


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


# What the text files say


def read_birds(root: Path, chosen: list[int | str]) -> Birds:
    """Reads which images there are of the chosen species (see :func:`selection`), and what they are for.

    Raises:
        UsageError: a species that does not exist or is listed twice; a text file that is missing, has a line that cannot be
            read, or does not fit the others: the error names file and line.
    """
    classes: dict[int, str] = {}
    for line, (number, name) in enumerate(_rows(root, "classes.txt"), 1):
        if int(number) != line or int(name.partition(".")[0]) != line:
            raise _broken(root, "classes.txt", line, f"species {number} {name} stands where species {line} should")
        classes[line] = name
    rows = _rows(root, "images.txt")
    listed = np.array([int(number) for number, _, _ in rows])
    first = dict(zip(listed[::-1].tolist(), range(len(listed), 0, -1)))
    for line, number in enumerate(listed.tolist(), 1):
        if first[number] != line:
            raise _broken(root, "images.txt", line, f"image {number} stands in line {first[number]} already")
    species = []
    for line, (label, (_, folder, _)) in enumerate(zip(_of_images(root, "image_class_labels.txt", listed), rows), 1):
        if classes.get(int(label[0])) != folder:
            name = classes.get(int(label[0]), "not in classes.txt")
            reason = f"species {label[0]} is {name}, but images.txt has the image in {folder} (species as in classes.txt)"
            raise _broken(root, "image_class_labels.txt", line, reason)
        species.append(int(label[0]))
    training = np.array([use == "1" for (use,) in _of_images(root, "train_test_split.txt", listed)])

    numbers = _resolved(chosen, classes, root)
    chosen_rows = np.flatnonzero(np.isin(species, numbers))
    return Birds(
        root,
        listed[chosen_rows],
        ["/".join(rows[row][1:]) for row in chosen_rows],
        np.searchsorted(numbers, np.array(species)[chosen_rows]),
        training[chosen_rows],
        numbers,
        [classes[number].partition(".")[2] for number in numbers],
        chosen_rows,
        listed,
    )


def read_boxes(birds: Birds) -> np.ndarray:
    """The box around each bird, ``(N, 4)`` float64: left, top, width and height in pixels.

    Raises:
        UsageError: the file is missing, has a line that cannot be read, or does not fit the others.
    """
    return np.array(_of_images(birds.root, "bounding_boxes.txt", birds.listed), dtype=np.float64)[birds.rows]


def read_parts(birds: Birds) -> np.ndarray:
    """Where each bird's parts are, ``(N, 15, 3)`` float64: x and y in pixels, and 1 if the part is to be seen, else 0.

    Raises:
        UsageError: the file is missing, has a line that cannot be read, or does not fit the others.
    """
    n = len(part_names(birds.root))
    rows = _of_images(birds.root, "parts/part_locs.txt", birds.listed, n, f"images.txt, with {n} parts each as in parts.txt,")
    for line, row in enumerate(rows, 1):
        if int(row[0]) != (line - 1) % n + 1:
            raise _broken(birds.root, "parts/part_locs.txt", line, f"part {row[0]} stands where {(line - 1) % n + 1} should")
    return np.array(rows, dtype=np.float64).reshape(-1, n, 4)[birds.rows, :, 1:]


def part_names(root: Path) -> list[str]:
    """The names of the parts, in the order of their numbers.

    Raises:
        UsageError: the file is missing or has a line that cannot be read.
    """
    names = []
    for line, (number, name) in enumerate(_rows(root, "parts/parts.txt"), 1):
        if int(number) != line:
            raise _broken(root, "parts/parts.txt", line, f"part {number} stands where part {line} should")
        names.append(name)
    return names


def _rows(root: Path, text: str) -> list[tuple[str, ...]]:
    """The fields of each line of a text file."""
    pattern, form = _LINES[text]
    try:
        content = (root / text).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"CUB's {(root / text).absolute()} cannot be read: {error}.\nWay out: {_get_whole()}.") from error
    if not content:
        raise _broken(root, text, 1, "the file is empty")
    fields = re.compile(pattern).fullmatch
    rows = []
    for line, found in enumerate(content.removesuffix("\n").split("\n"), 1):
        match = fields(found)
        if match is None:
            raise _broken(root, text, line, f"{found[:80]!r} is not {form}")
        rows.append(match.groups())
    return rows


def _of_images(root: Path, text: str, images: np.ndarray, each: int = 1, source: str = "images.txt") -> list[tuple[str, ...]]:
    """The fields, but for the image's number, of a text file with so many lines for each image of ``images.txt``.

    ``source`` says in errors where the images and the number of lines are from.
    """
    rows = _rows(root, text)
    expected = np.repeat(images, each).tolist()
    for line, (row, number) in enumerate(zip(rows, expected), 1):
        if int(row[0]) != number:
            raise _broken(root, text, line, f"image {row[0]} stands where {source} has image {number}")
    if len(rows) != len(expected):
        line = min(len(rows), len(expected)) + 1
        reason = "the file ends before it" if len(rows) < len(expected) else "the file goes on"
        raise _broken(root, text, line, f"{reason}, but the {len(images):,} images of {source} take {len(expected):,} lines")
    return [row[1:] for row in rows]


def _broken(root: Path, text: str, line: int, reason: str) -> UsageError:
    return UsageError(f"CUB is damaged: {(root / text).absolute()}, line {line}: {reason}.\nWay out: {_get_whole()}.")
