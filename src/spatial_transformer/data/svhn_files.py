"""Where SVHN's full numbers (format 1) come from: a given folder or the official download; and what their boxes say.

A part of the data set ("train", "test", "extra") is a folder of ``N.png`` files with a ``digitStruct.mat``, which names the
images and gives a box and a label for each digit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5r, h5s, h5t

from ..errors import UsageError
from ..files import rather
from .download import Archive, fetch

DEFAULT_ROOT = Path("data") / "SVHN"
URL = "http://ufldl.stanford.edu/housenumbers"
SHA256 = {
    "train": "4b17bb33b6cd8f963493168f80143da956f28ec406cc12f8e5745a9f91a51898",
    "test": "57ac9ceb530e4aa85b55d991be8fc49c695b3d71c6f6a88afea86549efde7fb5",
}
"""Of the archives, as docTR proves them; its authors give none, and nobody one of "extra"."""
STRUCT = "digitStruct.mat"
_FIELDS = (b"left", b"top", b"width", b"height", b"label")


class Annotation(NamedTuple):
    """What ``digitStruct.mat`` says of one image."""

    name: str
    """File name of the image."""
    boxes: np.ndarray
    """``(n, 4)`` float64: left, top, width and height of each digit in pixels, in the order of the file."""
    labels: tuple[int, ...]
    """The digits, 0 to 9."""


def prepare(root: str | Path | None, extra: bool | None) -> list[Path]:
    """Makes sure that the parts of SVHN are there.

    Args:
        root: folder that holds ``train``, ``test`` and, if wanted, ``extra``. Nothing is downloaded into a folder that the
            user named. None: ``data/SVHN`` in the current folder, where missing parts are downloaded.
        extra: whether the extra training images are wanted. None: if they are there; all that can be downloaded is.

    Returns:
        The folders of the parts: train, test and, where used, extra.

    Raises:
        UsageError: a part is missing, or cannot be downloaded.
    """
    folder = Path(root if root is not None else DEFAULT_ROOT).expanduser()
    if root is None:
        wanted = ["train", "test"] + ["extra"] * (extra is not False)
        for part in wanted:
            if not (folder / part / STRUCT).is_file():
                download(part, folder)
        return [folder / part for part in wanted]
    wanted = ["train", "test"] + ["extra"] * (extra is True or (extra is None and (folder / "extra").is_dir()))
    missing = [f"{part}/{STRUCT}" for part in wanted if not (folder / part / STRUCT).is_file()]
    if missing:
        raise UsageError(
            f"SVHN is incomplete: {folder.absolute()} lacks {', '.join(missing)}.\nWay out: give the folder that holds train/ "
            "and test/ of the full numbers (format 1), unpacked (data.root=FOLDER); data.extra=false does without extra/; or "
            "leave data.root out to have all downloaded." + rather(folder, f"train/{STRUCT}")
        )
    return [folder / part for part in wanted]


# What the boxes say


def count_annotations(folder: Path) -> int:
    """Number of images that a part's ``digitStruct.mat`` lists.

    Raises:
        UsageError: the file is missing or broken.
    """
    with _opened(folder) as file:
        return len(_column(file, "name", folder))


def read_annotations(folder: Path, entries: range | None = None) -> list[Annotation]:
    """What a part's ``digitStruct.mat`` says of its images, in its order.

    Args:
        folder: folder of the part.
        entries: which entries to read, counted from 0; None reads all.

    Raises:
        UsageError: the file is missing or broken, or an entry cannot be read; it is named with its index.
    """
    with _opened(folder) as file:
        names, boxes = (_column(file, column, folder) for column in ("name", "bbox"))
        if len(names) != len(boxes):
            raise _broken(folder, f"it has {len(names):,} names but {len(boxes):,} groups of boxes")
        annotations = []
        for i in range(len(names)) if entries is None else entries:
            try:
                annotations.append(_entry(file.id, names[i], boxes[i]))
            except Exception as error:  # HDF5 can be broken in as many ways as h5py has errors
                raise _broken(folder, f"entry {i} cannot be read: {error}") from error
        return annotations


def _opened(folder: Path) -> h5py.File:
    if not (folder / STRUCT).is_file():
        raise UsageError(
            f"SVHN is incomplete: {folder.absolute()} lacks {STRUCT}.\nWay out: unpack the archive of the full numbers (format "
            "1) anew."
        )
    try:
        return h5py.File(folder / STRUCT, "r", locking="best-effort")  # not every network's file system has locks
    except OSError as error:
        raise _broken(folder, str(error)) from error


def _broken(folder: Path, reason: str) -> UsageError:
    return UsageError(
        f"SVHN is damaged: {(folder / STRUCT).absolute()}: {reason}.\nWay out: unpack the archive of the full numbers (format "
        "1) anew, or name another folder (data.root=FOLDER)."
    )


def _column(file: h5py.File, column: str, folder: Path) -> np.ndarray:
    """The references of ``digitStruct/name`` or ``digitStruct/bbox``."""
    try:
        references = file["digitStruct"][column][()].ravel()
    except (KeyError, AttributeError, TypeError, OSError) as error:
        raise _broken(folder, f"digitStruct/{column} cannot be read: {error}") from error
    if references.dtype != h5py.ref_dtype:
        raise _broken(folder, f"digitStruct/{column} does not hold references")
    return references


def _entry(file: h5py.h5f.FileID, name: h5py.Reference, boxes: h5py.Reference) -> Annotation:
    # h5py's low level: its high level takes several times as long, and there are 200,000 extra images.
    file_name = "".join(map(chr, _array(h5r.dereference(name, file), np.uint16)))
    if not file_name or Path(file_name).name != file_name:
        raise ValueError(f"{file_name!r} is not the name of a file")
    group = h5r.dereference(boxes, file)
    left, top, width, height, label = (_numbers(file, h5d.open(group, field)) for field in _FIELDS)
    values = np.array((left, top, width, height)).T
    if any(value not in range(1, 11) for value in label):
        raise ValueError(f"its labels are {label}, not numbers from 1 to 10")
    if values.shape != (len(label), 4):
        raise ValueError("its digits have unequal numbers of coordinates")
    return Annotation(file_name, values, tuple(int(value) % 10 for value in label))  # label 10 is the digit 0


def _numbers(file: h5py.h5f.FileID, dataset: h5d.DatasetID) -> list[float]:
    """The value of each digit: as it is in an image of one digit, through references in the others."""
    if dataset.get_type().get_class() != h5t.REFERENCE:
        return _array(dataset, np.float64).tolist()
    numbers = []
    for reference in _array(dataset, h5py.ref_dtype):
        (number,) = _array(h5r.dereference(reference, file), np.float64)
        numbers.append(float(number))
    return numbers


def _array(dataset: h5d.DatasetID, dtype: np.dtype | type) -> np.ndarray:
    values = np.empty(dataset.shape, dtype)
    dataset.read(h5s.ALL, h5s.ALL, values)
    return values.ravel()


# The download


def download(part: str, folder: Path, url: str = URL) -> None:
    """Downloads and unpacks one of the official archives into ``folder/part``, see :func:`.download.fetch`.

    The address has no encryption: what came is proved by its checksum where one is known (:data:`SHA256`).

    Args:
        part: "train", "test" or "extra".
        folder: where the folder of the part is to be.
        url: where the archives are.

    Raises:
        UsageError: the server cannot be reached or breaks off, the archive is damaged or unsafe, or the disk is full.
    """
    otherwise = (
        "unpack the archives of the full numbers (format 1) elsewhere and name the folder that holds train/ and test/ "
        "(data.root=FOLDER)"
    )
    digest = f"sha256:{SHA256[part]}" if part in SHA256 else None
    fetch(Archive("SVHN", f"{url}/{part}.tar.gz", part, STRUCT, otherwise, digest), folder)


def missing_images(folder: Path, annotations: Sequence[Annotation]) -> list[str]:
    """Names of the images that ``digitStruct.mat`` lists but the folder lacks."""
    there = set(os.listdir(folder))
    return [annotation.name for annotation in annotations if annotation.name not in there]
