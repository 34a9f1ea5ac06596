"""Make synthetic house numbers of MNIST digits in the format of SVHN, to try the code.

python scripts/dev/make_svhn.py DIRECTORY [--train N] [--test N] [--extra N]
python train.py experiment=svhn_st_multi data.root=DIRECTORY

A result on these numbers is not a result on SVHN.
"""

import math
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from spatial_transformer.data.io.workers import map_in_processes
from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.data.svhn.files import STRUCT, Annotation
from spatial_transformer.utils.directories import create_directory
from spatial_transformer.utils.errors import UsageError

PARTS = ("train", "test", "extra")
_LENGTHS = (0.16, 0.50, 0.24, 0.07, 0.03)  # shares of 1 to 5 digits: SVHN's, with more long ones


def make(root: Path, mnist_root: str | Path | None, sizes: dict[str, int]) -> None:
    """Make parts of synthetic numbers, with a progress bar in a terminal.

    The test part is made of MNIST's test digits, the others of its training digits.

    Args:
        root: gets a directory for each part.
        mnist_root: directory that contains ``MNIST/raw``, see :class:`MnistData`.
        sizes: number of images of each part: "train", "test", "extra".

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
        make_part(root / part, n, (images.numpy(), labels.numpy()))


def make_part(directory: Path, n: int, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """Make the part that the directory is named after.

    Args:
        directory: to be created.
        n: number of images.
        digits: ``(N, 28, 28)`` uint8 images and their ``(N,)`` labels.

    Raises:
        UsageError: the directory cannot be written.
    """
    draw = partial(scene, *digits, PARTS.index(directory.name))
    annotations = []
    try:
        with create_directory(directory) as new:
            if new is None:
                raise FileExistsError("it exists")
            scenes = map_in_processes(draw, range(n), 1, f"synthetic {directory.name}")
            for i, (picture, boxes, number) in enumerate(scenes, 1):
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


def scene(
    images: np.ndarray, labels: np.ndarray, part: int, index: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Draw a number on a wall. Size, place, colours and noise are random.

    Args:
        images: ``(N, 28, 28)`` uint8 digits.
        labels: ``(N,)`` labels of the digits.
        part: position of the part in :data:`PARTS`.
        index: of the image. With the part it determines the image.

    Returns:
        The image ``(H, W, 3)`` uint8, the boxes ``(n, 4)`` of its digits (left, top, width and
        height in pixels), and the digits.
    """
    rng = np.random.default_rng([part, index])
    chosen = rng.integers(len(images), size=rng.choice(5, p=_LENGTHS) + 1)
    height = round(math.exp(rng.uniform(math.log(14), math.log(56))))
    left, right, top, bottom = (height * rng.uniform(0.1, 1.4, 4)).astype(int).tolist()
    stamps = [_stamp(images[i], height) for i in chosen]
    ends = left + np.cumsum([stamp.width + height // 8 for stamp in stamps])
    mask = Image.new("L", (int(ends[-1]) + right, top + height + bottom))
    boxes = []
    for stamp, end in zip(stamps, ends.tolist(), strict=True):
        mask.paste(stamp, (end - stamp.width, top))
        boxes.append((end - stamp.width, top, stamp.width, height))
    ink = np.asarray(mask)[:, :, None] / 255
    dark, bright = rng.uniform((10, 150), (100, 245), (3, 2)).T
    wall, paint = (dark, bright) if rng.random() < 0.5 else (bright, dark)
    picture = wall + (paint - wall) * ink + rng.normal(0, 6, (*ink.shape[:2], 3))
    number = tuple(labels[chosen].tolist())
    return picture.clip(0, 255).astype(np.uint8), np.array(boxes, dtype=np.float64), number


def _stamp(digit: np.ndarray, height: int) -> Image.Image:
    """Return the ink of a digit, resized to a height."""
    columns, rows = (np.flatnonzero(digit.max(axis) > 60) for axis in (0, 1))
    ink = Image.fromarray(digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    width = max(3, round(height * ink.width / ink.height))
    return ink.resize((width, height), Image.Resampling.BICUBIC)


def main() -> None:
    """Make the parts."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("directory", type=Path, help="directory for train/, test/ and extra/")
    for part, n in (("train", 10_000), ("test", 2_000), ("extra", 0)):
        text = f"number of {part} images (default %(default)s)"
        add(f"--{part}", type=int, default=n, metavar="N", help=text)
    add("--mnist", type=Path, metavar="ROOT", help="contains MNIST/raw, as data.root")
    options = parser.parse_args()
    sizes = {"train": options.train, "test": options.test}
    if options.extra:
        sizes["extra"] = options.extra
    try:
        make(options.directory, options.mnist, sizes)
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
