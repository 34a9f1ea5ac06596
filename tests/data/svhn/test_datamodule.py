"""SVHN's samples, splits, augmentation and digest, and synthetic numbers."""

import shutil

import numpy as np
import pytest
import torch
from make_svhn import make, scene
from PIL import Image
from samples import all_samples, set_up
from tiny_numbers import write_parts

from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.data.svhn import SvhnData
from spatial_transformer.data.svhn.crops import crop, open_crops, union_box
from spatial_transformer.data.svhn.datamodule import augment, validation_positions
from spatial_transformer.data.svhn.files import read_annotations
from spatial_transformer.utils.errors import UsageError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("svhn") / "SVHN")


def build(root, **settings):
    return set_up(SvhnData(root=root, **{"workers": 1, "batch_size": 8, **settings}))


# Samples


@pytest.mark.parametrize("size", [64, 128])
def test_samples_are_crops_without_their_mean(root, size):
    data = build(root, size=size)
    images, labels = data.samples("test", torch.tensor([3, 1]))
    assert (images.shape, images.dtype) == ((2, 3, size, size), torch.float32)
    assert images.mean((1, 2, 3)).abs().max() < 1e-6
    assert (labels.tolist(), labels.dtype) == ([[2, 0, 3, 10, 10], [2, 0, 1, 10, 10]], torch.int64)
    pixels = open_crops(root / "test", size).images[3] / np.float32(255)
    np.testing.assert_allclose(images[0], pixels - pixels.mean(), atol=1e-6)
    assert (data.input_size, data.classes) == (size, 11)


def test_images_of_all_parts_have_their_own_labels(root):
    data = build(root)
    index = torch.tensor([50, 0, 49, 3, 3])
    images, labels = data.samples("train", index)
    parts = [open_crops(root / part, 64) for part in ("train", "extra")]
    for image, label in zip(images, labels):
        part = parts[0] if label[0] == 1 else parts[1]
        pixels = part.images[10 * label[1] + label[2]] / np.float32(255)
        np.testing.assert_allclose(image, pixels - pixels.mean(), atol=1e-6)


def test_augmentation_stays_within_its_ranges():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    spot = 0.25 + 0.5 * (x.square() + y.square() < 0.04)
    images = torch.stack([spot, spot, 0.8 * spot + 0.1]).expand(400, -1, -1, -1)
    augmented = augment(images, torch.arange(400) * 7919)
    assert 0 <= augmented.min() < augmented.max() <= 1
    grey = augmented.mean(1)
    mass = (grey - grey[:, :1, :1]).abs()
    mass = mass / mass.sum((1, 2), keepdim=True)
    for axis in (x, y):
        shift = (mass * axis).sum((1, 2))
        assert 0.2 < shift.abs().max() < 0.2 * 1.25 * 1.35  # a side is 2 long, and may be scaled
        assert shift.mean().abs() < 0.02
    is_inverted = grey[:, 0, 0] > grey.amin((1, 2)) + 0.05
    assert 0.4 < is_inverted.float().mean() < 0.6
    colourfulness = (augmented[:, 0] - augmented[:, 2]).abs().amax((1, 2))
    assert colourfulness.min() < 0.005
    assert colourfulness.max() > 0.02


# Splits


def test_splits_are_disjoint_and_complete(root):
    data = build(root)
    assert [data.size(split) for split in SPLITS] == [54, 6, 10]
    train, val, test = ({tuple(row) for row in all_samples(data, s)[1].tolist()} for s in SPLITS)
    assert len(train | val) == 60
    assert {row[0] for row in train} == {1, 3}
    assert {row[0] for row in test} == {2}
    assert [build(root, extra=False).size(split) for split in SPLITS] == [36, 4, 10]


@pytest.mark.parametrize(("n", "size"), [(235_754, 5000), (50_000, 5000), (33_402, 3340), (5, 1)])
def test_validation_set_has_its_size(n, size):
    positions = validation_positions(n)
    assert len(positions) == size
    assert positions.max() < n
    assert (np.diff(positions) > 0).all()


def test_validation_set_never_changes():
    assert validation_positions(60).tolist() == [2, 13, 22, 23, 31, 52]


# Digest and settings


def test_digest_identifies_the_content(root, tmp_path):
    digest = build(root).digest()
    assert len(digest) == 16
    assert build(shutil.copytree(root, tmp_path / "copy")).digest() == digest
    swapped = shutil.copytree(root, tmp_path / "swapped", ignore=shutil.ignore_patterns("cache"))
    for old, new in (("train", "x"), ("test", "train"), ("x", "test")):
        (swapped / old).rename(swapped / new)
    other = shutil.copytree(root, tmp_path / "other", ignore=shutil.ignore_patterns("cache"))
    Image.new("RGB", (60, 40)).save(other / "test" / "3.png")
    changed = build(root, extra=False), build(swapped), build(other)
    assert len({digest, *(data.digest() for data in changed)}) == 4


def test_real_images_are_cropped(svhn_root, tmp_path):
    crops = open_crops(svhn_root / "test", 64, tmp_path, workers=1)
    annotations = read_annotations(svhn_root / "test")
    assert len(crops.images) == len(crops.labels) == len(annotations)
    for i in (0, 63, 64, 200, len(annotations) - 1):  # in several pieces of work
        digits = [digit for digit in crops.labels[i] if digit < 10]
        assert sorted(digits) == sorted(annotations[i].labels)
        box = union_box(annotations[i].boxes)
        image = Image.open(svhn_root / "test" / annotations[i].name).convert("RGB")
        np.testing.assert_array_equal(crops.images[i].transpose(1, 2, 0), crop(image, box, 1.3, 64))


# Synthetic numbers


@pytest.fixture(scope="module")
def synthetic_root(mnist_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    make(root, mnist_root, {"train": 60, "test": 12, "extra": 2})
    return root


def test_synthetic_numbers_are_read_as_they_were_written(synthetic_root, mnist_root):
    digits = [array.numpy() for array in mnist_files.read(mnist_root, train=False)]
    annotations = read_annotations(synthetic_root / "test")
    assert len(annotations) == 12
    for i, annotation in enumerate(annotations):
        picture, boxes, labels = scene(*digits, 1, i)
        assert annotation.name == f"{i + 1}.png"
        np.testing.assert_array_equal(annotation.boxes, boxes)
        assert annotation.labels == labels
        written = Image.open(synthetic_root / "test" / annotation.name)
        np.testing.assert_array_equal(np.asarray(written), picture)


def test_synthetic_numbers_are_a_data_set(synthetic_root, mnist_root):
    data = build(synthetic_root)
    assert [data.size(split) for split in SPLITS] == [56, 6, 12]
    assert all_samples(data, "train")[0].isfinite().all()
    with pytest.raises(UsageError, match=f"{synthetic_root / 'train'} exists"):
        make(synthetic_root, mnist_root, {"train": 1})
