"""A few birds in CUB's official layout."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

PARTS = ("back", "beak", "left eye")


class Bird(NamedTuple):
    species: int = 1
    training: bool = True
    picture: Image.Image | None = None
    """None is noise of 60 x 40 pixels that no two birds share."""
    form: str = "JPEG"
    box: tuple[float, ...] = (5.0, 6.0, 30.0, 20.0)
    parts: tuple[tuple[float, float, int], ...] = ((0.0, 0.0, 0),) * len(PARTS)


def species_folder(number: int) -> str:
    return f"{number:03}.Kind_{chr(ord('a') + (number - 1) % 26) * -(-number // 26)}_Wren"


def write_birds(root: Path, birds: list[Bird], species: int = 4) -> Path:
    """The images' numbers begin at 11: they are not the lines' numbers."""
    (root / "parts").mkdir(parents=True)
    ids = range(11, 11 + len(birds))
    files = [f"{species_folder(bird.species)}/Wren_{i:04}.jpg" for i, bird in zip(ids, birds)]
    for i, bird, file in zip(ids, birds, files):
        (root / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        (bird.picture or Image.fromarray(noise)).save(root / "images" / file, bird.form)
    write = {
        "images.txt": [f"{i} {file}" for i, file in zip(ids, files)],
        "classes.txt": [f"{n} {species_folder(n)}" for n in range(1, species + 1)],
        "image_class_labels.txt": [f"{i} {bird.species}" for i, bird in zip(ids, birds)],
        "train_test_split.txt": [f"{i} {int(bird.training)}" for i, bird in zip(ids, birds)],
        "bounding_boxes.txt": [" ".join(map(str, (i, *bird.box))) for i, bird in zip(ids, birds)],
        "parts/parts.txt": [f"{n} {name}" for n, name in enumerate(PARTS, 1)],
        "parts/part_locs.txt": [
            f"{i} {n} {x} {y} {v}"
            for i, b in zip(ids, birds)
            for n, (x, y, v) in enumerate(b.parts, 1)
        ],
    }
    for text, lines in write.items():
        (root / text).write_text("".join(f"{line}\n" for line in lines))
    return root
