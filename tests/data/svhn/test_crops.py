"""SVHN's crops and their cache."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_numbers import write_numbers

from spatial_transformer.data.svhn.crops import DIGIT_SIZE, crop, open_crops, union_box
from spatial_transformer.utils.errors import UsageError


@pytest.fixture
def part(tmp_path):
    return write_numbers(tmp_path / "svhn" / "train", [(1,), (2, 0), (3, 4, 5)])


def cached(cache):
    return sorted(path.name.rpartition("-")[0] for path in (cache / "svhn").glob("[!.]*"))


def coordinates(width, height):
    """Return an image whose red and green are the coordinates of the pixel's centre, doubled."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([2 * x + 1, 2 * y + 1, 0 * x], -1).astype(np.uint8))


# Crops


@pytest.mark.parametrize(
    ("enlargement", "size", "x", "y"),
    [
        (1.3, 64, (43.5, 56.5), (24, 76)),
        (2.6, 128, (37, 63), (-2, 102)),
        (1.0, 5, (45, 55), (30, 70)),
    ],
)
def test_crop_is_the_enlarged_box(enlargement, size, x, y):
    pixels = crop(coordinates(120, 100), np.array([45.0, 30, 55, 70]), enlargement, size)
    assert pixels.shape == (size, size, 3)
    columns, rows = (low + (np.arange(size) + 0.5) * (high - low) / size for low, high in (x, y))
    inside = (rows > 1) & (rows < 99)
    np.testing.assert_allclose(pixels[0, :, 0], 2 * columns, atol=1)
    np.testing.assert_allclose(pixels[inside, 0, 1], 2 * rows[inside], atol=1)


@pytest.mark.parametrize("box", [(-20.0, -10, 20, 30), (30.0, 20, 70, 60)])
def test_edge_is_repeated_outside_the_image(box):
    image = coordinates(50, 40)
    columns = np.arange(box[0], box[2]).clip(0, 49).astype(int)
    rows = np.arange(box[1], box[3]).clip(0, 39).astype(int)
    expected = np.asarray(image)[rows[:, None], columns]
    np.testing.assert_array_equal(crop(image, np.array(box), 1.0, 40), expected)


def test_reduced_crop_is_antialiased():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pixels = crop(image, np.array([100.0, 50, 300, 250]), 1.3, 64)
    expected = image.resize((64, 64), Image.Resampling.BILINEAR, box=(70, 20, 330, 280))
    assert abs(pixels.astype(int) - np.asarray(expected)).max() <= 1


def test_union_box_holds_all_digits():
    assert union_box(np.array([[5.0, 9, 4, 10], [10, 7, 3, 8]])).tolist() == [5, 7, 13, 19]


def test_single_digits_are_cropped_by_their_own_boxes(tmp_path):
    boxes = [[(30, 10, 5, 9), (10, 10, 5, 9)], [(0, 0, 9, 9), (20, 10, 0, 12)]]  # one has no area
    part = write_numbers(tmp_path / "train", [(1, 2), (3, 4)], boxes)
    digits = open_crops(part, DIGIT_SIZE)
    assert digits.labels.tolist() == [[1], [2], [3]]
    with Image.open(part / "1.png") as image:
        pixels = crop(image, np.array([10.0, 10, 15, 19]), 1.3, DIGIT_SIZE)
    np.testing.assert_array_equal(digits.images[1].transpose(1, 2, 0), pixels)


def test_labels_are_sorted_and_padded(tmp_path):
    boxes = [[(30, 10, 5, 9), (10, 10, 5, 9), (20, 10, 5, 9)], None]
    part = write_numbers(tmp_path / "train", [(1, 2, 0), (5,)], boxes)
    assert open_crops(part, 64).labels.tolist() == [[2, 0, 1, 10, 10], [5, 10, 10, 10, 10]]


def test_unusable_images_are_left_out_with_one_warning(tmp_path, caplog):
    wrong_boxes = [(20, 10, 0, 12), (60, 0, 9, 9), (0, 0, 1e9, 5), (np.nan, 0, 5, 5)]
    numbers = [(1,), (1, 2, 3, 4, 5, 6), (6,), *[(2,)] * 4]
    boxes = [None, None, [(-5, -5, 20, 60)], *[[box] for box in wrong_boxes]]
    part = write_numbers(tmp_path / "train", numbers, boxes)
    assert open_crops(part, 64).labels[:, 0].tolist() == [1, 6]
    assert f"5 of 7 images in {part} are left out" in caplog.text
    assert caplog.text.rstrip().endswith(": 2.png, 4.png, 5.png, 6.png, 7.png")
    caplog.clear()
    open_crops(part, 64)
    assert not caplog.messages


def test_part_without_usable_images_is_refused(tmp_path):
    part = write_numbers(tmp_path / "train", [(1, 2, 3, 4, 5, 6)])
    with pytest.raises(UsageError, match=rf"{part} must have at least one usable image, got 0"):
        open_crops(part, 64)
    assert cached(tmp_path / "cache") == []


# The cache


def test_crops_are_made_once(part):
    first = open_crops(part, 64)
    for image in part.glob("*.png"):
        image.unlink()
    second = open_crops(part, 64)
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable
    assert second.images.shape == (3, 3, 64, 64)
    np.testing.assert_array_equal(first.images, second.images)
    assert second.digest == first.digest
    assert cached(part.parent / "cache") == ["train-64"]
    part.parent.rename(part.parent.with_name("moved"))
    open_crops(part.parent.with_name("moved") / "train", 64)


@pytest.mark.parametrize(("numbers", "later"), [([(9,)], 0), ([(9,), (2, 0), (3, 4, 5)], 1)])
def test_changed_source_has_new_crops(part, tmp_path, numbers, later):
    """Its size or its time differs."""
    time = (part / "digitStruct.mat").stat().st_mtime_ns
    open_crops(part, 64, tmp_path / "cache")
    shutil.rmtree(part)
    write_numbers(part, numbers)
    os.utime(part / "digitStruct.mat", ns=(time + later, time + later))
    labels = open_crops(part, 64, tmp_path / "cache").labels
    assert (len(labels), labels[0, 0]) == (len(numbers), 9)
