"""Make synthetic house numbers of MNIST digits in the format of SVHN, to try the code.

python scripts/dev/make_svhn.py DIRECTORY [--train N] [--test N] [--extra N]
python train.py experiment=svhn_st_multi data.root=DIRECTORY

A result on these numbers is not a result on SVHN.
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
_LENGTHS = (0.16, 0.50, 0.24, 0.07, 0.03)  # shares of 1 to 5 digits: SVHN's, with more long ones


def make(root: Path, mnist_root: str | Path | None, sizes: dict[str, int], seed: int = 1) -> None:
    """Make parts of synthetic numbers, with a progress bar in a terminal.

    The test part is made of MNIST's test digits, the others of its training digits.

    Args:
        root: gets a directory for each part.
        mnist_root: directory that contains ``MNIST/raw``, see :class:`MnistData`.
        sizes: number of images of each part: "train", "test", "extra".
        seed: an image depends on the seed, its part and its number only.

    Raises:
        UsageError: a part exists, has no images, or cannot be written, or MNIST is not available.
    """
    mnist = mnist_files.prepare(mnist_root)
    for part, n in sizes.items():
        if n < 1:
            raise UsageError(f"The number of {part} images must be positive, got {n}.")
        if (root / part).exists():
            raise UsageError(
                f"{(root / part).absolute()} exists. Choose another directory, or delete it."
            )
    for part, n in sizes.items():
        images, labels = mnist_files.read(mnist, train=part != "test")
        make_part(root / part, n, (images.numpy(), labels.numpy()), seed)


def make_part(directory: Path, n: int, digits: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """Make the part that the directory is named after.

    Args:
        directory: to be created.
        n: number of images.
        digits: ``(N, 28, 28)`` uint8 images and their ``(N,)`` labels.
        seed: an image depends on the seed, its part and its number only.

    Raises:
        UsageError: the directory cannot be written.
    """
    part = PARTS.index(directory.name)
    console = Console(stderr=True)
    description, disable = f"synthetic {directory.name}", not console.is_terminal
    try:
        with create_directory(directory) as new:
            if new is None:
                raise FileExistsError("it exists")
            annotations = []
            for i in track(range(1, n + 1), description, console=console, disable=disable):
                picture, boxes, number = scene(np.random.default_rng([seed, part, i]), *digits)
                Image.fromarray(picture).save(new / f"{i}.png", compress_level=1)
                annotations.append(Annotation(f"{i}.png", boxes, number))
            write_annotations(new, annotations)
    except OSError as error:
        raise UsageError(f"{directory.absolute()} cannot be written: {error}.") from error


def write_annotations(part: Path, annotations: Sequence[Annotation]) -> None:
    """Write ``digitStruct.mat`` in the official layout, MATLAB 7.3.

    This is HDF5 after a header of 512 bytes. In images of several digits, values are behind
    references. The digit 0 has label 10.
    """
    path = part / STRUCT
    with h5py.File(path, "w", userblock_size=512) as file:
        store = file.create_group("#refs#")
        names, boxes = [], []
        for i, annotation in enumerate(annotations):
            characters = np.frombuffer(annotation.name.encode("utf-16-le"), "<u2")[:, None]
            name = store.create_dataset(f"n{i}", data=characters)
            name.attrs["MATLAB_class"] = np.bytes_("char")
            group = store.create_group(f"b{i}")
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            columns = dict(zip(("left", "top", "width", "height"), annotation.boxes.T))
            columns["label"] = np.array([label or 10 for label in annotation.labels], np.float64)
            for field, values in columns.items():
                if len(values) == 1:
                    group[field] = values[:, None]
                    continue
                prefix = f"{field[0]}{field[-1]}{i}"
                group[field] = _reference_column(
                    [
                        store.create_dataset(f"{prefix}_{j}", data=[[value]]).ref
                        for j, value in enumerate(values)
                    ]
                )
            names.append(name.ref)
            boxes.append(group.ref)
        struct = file.create_group("digitStruct")
        struct.attrs["MATLAB_class"] = np.bytes_("struct")
        struct["name"] = _reference_column(names)
        struct["bbox"] = _reference_column(boxes)
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as mat:
        mat.write(header)


def _reference_column(references: Sequence[h5py.Reference]) -> np.ndarray:
    column = np.empty((len(references), 1), dtype=h5py.ref_dtype)
    column[:, 0] = references
    return column


# One image


def scene(
    rng: np.random.Generator, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Draw a number on a wall.

    Args:
        rng: random numbers.
        images: ``(N, 28, 28)`` uint8 digits.
        labels: ``(N,)`` labels of the digits.

    Returns:
        The image ``(H, W, 3)`` uint8, the boxes ``(n, 4)`` of its digits (left, top, width and
        height in pixels), and the digits.
    """
    n = rng.choice(5, p=_LENGTHS) + 1
    height = math.exp(rng.uniform(math.log(14), math.log(56)))
    tilt = float(np.clip(rng.normal(0, 7), -20, 20))
    chosen = rng.integers(len(images), size=n)
    stamps = [_stamp(rng, images[i], height, tilt) for i in chosen]
    centres, extent = _arrange(rng, stamps, height, tilt)
    scale = np.array([[1.3], [0.6]])  # of the margins: left and right, top and bottom
    margins = height * rng.uniform(0.1, 1.4, (2, 2)) * scale
    width, depth = (int(side) for side in np.ceil(extent + margins.sum(1)))
    centres = centres + margins[:, 0]

    ground, ink = _colours(rng)
    picture = _wall(rng, width, depth, ground)
    for mask in _neighbours(rng, images, (width, depth), centres, extent, height, tilt):
        picture = _paint(picture, mask, ink if rng.random() < 0.7 else rng.uniform(0, 255, 3))
    boxes = []
    for (stamp, _), centre in zip(stamps, centres):
        mask = _mask(stamp, centre, (width, depth))
        columns, rows = (np.flatnonzero(mask.max(axis) > 100) for axis in (0, 1))
        boxes.append((columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1))
        picture = _paint(picture, mask, ink)
    number = tuple(int(labels[i]) for i in chosen)
    return _add_blur_and_noise(rng, picture, height), np.array(boxes, dtype=np.float64), number


