"""Crops of SVHN's numbers, made once and kept as memory maps.

The crop of 64 x 64 pixels is Goodfellow's, which the paper takes over: the box around all digits, enlarged by 30 % in each
direction, its shape not kept. For 128 x 128 the paper says only that it is looser; ours is that box doubled about its centre,
so that the digits are as many pixels large as at 64. Where a crop leaves the image, the pixels at its edge go on (ours).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import UsageError
from .caching import Cache, cache_folders, mapped, npy_header, open_cache, processes, room_for, say
from .decoding import decoded
from .svhn_files import STRUCT, Annotation, count_annotations, missing_images, read_annotations

ENLARGEMENT = {64: 1.3, 128: 2.6}
"""Sides of the crop over those of the box around all digits, by size of the crop in pixels."""
POSITIONS = 5
NO_DIGIT = 10
"""Label of a position after the last digit."""
TOO_LONG = f"for more than {POSITIONS} digits"
NO_BOX = "for a box without area or away from the image"
UNREADABLE = "for a file that cannot be decoded"

_VERSION = 1  # raise it when crops come out differently: caches are then made anew
_CHUNK = 256  # images to a piece of work: 12 MB of crops at most
_FEW = 8192  # images: done alone in the time that other processes need to start
_FARTHEST = 10  # times the image's longer side: a box of a larger side is a mistake, and would take memory without end


class Crops(NamedTuple):
    """The crops of one part of SVHN."""

    images: np.ndarray
    """``(N, 3, size, size)`` uint8, a read-only memory map."""
    labels: np.ndarray
    """``(N, 5)`` uint8: the digits from left to right, then 10 for "no digit"."""
    left_out: dict[str, list[str]]
    """Why images are left out, and the names of those."""


def open_crops(source: Path, size: int, cache: str | Path | None = None, workers: int | None = None) -> Crops:
    """Opens the crops of a part of SVHN; makes them first where there are none yet, or none that fit.

    Args:
        source: folder of the part, with its images and ``digitStruct.mat``.
        size: height and width of a crop in pixels, 64 or 128.
        cache: folder for the crops. None: ``cache`` beside the part, or ``~/.cache/spatial_transformer`` where that cannot be
            written to.
        workers: processes that make crops; None is one for each core, 16 at most.

    Raises:
        UsageError: the source is missing, incomplete or damaged, or the crops cannot be written.
    """
    cache_of_part = Cache(
        "SVHN",
        "crops",
        source,
        f"{source.name}-{size}",
        _settings(source, size),
        partial(_read, size),
        lambda folder: _build(source, size, workers, folder),
    )
    return open_cache(cache_of_part, cache_folders(source.parent, cache, "svhn"))


def _settings(source: Path, size: int) -> dict:
    """What the crops depend on. The source's path is not among it: a copy that keeps times needs no crops of its own."""
    if not (source / STRUCT).is_file():
        raise UsageError(f"SVHN is incomplete: {source.absolute()} lacks {STRUCT}.\nWay out: unpack its archive anew.")
    stat = (source / STRUCT).stat()
    return {
        "version": _VERSION,
        "size": size,
        "enlargement": ENLARGEMENT[size],
        "source bytes": stat.st_size,
        "source time": stat.st_mtime_ns,
    }


def _read(size: int, folder: Path, meta: dict) -> Crops:
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    n = meta["images"]
    if images.shape != (n, 3, size, size) or labels.shape != (n, POSITIONS):
        raise ValueError("its parts do not fit together")
    if images.dtype != np.uint8 or labels.dtype != np.uint8:
        raise ValueError("its numbers are not bytes")
    return Crops(images, labels, meta["left out"])


# Making the crops


def _build(source: Path, size: int, workers: int | None, folder: Path) -> dict:
    """Writes the files of a cache; returns how many images are in it, and the names of those left out, by reason."""
    n = count_annotations(source)
    with room_for(n * (3 * size**2 + POSITIONS), folder), processes(workers, n, _FEW, f"{__package__}.svhn") as pool:
        annotations = _all_annotations(source, n, pool)
        left_out = _write(source, size, annotations, folder, pool)
    _report(source, left_out, n)
    return {"images": n - sum(map(len, left_out.values())), "left out": left_out}


def _report(source: Path, left_out: dict[str, list[str]], n: int) -> None:
    for reason, names in left_out.items():
        if names:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            say("SVHN", f"{len(names):,} of {n:,} images of {source.name} left out, {reason}: {some}")


