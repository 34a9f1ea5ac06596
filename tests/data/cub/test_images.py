"""The birds' resized images and their cache."""

import os

import numpy as np
import pytest
from PIL import Image
from tiny_birds import write_birds

from spatial_transformer.data.cub import files as cub_files
from spatial_transformer.data.cub.files import read_birds
from spatial_transformer.data.cub.images import open_images, resize
from spatial_transformer.utils.errors import UsageError


@pytest.fixture
def root(tmp_path):
    return write_birds(tmp_path / "birds", species=2)


def open_all(root, species=(1, 2), size=224, **settings):
    return open_images(read_birds(root, species), size, workers=1, **settings)


def cached(root):
    return sorted(path.name for path in (root / "cache" / "cub").glob("[!.]*"))


def empty_images(root):
    for image in root.glob("images/*/*.jpg"):
        image.write_bytes(b"")


# Resizing


@pytest.mark.parametrize(
    ("original", "longest", "expected"),
    [
        ((512, 400), 256, (256, 200)),
        ((100, 128), 256, (200, 256)),
        ((100, 128), 512, (400, 512)),
        ((500, 333), 512, (512, 341)),
        ((500, 1), 256, (256, 1)),
    ],
)
def test_longest_side_is_resized(original, longest, expected):
    pixels = resize(Image.new("RGB", original, (10, 20, 30)), longest)
    assert (pixels.shape, pixels.dtype) == ((3, *expected[::-1]), np.uint8)
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]


def test_reduced_images_are_antialiased():
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    assert resize(Image.fromarray(noise), 256).std() < 25  # the noise has 74


# The cache


def test_images_are_resized_once(root):
    first = open_all(root)
    empty_images(root)
    second = open_all(root)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert isinstance(second.pixels.base, np.memmap)
    assert len(cached(root)) == 1


def test_species_and_size_have_their_own_cache(root):
    for settings in ({}, {"species": [2]}, {"species": [1]}, {"size": 448}):
        open_all(root, **settings)
    assert len(cached(root)) == 4
    empty_images(root)
    open_all(root, species=["Kind_b_Wren", 1])
    assert len(cached(root)) == 4


@pytest.mark.parametrize("file", cub_files.COLUMNS)
def test_changed_text_file_makes_a_new_cache(root, file):
    open_all(root)
    os.utime(root / file, ns=(1, 1))
    open_all(root)
    assert len(cached(root)) == 2


@pytest.mark.parametrize("file", ["bounding_boxes.txt", "parts/part_locs.txt"])
def test_damaged_annotations_are_reported_at_the_start(root, file):
    (root / file).write_text("11 1.0\n")
    with pytest.raises(UsageError, match=rf"damaged: {root / file}: "):
        open_all(root)
    assert cached(root) == []
