"""A few birds in the official layout of CUB-200-2011."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

PARTS = ("back", "beak", "left eye")


class Bird(NamedTuple):
    """An image. Without a picture it is noise of 60 x 40 pixels, different for each bird."""

    species: int = 1
    training: bool = True
    picture: Image.Image | None = None
    form: str = "JPEG"
    box: tuple[float, ...] = (5.0, 6.0, 30.0, 20.0)
    parts: tuple[tuple[float, float, int], ...] = ((0.0, 0.0, 0),) * len(PARTS)


def species_folder(number: int) -> str:
    return f"{number:03}.Kind_{chr(ord('a') + (number - 1) % 26) * -(-number // 26)}_Wren"


def write_birds(root: Path, birds: list[Bird] | None = None, species: int = 4) -> Path:
    """Write the images and text files. The images' numbers start at 11, unlike the lines'.

    By default, each species has two training images and a test image.
    """
    if birds is None:
        training = (True, True, False)
        birds = [Bird(n, used) for n in range(1, species + 1) for used in training]
    (root / "parts").mkdir(parents=True)
    birds_by_id = dict(enumerate(birds, 11))
    lines: dict[str, list[tuple]] = {
        "images.txt": [],
        "classes.txt": [(n, species_folder(n)) for n in range(1, species + 1)],
        "image_class_labels.txt": [(i, bird.species) for i, bird in birds_by_id.items()],
        "train_test_split.txt": [(i, int(bird.training)) for i, bird in birds_by_id.items()],
        "bounding_boxes.txt": [(i, *bird.box) for i, bird in birds_by_id.items()],
        "parts/parts.txt": list(enumerate(PARTS, 1)),
        "parts/part_locs.txt": [],
    }
    for i, bird in birds_by_id.items():
        file = f"{species_folder(bird.species)}/Wren_{i:04}.jpg"
        lines["images.txt"].append((i, file))
        lines["parts/part_locs.txt"] += [(i, n, *part) for n, part in enumerate(bird.parts, 1)]
        (root / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        (bird.picture or Image.fromarray(noise)).save(root / "images" / file, bird.form)
    for name, rows in lines.items():
        (root / name).write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))
    return root
