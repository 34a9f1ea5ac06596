"""The birds' images, resized once and kept on disk, so that decoding does not slow training."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..io.cache import cache_directories, open_cache
from ..io.image_files import read_image
from ..io.workers import map_in_processes
from .files import COLUMNS, Birds, read_boxes, read_parts

LONGEST = {224: 256, 448: 512}  # side of a resized image, by the size of the crop, in pixels (A.6)
_VERSION = 2  # to be raised when the format or the pixels change
_CHUNK = 16  # images per item of work


class Images(NamedTuple):
    """Images with their longest side at 256 or 512 pixels, in a read-only memory map."""

    pixels: np.ndarray  # (bytes,) uint8, one image after the other
    sizes: np.ndarray  # (N, 2) int64, width and height of each image
    originals: np.ndarray  # (N, 2) int64, width and height before it was resized
    starts: np.ndarray  # (N,) int64, where each image begins in pixels
    digest: str = ""  # of the names and sizes of the files, and of their labels and use

    def image(self, i: int) -> np.ndarray:
        """Return one image, ``(3, height, width)`` uint8, as a view of the memory map."""
        width, height = self.sizes[i]
        return self.pixels[self.starts[i] :][: 3 * width * height].reshape(3, height, width)


def open_images(
    birds: Birds, size: int, cache: str | Path | None = None, workers: int | None = None
) -> Images:
    """Open the resized images of birds. Make them first if they are not in the cache.

    ``size`` is the size of the crops to be cut from them in pixels, 224 or 448.
    """
    stats = {file: (birds.root / file).stat() for file in COLUMNS}
    settings = {"version": _VERSION, "longest side": LONGEST[size], "species": birds.numbers}
    settings |= {"texts": {file: [s.st_size, s.st_mtime_ns] for file, s in stats.items()}}
    return open_cache(
        f"{size}-{len(birds.numbers)}",
        settings,
        cache_directories(birds.root, cache, "cub"),
        partial(_write, birds, LONGEST[size], workers),
        partial(_read, LONGEST[size]),
    )


def resized_sizes(originals: np.ndarray, longest: int) -> np.ndarray:
    """Return widths and heights, ``(N, 2)``, of images after their longest side is resized."""
    scale = longest / originals.max(1, keepdims=True)
    return (originals * scale).round().astype(np.int64).clip(1)


def resize(image: Image.Image, longest: int) -> np.ndarray:
    """Resize the longest side of an RGB image, antialiased, to ``(3, height, width)`` uint8."""
    (width, height), *_ = resized_sizes(np.array([image.size]), longest).tolist()
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


def _read(longest: int, directory: Path, meta: dict) -> Images:
    originals = np.load(directory / "originals.npy")
    sizes = resized_sizes(originals, longest)
    ends = 3 * sizes.prod(1).cumsum()
    # Viewed as a plain array: slicing a memory map costs more than copying the slice.
    pixels = np.asarray(np.memmap(directory / "pixels.bin", np.uint8, "r", shape=(ends[-1],)))
    return Images(pixels, sizes, originals, np.concatenate([[0], ends[:-1]]), meta["digest"])


def _write(birds: Birds, longest: int, workers: int | None, directory: Path) -> dict:
    read_boxes(birds), read_parts(birds)  # needed later: report damage now
    paths = [birds.root / "images" / file for file in birds.files]
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    uses = birds.files, birds.labels.tolist(), birds.training.tolist()
    digest = hashlib.sha256(repr(uses).encode())
    originals = []
    resize_all = partial(_resize_files, longest)
    with (directory / "pixels.bin").open("wb") as file:
        for images in map_in_processes(resize_all, chunks, workers, f"CUB: {longest} px images"):
            for pixels, original, file_size in images:
                file.write(pixels)
                originals.append(original)
                digest.update(repr(file_size).encode())
    np.save(directory / "originals.npy", np.array(originals, dtype=np.int64))
    return {"digest": digest.hexdigest()}


def _resize_files(longest: int, paths: list[Path]) -> list[tuple[bytes, tuple[int, int], int]]:
    """Return each file's resized pixels, the size of its image and the size of the file."""
    results = []
    for path in paths:
        image = read_image(path)
        results.append((resize(image, longest).tobytes(), image.size, path.stat().st_size))
    return results
