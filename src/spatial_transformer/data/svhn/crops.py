"""Crops of SVHN's numbers or single digits, made once and kept on disk.

The crop of 64 x 64 pixels is Goodfellow's, as in the paper: the box around all digits, enlarged by
30 % in each direction, resized to a square. For 128 x 128 the paper only says that it is looser.
Here that box is doubled about its centre. Outside the image, its edge is repeated (both ours).
Single digits are cropped by their own boxes to 28 x 28, enlarged by 30 % too (ours).
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...utils.errors import UsageError
from ..io.cache import cache_directories, open_cache
from ..io.image_files import read_image
from ..io.workers import map_in_processes
from .files import STRUCT, Annotation, count_annotations, read_annotations

ENLARGEMENT = {64: 1.3, 128: 2.6}  # of the box around all digits, by the size of the crop
DIGIT_SIZE, _DIGIT_ENLARGEMENT = 28, 1.3  # of the crop of a single digit, and of its box
POSITIONS = 5
NO_DIGIT = 10  # label of a position after the last digit

_VERSION = 2  # to be raised when the format or the pixels change
_CHUNK = 64  # images per item of work
_MAX_BOX = 10  # times the image's longer side: a larger box is a mistake, and would fill the memory

logger = logging.getLogger(__name__)


class Crops(NamedTuple):
    """The crops of one part of SVHN."""

    images: np.ndarray  # (N, 3, size, size) uint8, a read-only memory map
    labels: np.ndarray  # uint8: (N, 1) digits; (N, 5) from the left, then 10 for "no digit"
    digest: str  # of the part's annotations and of the sizes of its files


def open_crops(
    part: Path, size: int, cache: str | Path | None = None, workers: int | None = None
) -> Crops:
    """Open the crops of a part of SVHN. Make them first if they are not in the cache.

    Args:
        part: directory of the part.
        size: of the crops in pixels: 64 or 128 for numbers, :data:`DIGIT_SIZE` for single digits.
        cache: directory of the cache, see :func:`~spatial_transformer.data.io.cache_directories`.
        workers: processes that make the crops. None is one per core, at most 16.

    Raises:
        UsageError: a file is damaged, no image can be used, or the cache cannot be written.
    """
    stat = (part / STRUCT).stat()
    enlargement = ENLARGEMENT.get(size, _DIGIT_ENLARGEMENT)
    settings = {"version": _VERSION, "size": size, "enlargement": enlargement}
    settings |= {"source bytes": stat.st_size, "source time": stat.st_mtime_ns}
    return open_cache(
        f"{part.name}-{size}",
        settings,
        cache_directories(part.parent, cache, "svhn"),
        partial(_write, part, size, workers),
        partial(_read, size),
    )


def _read(size: int, directory: Path, meta: dict) -> Crops:
    labels = np.load(directory / "labels.npy")
    shape = (len(labels), 3, size, size)
    images = np.memmap(directory / "images.bin", np.uint8, "r", shape=shape)
    return Crops(images, labels, meta["digest"])


def _write(part: Path, size: int, workers: int | None, directory: Path) -> dict:
    n = count_annotations(part)
    chunks = [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]
    labels = []
    excluded = []
    digest = hashlib.sha256()
    with (directory / "images.bin").open("wb") as images:
        crop_all = partial(_crop_entries, part, size)
        description = f"SVHN {part.name}: {size} px crops"
        for results in map_in_processes(crop_all, chunks, workers, description):
            for annotation, file_size, crops in results:
                row, boxes = _label_row(annotation), annotation.boxes.tolist()
                digest.update(repr((annotation.name, file_size, row, boxes)).encode())
                if not crops:
                    excluded.append(annotation.name)
                for label, pixels in crops:
                    images.write(pixels)
                    labels.append(label)
    if excluded:
        logger.warning(
            "SVHN: %d of %d images in %s are left out, as they have more than %d digits, or a box "
            "without area or outside of the image: %s",
            *(len(excluded), n, part.absolute(), POSITIONS, ", ".join(excluded)),
        )
    if not labels:
        raise UsageError(f"SVHN: {part.absolute()} must have at least one usable image, got 0.")
    np.save(directory / "labels.npy", np.array(labels, dtype=np.uint8))
    return {"digest": digest.hexdigest()}


def _label_row(annotation: Annotation) -> list[int]:
    from_left = np.argsort(annotation.boxes[:, 0], kind="stable")
    digits = [annotation.labels[i] for i in from_left]
    return digits + [NO_DIGIT] * (POSITIONS - len(digits))


def _crop_entries(
    part: Path, size: int, entries: slice
) -> list[tuple[Annotation, int, list[tuple[list[int], bytes]]]]:
    """Return annotation, file size, and the labels and pixels of the usable crops of each entry."""
    results = []
    for annotation in read_annotations(part, entries):
        path = part / annotation.name
        image = read_image(path)
        boxes, enlargement = annotation.boxes, ENLARGEMENT.get(size, _DIGIT_ENLARGEMENT)
        if size == DIGIT_SIZE:
            regions = [([label], boxes[n : n + 1]) for n, label in enumerate(annotation.labels)]
        else:
            regions = [(_label_row(annotation), boxes)] if 0 < len(boxes) <= POSITIONS else []
        crops = []
        for label, part_boxes in regions:
            box = union_box(part_boxes)
            if _is_usable(box, image.size):
                pixels = crop(image, box, enlargement, size).transpose(2, 0, 1).tobytes()
                crops.append((label, pixels))
        results.append((annotation, path.stat().st_size, crops))
    return results


def union_box(boxes: np.ndarray) -> np.ndarray:
    """Return left, top, right and bottom of the box around ``(n, 4)`` left, top, width, height."""
    return np.concatenate([boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)])


def _is_usable(box: np.ndarray, image_size: tuple[int, int]) -> bool:
    """Return whether a box has an area, is not far too large, and overlaps the image."""
    sides = box[2:] - box[:2]
    has_area = np.isfinite(box).all() and sides.min() > 0
    overlaps = (box[:2] < image_size).all() and (box[2:] > 0).all()
    return bool(has_area and overlaps and sides.max() <= _MAX_BOX * max(image_size))


def crop(image: Image.Image, box: np.ndarray, enlargement: float, size: int) -> np.ndarray:
    """Cut an enlarged box out of an RGB image and resize it, antialiased, to ``(size, size, 3)``.

    Args:
        image: outside of it, the pixels at its edge are repeated.
        box: left, top, right and bottom in pixels.
        enlargement: sides of the crop relative to the box, about its centre.
        size: height and width of the result in pixels. The aspect ratio is not kept.
    """
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * enlargement
    low, high = centre - half, centre + half
    # The filter of a reduced image reaches beyond the box, by as many pixels as become one.
    reach = np.ceil(np.maximum(2 * half / size, 1)) + 1
    first, last = (np.floor(low) - reach).astype(int), (np.ceil(high) + reach).astype(int)
    columns, rows = (np.arange(a, b).clip(0, n - 1) for a, b, n in zip(first, last, image.size))
    padded = Image.fromarray(np.asarray(image)[rows[:, None], columns])
    inner = tuple(np.concatenate([low - first, high - first]).tolist())
    return np.asarray(padded.resize((size, size), Image.Resampling.BILINEAR, box=inner))
