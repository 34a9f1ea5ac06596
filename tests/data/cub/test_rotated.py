"""Birds at random angles."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from samples import all_samples, set_up
from tiny_birds import Bird, write_birds

from spatial_transformer.data.cub import CubData, RotatedCubData
from spatial_transformer.data.cub.datamodule import MEAN_COLOUR
from spatial_transformer.data.cub.rotated import rotate
from spatial_transformer.utils.errors import UsageError

MEAN = torch.tensor(MEAN_COLOUR)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    birds = [Bird(n, training=i >= 20) for n in (1, 2) for i in range(40)]
    return write_birds(tmp_path_factory.mktemp("cub") / "CUB_200_2011", birds, species=2)


def build(root, kind=RotatedCubData, **settings):
    return set_up(kind(root, **({"species": "1-2", "workers": 1} | settings)))


def test_quarter_turn_is_clockwise():
    image = torch.rand(1, 3, 6, 6)
    expected = np.rot90(image.numpy(), -1, (2, 3))
    turned = rotate(image, torch.tensor([math.pi / 2]))
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_rotation_agrees_with_pillow():
    gray = np.random.default_rng(0).integers(0, 256, (3, 9, 9)).repeat(8, 1).repeat(8, 2)
    pixels = Image.fromarray(gray.transpose(1, 2, 0).astype(np.uint8))
    fill = tuple(round(255 * value) for value in MEAN_COLOUR)
    for degrees in (-30, 10, 75):
        expected = pixels.rotate(-degrees, Image.Resampling.BILINEAR, fillcolor=fill)
        image = torch.from_numpy(gray)[None].float() / 255
        found = rotate(image, torch.tensor([math.radians(degrees)]))[0]
        difference = (found.permute(1, 2, 0) - torch.from_numpy(np.array(expected)) / 255).abs()
        assert difference[4:-4, 4:-4].mean() < 0.005


def test_corners_have_the_mean_colour_and_images_stay_in_range():
    images = rotate(torch.rand(2, 3, 32, 32).round(), torch.tensor([0.8, -0.8]))
    for corner in (images[:, :, 0, 0], images[:, :, 0, -1], images[:, :, -1, 0]):
        torch.testing.assert_close(corner, MEAN.expand(2, 3))
    assert images.min() >= 0
    assert images.max() <= 1


def test_without_rotation_the_images_are_those_of_cub(root):
    plain, rotated = build(root, CubData), build(root, max_angle=0)
    for split in ("train", "val", "test"):
        (expected, labels), (found, same) = all_samples(plain, split), all_samples(rotated, split)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        assert torch.equal(labels, same)


def test_samples_are_the_upright_ones_at_their_angles(root):
    data, upright = build(root, max_angle=60), build(root, CubData)
    index = torch.tensor([3, 1])
    for split in ("train", "val", "test"):
        angles = data.angles(split, index, epoch=2)
        expected = rotate(upright.samples(split, index, epoch=2)[0], angles)
        assert torch.equal(data.samples(split, index, epoch=2)[0], expected)


def test_angles_are_uniform_and_independent_of_the_crops():
    data = RotatedCubData(max_angle=90)
    index = torch.arange(20_000)
    angles = data.angles("train", index)
    assert angles.abs().max() <= math.pi / 2
    counts = angles.histc(10, -math.pi / 2, math.pi / 2)
    assert (counts - 2000).abs().max() < 200
    assert not torch.equal(data.angles("train", index, epoch=1), angles)


def test_test_angles_are_the_same_for_every_run_and_choice_of_species(root):
    both = build(root, seed=1)
    one = build(root, seed=2, species="2")
    index = torch.arange(one.size("test"))
    expected = both.angles("test", index + both.size("test") - one.size("test"), epoch=3)
    assert torch.equal(one.angles("test", index), expected)
    assert expected.unique().numel() == len(index)


def test_bad_settings_are_refused(root):
    with pytest.raises(UsageError, match=r"data\.max_angle must be 0 to 180 degrees, got 181"):
        RotatedCubData(max_angle=181)
    with pytest.raises(UsageError, match="Rotated crops have no annotations"):
        build(root).parts("test")
    with pytest.raises(UsageError, match="Rotated crops have no annotations"):
        build(root).boxes("test")
