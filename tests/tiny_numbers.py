"""A few house numbers in the official layout of SVHN."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from make_svhn import write_annotations
from PIL import Image

from spatial_transformer.data.svhn.files import Annotation


def write_numbers(
    part: Path,
    numbers: Sequence[tuple[int, ...]],
    boxes: Sequence[Sequence | None] = (),
) -> Path:
    """Write a part of SVHN with images of noise, 60 x 40 pixels.

    Args:
        part: directory to be created.
        numbers: digits of each image.
        boxes: of the digits of each image: left, top, width and height. None places them in a row.
    """
    part.mkdir(parents=True)
    rng = np.random.default_rng(len(numbers))
    annotations = []
    for i, digits in enumerate(numbers, 1):
        noise = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(part / f"{i}.png")
        given = boxes[i - 1] if boxes else None
        row = [(20.0 + 7 * j, 10, 6, 12) for j in range(len(digits))]
        own = np.array(row if given is None else given, dtype=float)
        annotations.append(Annotation(f"{i}.png", own, digits))
    write_annotations(part, annotations)
    return part


def write_parts(root: Path) -> Path:
    """Write 40 training, 10 test and 20 extra images, whose digits name the part and the index."""
    for name, n, first in (("train", 40, 1), ("test", 10, 2), ("extra", 20, 3)):
        write_numbers(root / name, [(first, i // 10, i % 10) for i in range(n)])
    return root
