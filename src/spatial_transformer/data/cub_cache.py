"""The birds' images, resized once and kept as a memory map, so that decoding never slows training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import UsageError
from .caching import Cache, cache_folders, mapped, npy_header, open_cache, processes, room_for
from .cub_files import TEXTS, Birds, check_images, read_boxes, read_parts
from .decoding import BROKEN, FORMATS, decoded

LONGEST = {224: 256, 448: 512}
"""Longest side of an image, by size of the crop, in pixels (A.6)."""

_VERSION = 1  # raise it when images come out differently: caches are then made anew
_CHUNK = 16  # images to a piece of work: 12 MB at most
_FEW = 256  # images: done alone in the time that other processes need to start


class Pictures(NamedTuple):
    """Images with their longest side at 256 or 512 pixels, one after the other."""

    pixels: np.ndarray
    """``(bytes,)`` uint8, a read-only memory map: one image after the other."""
    sizes: np.ndarray
    """``(N, 2)`` int64: width and height of each image."""
    originals: np.ndarray
    """``(N, 2)`` int64: width and height before it was resized."""
    starts: np.ndarray
    """``(N,)`` int64: where each image begins in ``pixels``."""

    def image(self, i: int) -> np.ndarray:
        """One image, ``(3, height, width)`` uint8, of which nothing is read yet."""
        width, height = self.sizes[i]
        return self.pixels[self.starts[i] :][: 3 * width * height].reshape(3, height, width)


def open_pictures(birds: Birds, size: int, cache: str | Path | None = None, workers: int | None = None) -> Pictures:
    """Opens the resized images of birds; makes them first where there are none yet, or none that fit.

    The text files are all read and proved before images are made, and known by their times and lengths from then on.

    Args:
        birds: whose images.
        size: of the crops that will be cut out of them in pixels, 224 or 448.
        cache: folder for the images. None: ``cache`` in the root, or ``~/.cache/spatial_transformer`` where that cannot be
            written to.
        workers: processes that make them; None is one for each core, 16 at most.

    Raises:
        UsageError: an image is absent or cannot be decoded, a text file is damaged, or the images cannot be written.
    """
    species = hashlib.sha256(repr(birds.numbers).encode()).hexdigest()[:8]
    cache_of_birds = Cache(
        "CUB",
        "resized images",
        birds.root,
        f"{size}-{len(birds.numbers)}-{species}",
        _settings(birds, size),
        partial(_read, birds, size),
        lambda folder: _make(birds, size, workers, folder),
    )
    return open_cache(cache_of_birds, cache_folders(birds.root, cache, "cub"))


def _settings(birds: Birds, size: int) -> dict:
    """What the images depend on. The root's path is not among it: a copy that keeps times needs no images of its own."""
    stats = {text: (birds.root / text).stat() for text in TEXTS}
    return {
        "version": _VERSION,
        "longest side": LONGEST[size],
        "species": birds.numbers,
        "texts": {text: [stat.st_size, stat.st_mtime_ns] for text, stat in stats.items()},
    }


def _read(birds: Birds, size: int, folder: Path, meta: dict) -> Pictures:
    originals = np.load(folder / "originals.npy")
    if originals.shape != (len(birds.files), 2) or originals.dtype != np.int64:
        raise ValueError("it has not one size for each image")
    sizes = resized_sizes(originals, LONGEST[size])
    ends = 3 * sizes.prod(1).cumsum()
    # Viewed as a plain array: a memory map's own slices cost more than copying them.
    pixels = np.asarray(np.load(folder / "pixels.npy", mmap_mode="r"))
    if pixels.shape != (ends[-1],) or pixels.dtype != np.uint8:
        raise ValueError("its pixels and sizes do not fit together")
    return Pictures(pixels, sizes, originals, np.concatenate([[0], ends[:-1]]))


def resized_sizes(originals: np.ndarray, longest: int) -> np.ndarray:
    """Widths and heights, ``(N, 2)`` int64, of images of given ones when their longest side is resized."""
    return (originals * (longest / originals.max(1, keepdims=True))).round().astype(np.int64).clip(1)


# Making the images


def _make(birds: Birds, size: int, workers: int | None, folder: Path) -> dict:
    """Writes the files of a cache."""
    check_images(birds)
    read_boxes(birds)  # wanted much later, when it would be a pity to learn that they are damaged
    read_parts(birds)
    paths = [birds.root / "images" / file for file in birds.files]
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with processes(workers, len(paths), _FEW, f"{__package__}.cub") as pool:
        originals = np.concatenate(list(mapped(_sizes, chunks, pool, "CUB: reading sizes")))
        needed = int(3 * resized_sizes(originals, LONGEST[size]).prod(1).sum())
        with room_for(needed, folder):
            np.save(folder / "originals.npy", originals)
            with (folder / "pixels.npy").open("wb") as file:
                file.write(npy_header((needed,)))
                for pictures in mapped(partial(_resized, LONGEST[size]), chunks, pool, f"CUB: {LONGEST[size]} px images"):
                    file.write(pictures)
                file.flush()
                os.fsync(file.fileno())
    return {}


def _sizes(paths: Sequence[Path]) -> np.ndarray:
    """Widths and heights of image files, ``(n, 2)`` int64."""
    sizes = []
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as image:
                sizes.append(image.size)
        except BROKEN as error:
            raise _broken(path, error) from error
    return np.array(sizes, dtype=np.int64)


def _resized(longest: int, paths: Sequence[Path]) -> bytes:
    return b"".join(resized(path, longest).tobytes() for path in paths)


def resized(path: Path, longest: int) -> np.ndarray:
    """The image of a file with its longest side resized, antialiased, ``(3, height, width)`` uint8.

    Raises:
        UsageError: the file cannot be read or decoded as a whole.
    """
    try:
        image = decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error
    return shrunk(image, longest)


def shrunk(image: Image.Image, longest: int) -> np.ndarray:
    """An RGB image with its longest side resized, antialiased, ``(3, height, width)`` uint8."""
    (width, height), *_ = resized_sizes(np.array([image.size]), longest).tolist()
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _broken(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"CUB is damaged: the image {path.absolute()} cannot be decoded: {error}.\nWay out: unpack CUB-200-2011's archive "
        "anew, or choose other species (data.species=...)."
    )
