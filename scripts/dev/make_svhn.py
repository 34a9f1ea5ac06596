"""Makes synthetic house numbers of MNIST digits in the format of SVHN, for where SVHN itself is not at hand.

python scripts/dev/make_svhn.py FOLDER [--train N] [--test N] [--extra N]; then python train.py ... data.root=FOLDER.
A result on them is no result on SVHN.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from rich.console import Console
from rich.progress import track

from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.data.svhn.files import STRUCT, Annotation
from spatial_transformer.utils.directories import create_directory
from spatial_transformer.utils.errors import UsageError

PARTS = ("train", "test", "extra")
_LENGTHS = (
    0.16,
    0.50,
    0.24,
    0.07,
    0.03,
)  # of 1 to 5 digits: about SVHN's, with more of the long ones


def make(
    folder: Path,
    mnist_root: str | Path | None,
    sizes: dict[str, int],
    seed: int = 1,
) -> None:
    """Makes parts of synthetic numbers, with a progress bar in a terminal.

    The test part is made of MNIST's test digits, the others of its training digits.

    Args:
        folder: gets a folder for each part.
        mnist_root: folder that holds ``MNIST/raw``; None downloads to ``data/``.
        sizes: number of images of each part: "train", "test", "extra".
        seed: an image depends on it, its part and its number, and on nothing else.

    Raises:
        UsageError: a part is there already, has no images, or cannot be written; MNIST is missing or damaged.
    """
    root = mnist_files.prepare(mnist_root)
    for part, n in sizes.items():
        if n < 1:
            raise UsageError(f"The number of {part} images must be positive, got {n}.")
        if (folder / part).exists():
            raise UsageError(
                f"{(folder / part).absolute()} exists. Choose another folder, or delete it."
            )
    for part, n in sizes.items():
        images, labels = mnist_files.read(root, train=part != "test")
        make_part(folder / part, n, (images.numpy(), labels.numpy()), seed)


def make_part(folder: Path, n: int, digits: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """Makes the part of ``n`` numbers that its folder names, of ``(N, 28, 28)`` uint8 digits and their ``(N,)`` labels.

    Raises:
        UsageError: the folder cannot be written.
    """
    console = Console(stderr=True)
    try:
        with create_directory(folder) as directory:
            if directory is None:
                raise FileExistsError("it exists")
            annotations = []
            for i in track(
                range(1, n + 1),
                f"synthetic {folder.name}",
                console=console,
                disable=not console.is_terminal,
            ):
                picture, boxes, number = scene(
                    np.random.default_rng([seed, PARTS.index(folder.name), i]), *digits
                )
                Image.fromarray(picture).save(directory / f"{i}.png", compress_level=1)
                annotations.append(Annotation(f"{i}.png", boxes, number))
            write_annotations(directory, annotations)
    except OSError as error:
        raise UsageError(f"{folder.absolute()} cannot be written: {error}.") from error


def write_annotations(folder: Path, annotations: Sequence[Annotation]) -> None:
    """Writes ``digitStruct.mat`` in the official layout: MATLAB 7.3, which is HDF5 behind a header of 512 bytes.

    Values are behind references, but for images of one digit. The digit 0 has label 10.
    """
    path = folder / STRUCT
    with h5py.File(path, "w", userblock_size=512) as file:
        store = file.create_group("#refs#")
        names, boxes = [], []
        for i, annotation in enumerate(annotations):
            name = store.create_dataset(
                f"n{i}", data=np.frombuffer(annotation.name.encode("utf-16-le"), "<u2")[:, None]
            )
            name.attrs["MATLAB_class"] = np.bytes_("char")
            group = store.create_group(f"b{i}")
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            columns = dict(zip(("left", "top", "width", "height"), annotation.boxes.T))
            columns["label"] = np.array(
                [label or 10 for label in annotation.labels], dtype=np.float64
            )
            for field, values in columns.items():
                if len(values) == 1:
                    group[field] = values[:, None]
                    continue
                references = np.empty((len(values), 1), dtype=h5py.ref_dtype)
                for j, value in enumerate(values):
                    references[j, 0] = store.create_dataset(
                        f"{field[0]}{field[-1]}{i}_{j}", data=[[value]]
                    ).ref
                group[field] = references
            names.append(name.ref)
            boxes.append(group.ref)
        struct = file.create_group("digitStruct")
        struct.attrs["MATLAB_class"] = np.bytes_("struct")
        for column, references_of in (("name", names), ("bbox", boxes)):
            column_of = np.empty((len(references_of), 1), dtype=h5py.ref_dtype)
            column_of[:, 0] = references_of
            struct[column] = column_of
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as mat:
        mat.write(header)


# One image


def scene(
    rng: np.random.Generator, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """A number on a wall.

    Args:
        rng: where chance comes from.
        images: ``(N, 28, 28)`` uint8 digits.
        labels: ``(N,)`` of the digits.

    Returns:
        Image ``(H, W, 3)`` uint8; boxes ``(n, 4)`` of left, top, width and height of its digits in pixels; the digits.
    """
    n = rng.choice(5, p=_LENGTHS) + 1
    height = math.exp(rng.uniform(math.log(14), math.log(56)))
    tilt = float(np.clip(rng.normal(0, 7), -20, 20))
    chosen = rng.integers(len(images), size=n)
    stamps = [_stamp(rng, images[i], height, tilt) for i in chosen]
    centres, extent = _in_a_row(rng, stamps, height, tilt)
    margins = (
        height * rng.uniform(0.1, 1.4, (2, 2)) * np.array([[1.3], [0.6]])
    )  # rows: left and right, top and bottom
    width, depth = (int(side) for side in np.ceil(extent + margins.sum(1)))
    centres = centres + margins[:, 0]

    ground, ink = _colours(rng)
    picture = _wall(rng, width, depth, ground)
    for mask in _neighbours(rng, images, (width, depth), centres, extent, height, tilt):
        picture = _painted(picture, mask, ink if rng.random() < 0.7 else rng.uniform(0, 255, 3))
    boxes = []
    for (stamp, _), centre in zip(stamps, centres):
        mask = _placed(stamp, centre, (width, depth))
        columns, rows = (np.flatnonzero(mask.max(axis) > 100) for axis in (0, 1))
        boxes.append((columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1))
        picture = _painted(picture, mask, ink)
    return (
        _photographed(rng, picture, height),
        np.array(boxes, dtype=np.float64),
        tuple(int(labels[i]) for i in chosen),
    )


def _stamp(
    rng: np.random.Generator, digit: np.ndarray, height: float, tilt: float
) -> tuple[Image.Image, np.ndarray]:
    """A digit's ink, resized and turned, and its width and height before it was turned."""
    columns, rows = (np.flatnonzero(digit.max(axis) > 60) for axis in (0, 1))
    ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tall = height * rng.uniform(0.92, 1.08)
    wide = max(tall * ink.shape[1] / ink.shape[0] * rng.uniform(0.75, 1.05), 0.18 * tall)
    size = np.array([wide, tall]).round().astype(int).clip(3)
    stamp = Image.fromarray(ink).resize((int(size[0]), int(size[1])), Image.Resampling.BICUBIC)
    return stamp.rotate(-tilt, Image.Resampling.BICUBIC, expand=True), size


