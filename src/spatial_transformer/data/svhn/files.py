"""SVHN's full numbers (format 1): a given directory or the official download, and their boxes.

Each part ("train", "test", "extra") is a directory of images and a ``digitStruct.mat``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5r, h5s, h5t

from ...utils.directories import check_files
from ...utils.download import download_archive
from ...utils.errors import UsageError
from ..io.roots import find_dataset, find_root

URL = "http://ufldl.stanford.edu/housenumbers"
SHA256 = {
    "train": "4b17bb33b6cd8f963493168f80143da956f28ec406cc12f8e5745a9f91a51898",
    "test": "57ac9ceb530e4aa85b55d991be8fc49c695b3d71c6f6a88afea86549efde7fb5",
}
"""Of the archives, as in docTR. The authors publish none; that of "extra" is not known."""
STRUCT = "digitStruct.mat"
_FIELDS = (b"left", b"top", b"width", b"height", b"label")


class Annotation(NamedTuple):
    """One image in ``digitStruct.mat``."""

    name: str  # file name of the image
    boxes: np.ndarray  # (n, 4) float64: left, top, width and height of each digit in pixels
    labels: tuple[int, ...]  # the digits, 0 to 9, in the order of the boxes


def prepare(root: str | Path | None, extra: bool | None) -> list[Path]:
    """Check that train, test and, if wanted, extra exist, and return their directories.

    Args:
        root: directory of SVHN, or of all data sets. None is ``$STN_DATA``. Without that, missing
            parts are downloaded to ``data/SVHN``.
        extra: use the extra images. None uses them if they exist, and if SVHN is downloaded.

    Raises:
        UsageError: a part is missing, or its download failed.
    """
    given = find_root(root)
    directory = find_dataset(given, "SVHN", f"train/{STRUCT}")
    if extra is None:
        extra = given is None or (directory / "extra").is_dir()
    parts = ["train", "test", "extra"] if extra else ["train", "test"]
    for part in parts if given is None else ():
        if not (directory / part / STRUCT).is_file():
            known_hash = f"sha256:{SHA256[part]}" if part in SHA256 else None
            download_archive(f"{URL}/{part}.tar.gz", directory / part, STRUCT, known_hash)
    check_files("SVHN", directory, [f"{part}/{STRUCT}" for part in parts])
    return [directory / part for part in parts]


def count_annotations(part: Path) -> int:
    """Return the number of images in a part's ``digitStruct.mat``."""
    with _open(part) as file:
        return len(file["digitStruct"]["name"])


def read_annotations(part: Path, entries: slice = slice(None)) -> list[Annotation]:
    """Read some entries of a part's ``digitStruct.mat``.

    Raises:
        UsageError: the file is damaged.
    """
    with _open(part) as file:
        columns = (file["digitStruct"][column][entries].ravel() for column in ("name", "bbox"))
        return [_read_entry(file.id, name, boxes) for name, boxes in zip(*columns, strict=True)]


@contextmanager
def _open(part: Path) -> Iterator[h5py.File]:
    path = part / STRUCT
    try:  # network file systems may not lock
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except Exception as error:  # HDF5 raises any of h5py's errors
        raise UsageError(
            f"SVHN is damaged: {path.absolute()}: {error}.\n"
            "Unpack the archive of the full numbers (format 1) again."
        ) from error


def _read_entry(file: h5py.h5f.FileID, name: h5py.Reference, boxes: h5py.Reference) -> Annotation:
    # h5py's low-level interface is several times faster, and there are 200,000 extra images.
    file_name = "".join(map(chr, _read_array(h5r.dereference(name, file), np.uint16)))
    group = h5r.dereference(boxes, file)
    columns = [_read_numbers(file, h5d.open(group, field)) for field in _FIELDS]
    values = np.array(columns).T  # (n, 5); of unequal columns an error or an object array
    labels = values[:, 4].tolist()
    if any(label not in range(1, 11) for label in labels):
        raise ValueError(f"labels must be integers from 1 to 10, got {labels}")
    return Annotation(file_name, values[:, :4], tuple(int(label) % 10 for label in labels))


def _read_numbers(file: h5py.h5f.FileID, dataset: h5d.DatasetID) -> list[float]:
    """Read one value per digit: a plain number in an image of one digit, else references."""
    if dataset.get_type().get_class() != h5t.REFERENCE:
        return _read_array(dataset, np.float64).tolist()
    references = _read_array(dataset, h5py.ref_dtype)
    return [_read_array(h5r.dereference(one, file), np.float64).item() for one in references]


def _read_array(dataset: h5d.DatasetID, dtype: np.dtype | type) -> np.ndarray:
    values = np.empty(dataset.shape, dtype)
    dataset.read(h5s.ALL, h5s.ALL, values)
    return values.ravel()
