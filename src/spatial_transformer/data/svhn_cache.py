"""Crops of SVHN's numbers, made once and kept as memory maps.

The crop of 64 x 64 pixels is Goodfellow's, which the paper takes over: the box around all digits, enlarged by 30 % in each
direction, its shape not kept. For 128 x 128 the paper says only that it is looser; ours is that box doubled about its centre,
so that the digits are as many pixels large as at 64. Where a crop leaves the image, the pixels at its edge go on (ours).
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import struct
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import UsageError
from .svhn_files import STRUCT, Annotation, count_annotations, missing_images, read_annotations

ENLARGEMENT = {64: 1.3, 128: 2.6}
"""Sides of the crop over those of the box around all digits, by size of the crop in pixels."""
POSITIONS = 5
NO_DIGIT = 10
"""Label of a position after the last digit."""
TOO_LONG = f"for more than {POSITIONS} digits"
NO_BOX = "for a box without area or away from the image"
UNREADABLE = "for a file that cannot be decoded"
HOME_CACHE = Path("~/.cache/spatial_transformer")

_VERSION = 1  # raise it when crops come out differently: caches are then made anew
_CHUNK = 256  # images to a piece of work
_AHEAD = 48  # pieces done or under way; up to 0.6 GB of crops
_FEW = 8192  # images: done alone in the time that other processes need to start
_FARTHEST = 10  # times the image's longer side: a box of a larger side is a mistake, and would take memory without end
T = TypeVar("T")
R = TypeVar("R")


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
    settings = _settings(source, size)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{source.name}-{size}-{key}"
    folders = [Path(cache)] if cache is not None else [source.parent / "cache", HOME_CACHE]
    folders = [folder.expanduser() / "svhn" for folder in folders]
    for folder in folders:  # a cache that somebody else made serves, whether one could write there or not
        crops = _opened(folder / name, settings)
        if crops is not None:
            return crops
    writable = [folder for folder in folders if _is_writable(folder)]
    _build(source, size, settings, (writable or folders)[0] / name, workers or min(16, _cores()))
    crops = _opened((writable or folders)[0] / name, settings)
    assert crops is not None
    return crops


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


def _is_writable(folder: Path) -> bool:
    """Whether a folder, or the nearest above it that exists, can be written to, and is meant to be."""
    if not folder.exists():
        return _is_writable(folder.parent)
    # The system's superuser, which one is in many containers, could write anywhere: what is marked read-only is left alone.
    return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(text: str) -> None:
    print(f"SVHN: {text}", file=sys.stderr)


def _opened(folder: Path, settings: dict, tell: bool = True) -> Crops | None:
    """The crops in a folder; None where there are none that are whole."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
        n, size = meta["images"], settings["size"]
        if meta["settings"] != settings or images.shape != (n, 3, size, size) or labels.shape != (n, POSITIONS):
            raise ValueError("its parts do not fit together")
        if images.dtype != np.uint8 or labels.dtype != np.uint8:
            raise ValueError("its numbers are not bytes")
        return Crops(images, labels, meta["left out"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        if tell:
            _say(f"the cache {folder} is broken ({error}) and will be made anew")
        return None


# Making the crops


def _build(source: Path, size: int, settings: dict, target: Path, workers: int) -> None:
    """Into a folder beside the final one, which gets its name only when all is written."""
    needed = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=target.parent, prefix="incomplete-"))
        try:
            n = count_annotations(source)
            needed = n * (3 * size**2 + POSITIONS)
            if shutil.disk_usage(workplace).free < needed:  # better told now than after minutes
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _processes(workers, n) as pool:
                annotations = _all_annotations(source, n, pool)
                left_out = _write(source, size, settings, annotations, workplace, pool)
            stale = _stale(source, target)
            if stale:
                _say(f"{source.absolute()} has changed since its crops were made; they are replaced")
            for folder in stale:
                shutil.rmtree(folder, ignore_errors=True)
            _put(workplace, target, settings)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    except OSError as error:
        why = f"{needed:,} bytes are needed: " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UsageError(
            f"SVHN's crops cannot be written to {target.parent.absolute()}: {why}{error}.\nWay out: name a folder with room "
            "that can be written to (data.cache=FOLDER)."
        ) from error
    except BrokenProcessPool as error:
        raise UsageError(
            f"A process that made SVHN's crops of {source.absolute()} was ended from outside, most often for lack of memory.\n"
            "Way out: fewer processes (data.workers=1)."
        ) from error
    _report(source, left_out, n)