def _in_a_row(
    rng: np.random.Generator,
    stamps: list[tuple[Image.Image, np.ndarray]],
    height: float,
    tilt: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Centres ``(n, 2)`` of digits on a tilted line, and the extent ``(2,)`` of the whole, which starts at 0."""
    widths = np.array([size[0] for _, size in stamps], dtype=np.float64)
    gaps = height * (rng.uniform(0.02, 0.27) + rng.uniform(0.0, 0.05, len(stamps)))
    along = np.cumsum(widths + gaps) - gaps - widths / 2
    turn = math.radians(tilt)
    centres = np.stack([along * math.cos(turn), along * math.sin(turn)], 1)
    halves = np.array([stamp.size for stamp, _ in stamps]) / 2
    low, high = (centres - halves).min(0), (centres + halves).max(0)
    return centres - low, high - low


def _placed(stamp: Image.Image, centre: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A stamp at its place in an otherwise empty mask, ``(H, W)`` uint8."""
    mask = Image.new("L", size)
    left, top = (round(float(c) - side / 2) for c, side in zip(centre, stamp.size))
    mask.paste(stamp, (left, top))
    return np.asarray(mask)


def _painted(picture: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return picture + (colour - picture) * (mask[:, :, None] / np.float32(255))


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours of wall and digits, ``(3,)`` each in [0, 255], that differ in brightness, by little at times."""
    while True:
        pair = rng.uniform(10, 245, 2)[:, None] + rng.normal(0, 25, (2, 3))
        if abs(pair[0].mean() - pair[1].mean()) > 45:
            ground, ink = pair.clip(0, 255).astype(np.float32)
            return ground, ink


def _wall(rng: np.random.Generator, width: int, depth: int, ground: np.ndarray) -> np.ndarray:
    """A background: a colour that changes across the image, blotches, grain, and at times a frame; ``(H, W, 3)`` float32."""
    slope = rng.normal(0, 15, (2, 3)).astype(np.float32)
    x, y = (np.linspace(-1, 1, n, dtype=np.float32) for n in (width, depth))
    picture = ground + x[None, :, None] * slope[0] + y[:, None, None] * slope[1]
    for cell, strength in ((16, 14), (5, 7)):
        blotches = rng.normal(0, 1, (depth // cell + 2, width // cell + 2)).astype(np.float32)
        smooth = Image.fromarray(blotches).resize((width, depth), Image.Resampling.BICUBIC)
        picture = picture + np.asarray(smooth)[:, :, None] * rng.uniform(0, strength, 3).astype(
            np.float32
        )
    if rng.random() < 0.4:  # the edge of a sign, of a door, of a letter box
        frame = Image.new("L", (width, depth))
        corners = np.sort(rng.uniform(-0.1, 1.1, (2, 2)), axis=0) * (width, depth)
        ImageDraw.Draw(frame).rectangle(
            corners.ravel().tolist(),
            outline=int(rng.integers(80, 255)),
            width=int(rng.integers(1, 4)),
        )
        picture = _painted(picture, np.asarray(frame), rng.uniform(0, 255, 3))
    return picture.astype(np.float32)


def _neighbours(
    rng: np.random.Generator,
    images: np.ndarray,
    size: tuple[int, int],
    centres: np.ndarray,
    extent: np.ndarray,
    height: float,
    tilt: float,
) -> list[np.ndarray]:
    """Masks of parts of other digits that the image's borders cut, none of them upon the number."""
    masks = []
    low, high = centres.min(0), centres.max(0)
    for _ in range(rng.integers(0, 4)):
        stamp, _ = _stamp(
            rng, images[rng.integers(len(images))], height * rng.uniform(0.6, 1.2), tilt
        )
        axis, end = rng.integers(0, 2), rng.integers(0, 2)
        place = rng.uniform(0, 1, 2) * size
        place[axis] = end * size[axis] + rng.uniform(-0.2, 0.2) * height
        reach = (np.array(stamp.size) + np.max(extent - (high - low))) / 2
        if np.any((place + reach < low) | (place - reach > high)):
            masks.append(_placed(stamp, place, size))
    return masks


def _photographed(rng: np.random.Generator, picture: np.ndarray, height: float) -> np.ndarray:
    """Blur and noise, ``(H, W, 3)`` uint8."""
    sharp = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    blurred = sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.03) * height))
    noise = rng.normal(0, rng.uniform(0, 6), picture.shape)
    return (np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)


def main() -> None:
    """Makes the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="gets train/ and test/")
    parser.add_argument(
        "--train",
        type=int,
        default=10_000,
        metavar="N",
        help="training images (default %(default)s)",
    )
    parser.add_argument(
        "--test", type=int, default=2_000, metavar="N", help="test images (default %(default)s)"
    )
    parser.add_argument(
        "--extra", type=int, default=0, metavar="N", help="extra training images (default none)"
    )
    parser.add_argument(
        "--mnist", type=Path, metavar="ROOT", help="folder that holds MNIST/raw; left out, data/"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sizes = {"train": options.train, "test": options.test} | (
        {"extra": options.extra} if options.extra else {}
    )
    try:
        make(options.folder, options.mnist, sizes, options.seed)
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