def _all_annotations(source: Path, n: int, pool: ProcessPoolExecutor | None) -> list[Annotation]:
    chunks = [range(n)[start : start + _CHUNK] for start in range(0, n, _CHUNK)]
    read = partial(read_annotations, source)
    annotations: list[Annotation] = []
    for part in mapped(read, chunks, pool, f"SVHN {source.name}: reading boxes"):
        annotations += part
    missing = missing_images(source, annotations)
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UsageError(
            f"SVHN is incomplete: {source.absolute()} lacks {len(missing):,} of the {n:,} images that {STRUCT} lists: {some}.\n"
            "Way out: unpack the archive of the full numbers (format 1) anew."
        )
    return annotations


def _write(
    source: Path, size: int, annotations: Sequence[Annotation], folder: Path, pool: ProcessPoolExecutor | None
) -> dict[str, list[str]]:
    """Writes crops and labels; returns the names of the images left out, by reason."""
    left_out: dict[str, list[str]] = {reason: [] for reason in (TOO_LONG, NO_BOX, UNREADABLE)}
    labels = []
    chunks = [annotations[start : start + _CHUNK] for start in range(0, len(annotations), _CHUNK)]
    cropped = mapped(partial(_crop_all, source, size), chunks, pool, f"SVHN {source.name}: {size} px crops")
    with (folder / "images.npy").open("wb") as file:
        file.write(npy_header((0, 3, size, size)))
        for results in cropped:
            for annotation, crop in results:
                if isinstance(crop, str):
                    left_out[crop].append(annotation.name)
                else:
                    file.write(crop)
                    labels.append(_row(annotation))
        file.seek(0)
        file.write(npy_header((len(labels), 3, size, size)))
        file.flush()
        os.fsync(file.fileno())
    if not labels:
        raise UsageError(f"SVHN: none of the images of {source.absolute()} can be used.\nWay out: unpack its archive anew.")
    np.save(folder / "labels.npy", np.array(labels, dtype=np.uint8))
    return left_out


def _row(annotation: Annotation) -> list[int]:
    from_left = np.argsort(annotation.boxes[:, 0], kind="stable")
    digits = [annotation.labels[i] for i in from_left]
    return digits + [NO_DIGIT] * (POSITIONS - len(digits))


def _crop_all(source: Path, size: int, annotations: Sequence[Annotation]) -> list[tuple[Annotation, bytes | str]]:
    """Each image's crop as bytes (3, size, size), or why it is left out."""
    return [(annotation, _crop(source, size, annotation)) for annotation in annotations]


def _crop(source: Path, size: int, annotation: Annotation) -> bytes | str:
    if len(annotation.labels) > POSITIONS:
        return TOO_LONG
    try:
        content = (source / annotation.name).read_bytes()
    except OSError as error:  # a failing disk is no broken image
        raise UsageError(f"SVHN's image cannot be read: {error}.\nWay out: unpack its archive anew.") from error
    try:
        image = decoded(content)
    except ValueError:
        return UNREADABLE
    box = union_box(annotation.boxes)
    if not _usable(box, image.size):
        return NO_BOX
    return crop(image, box, ENLARGEMENT[size], size).transpose(2, 0, 1).tobytes()


def union_box(boxes: np.ndarray) -> np.ndarray:
    """The box around boxes, ``(n, 4)`` of left, top, width and height: left, top, right and bottom, ``(4,)``."""
    if not len(boxes):
        return np.zeros(4)
    return np.concatenate([boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)])


def _usable(box: np.ndarray, image_size: tuple[int, int]) -> bool:
    (left, top, right, bottom), (width, height) = box, image_size
    sides = right - left, bottom - top
    if not np.isfinite(box).all() or min(sides) <= 0 or max(sides) > _FARTHEST * max(image_size):
        return False
    return left < width and right > 0 and top < height and bottom > 0


def crop(image: Image.Image, box: np.ndarray, enlargement: float, size: int) -> np.ndarray:
    """Cuts a box, enlarged about its centre, out of an image and resizes it, with antialiasing.

    Args:
        image: RGB image.
        box: left, top, right and bottom in pixels. It may stick out: the pixels at the image's edge go on there.
        enlargement: sides of what is cut out over those of the box.
        size: height and width of the result in pixels; the box's shape is not kept.

    Returns:
        ``(size, size, 3)`` uint8.
    """
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * enlargement
    low, high = centre - half, centre + half
    # The filter of a reduced image reaches beyond the box, by as many pixels as become one.
    reach = np.ceil(np.maximum(2 * half / size, 1)) + 1
    first, last = (np.floor(low) - reach).astype(int), (np.ceil(high) + reach).astype(int)
    columns, rows = (np.arange(a, b).clip(0, n - 1) for a, b, n in zip(first, last, image.size))
    around = Image.fromarray(np.asarray(image)[rows[:, None], columns])
    place = (low[0] - first[0], low[1] - first[1], high[0] - first[0], high[1] - first[1])
    return np.asarray(around.resize((size, size), Image.Resampling.BILINEAR, box=place))