def _stamp(
    rng: np.random.Generator, digit: np.ndarray, height: float, tilt: float
) -> tuple[Image.Image, np.ndarray]:
    """Return a digit's ink, resized and rotated, and its width and height before the rotation."""
    columns, rows = (np.flatnonzero(digit.max(axis) > 60) for axis in (0, 1))
    ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tall = height * rng.uniform(0.92, 1.08)
    wide = max(tall * ink.shape[1] / ink.shape[0] * rng.uniform(0.75, 1.05), 0.18 * tall)
    size = np.array([wide, tall]).round().astype(int).clip(3)
    stamp = Image.fromarray(ink).resize((int(size[0]), int(size[1])), Image.Resampling.BICUBIC)
    return stamp.rotate(-tilt, Image.Resampling.BICUBIC, expand=True), size


def _arrange(
    rng: np.random.Generator,
    stamps: list[tuple[Image.Image, np.ndarray]],
    height: float,
    tilt: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return centres ``(n, 2)`` of digits on a tilted line, and the extent ``(2,)`` of them all."""
    widths = np.array([size[0] for _, size in stamps], dtype=np.float64)
    gaps = height * (rng.uniform(0.02, 0.27) + rng.uniform(0.0, 0.05, len(stamps)))
    along = np.cumsum(widths + gaps) - gaps - widths / 2
    angle = math.radians(tilt)
    centres = np.stack([along * math.cos(angle), along * math.sin(angle)], 1)
    halves = np.array([stamp.size for stamp, _ in stamps]) / 2
    low, high = (centres - halves).min(0), (centres + halves).max(0)
    return centres - low, high - low


def _mask(stamp: Image.Image, centre: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask ``(H, W)`` uint8 with a stamp at its location."""
    mask = Image.new("L", size)
    left, top = (round(float(c) - side / 2) for c, side in zip(centre, stamp.size))
    mask.paste(stamp, (left, top))
    return np.asarray(mask)


def _paint(picture: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return picture + (colour - picture) * (mask[:, :, None] / np.float32(255))


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return colours of wall and digits in [0, 255], ``(3,)`` each, of different brightness."""
    while True:
        pair = rng.uniform(10, 245, 2)[:, None] + rng.normal(0, 25, (2, 3))
        if abs(pair[0].mean() - pair[1].mean()) > 45:
            ground, ink = pair.clip(0, 255).astype(np.float32)
            return ground, ink


def _wall(rng: np.random.Generator, width: int, depth: int, ground: np.ndarray) -> np.ndarray:
    """Return a background ``(H, W, 3)`` float32: a gradient, blotches, and sometimes a frame."""
    slope = rng.normal(0, 15, (2, 3)).astype(np.float32)
    x, y = (np.linspace(-1, 1, n, dtype=np.float32) for n in (width, depth))
    picture = ground + x[None, :, None] * slope[0] + y[:, None, None] * slope[1]
    for cell, strength in ((16, 14), (5, 7)):
        blotches = rng.normal(0, 1, (depth // cell + 2, width // cell + 2)).astype(np.float32)
        smooth = Image.fromarray(blotches).resize((width, depth), Image.Resampling.BICUBIC)
        colour = rng.uniform(0, strength, 3).astype(np.float32)
        picture = picture + np.asarray(smooth)[:, :, None] * colour
    if rng.random() < 0.4:  # the edge of a sign, a door or a letter box
        frame = Image.new("L", (width, depth))
        corners = np.sort(rng.uniform(-0.1, 1.1, (2, 2)), axis=0) * (width, depth)
        outline, line_width = int(rng.integers(80, 255)), int(rng.integers(1, 4))
        ImageDraw.Draw(frame).rectangle(corners.ravel().tolist(), outline=outline, width=line_width)
        picture = _paint(picture, np.asarray(frame), rng.uniform(0, 255, 3))
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
    """Return masks of other digits that the image's borders cut and that miss the number."""
    masks = []
    low, high = centres.min(0), centres.max(0)
    for _ in range(rng.integers(0, 4)):
        digit = images[rng.integers(len(images))]
        stamp, _ = _stamp(rng, digit, height * rng.uniform(0.6, 1.2), tilt)
        axis, end = rng.integers(0, 2), rng.integers(0, 2)
        centre = rng.uniform(0, 1, 2) * size
        centre[axis] = end * size[axis] + rng.uniform(-0.2, 0.2) * height
        reach = (np.array(stamp.size) + np.max(extent - (high - low))) / 2
        if np.any((centre + reach < low) | (centre - reach > high)):
            masks.append(_mask(stamp, centre, size))
    return masks


def _add_blur_and_noise(rng: np.random.Generator, picture: np.ndarray, height: float) -> np.ndarray:
    """Return the picture, blurred and noisy: ``(H, W, 3)`` uint8."""
    sharp = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    blurred = sharp.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.03) * height))
    noise = rng.normal(0, rng.uniform(0, 6), picture.shape)
    return (np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)


def main() -> None:
    """Make the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("directory", type=Path, help="directory for train/, test/ and extra/")
    for part, n in (("train", 10_000), ("test", 2_000), ("extra", 0)):
        text = f"number of {part} images (default %(default)s)"
        add(f"--{part}", type=int, default=n, metavar="N", help=text)
    add("--mnist", type=Path, metavar="ROOT", help="contains MNIST/raw, as data.root")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    sizes = {"train": options.train, "test": options.test}
    if options.extra:
        sizes["extra"] = options.extra
    try:
        make(options.directory, options.mnist, sizes, options.seed)
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