def _put(workplace: Path, target: Path, settings: dict) -> None:
    """Gives a whole cache its final place, unless another process has put the same there meanwhile."""
    if _opened(target, settings, tell=False) is None:
        if target.exists():
            shutil.rmtree(target)
        os.rename(workplace, target)


def _stale(source: Path, target: Path) -> list[Path]:
    """Crops of the same size that were made from an earlier state of the same source."""
    stale = []
    for folder in target.parent.glob(f"{target.name.rpartition('-')[0]}-*"):
        try:
            earlier = json.loads((folder / "meta.json").read_text())["source"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if earlier == str(source.resolve()) and folder != target:
            stale.append(folder)
    return stale


def _report(source: Path, left_out: dict[str, list[str]], n: int) -> None:
    for reason, names in left_out.items():
        if names:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            _say(f"{len(names):,} of {n:,} images of {source.name} left out, {reason}: {some}")


def _all_annotations(source: Path, n: int, pool: ProcessPoolExecutor | None) -> list[Annotation]:
    chunks = [range(n)[start : start + _CHUNK] for start in range(0, n, _CHUNK)]
    read = partial(read_annotations, source)
    annotations: list[Annotation] = []
    for part in _mapped(read, chunks, pool, f"SVHN {source.name}: reading boxes"):
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
    source: Path, size: int, settings: dict, annotations: Sequence[Annotation], folder: Path, pool: ProcessPoolExecutor | None
) -> dict[str, list[str]]:
    """Writes the three files of a cache; returns the names of the images left out, by reason."""
    left_out: dict[str, list[str]] = {reason: [] for reason in (TOO_LONG, NO_BOX, UNREADABLE)}
    labels = []
    chunks = [annotations[start : start + _CHUNK] for start in range(0, len(annotations), _CHUNK)]
    cropped = _mapped(partial(_crop_all, source, size), chunks, pool, f"SVHN {source.name}: {size} px crops")
    # Appended, not written through a memory map: a full disk is an error here and would be a crash there.
    with (folder / "images.npy").open("wb") as file:
        file.write(_header(0, size))
        for results in cropped:
            for annotation, crop in results:
                if isinstance(crop, str):
                    left_out[crop].append(annotation.name)
                else:
                    file.write(crop)
                    labels.append(_row(annotation))
        file.seek(0)
        file.write(_header(len(labels), size))
        file.flush()
        os.fsync(file.fileno())
    if not labels:
        raise UsageError(f"SVHN: none of the images of {source.absolute()} can be used.\nWay out: unpack its archive anew.")
    np.save(folder / "labels.npy", np.array(labels, dtype=np.uint8))
    meta = {"settings": settings, "source": str(source.resolve()), "images": len(labels), "left out": left_out}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return left_out


def _header(n: int, size: int) -> bytes:
    """The header of an .npy file of n crops: NumPy makes it as long for any n, so that files can grow."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, 3, size, size)})
    return file.getvalue()


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
        image = Image.open(BytesIO(content)).convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, Image.DecompressionBombError):
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


@contextmanager
def _processes(workers: int, images: int) -> Iterator[ProcessPoolExecutor | None]:
    """A pool of processes; None where one process is done with that many images before others have started."""
    if workers == 1 or images <= _FEW:
        yield None
        return
    # Not forked from here, where there may be threads and a GPU by now. A fork server imports what is slow to import once.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([f"{__package__}.svhn"])
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _mapped(function: Callable[[T], R], pieces: Sequence[T], pool: ProcessPoolExecutor | None, description: str) -> Iterator[R]:
    """Results of a function for pieces of work, in order, with a progress bar in a terminal."""
    results = map(function, pieces) if pool is None else _results(function, pieces, pool)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(results, len(pieces), description=description)


def _results(function: Callable[[T], R], pieces: Sequence[T], pool: ProcessPoolExecutor) -> Iterator[R]:
    waiting = iter(pieces)
    # No more than that ahead of what is taken: results must not pile up in memory.
    futures = deque(pool.submit(function, piece) for piece in islice(waiting, _AHEAD))
    while futures:
        yield futures.popleft().result()
        futures.extend(pool.submit(function, piece) for piece in islice(waiting, 1))
