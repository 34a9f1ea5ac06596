"""Pairs of digits: sums, channels, what is drawn anew and what is fixed, and where the digits are."""

import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.data.mnist.addition import MnistAdditionData
from spatial_transformer.data.mnist.distortions import rotate_scale_translate

INDEX = torch.arange(40)


@pytest.fixture
def pairs(digits, monkeypatch):
    """Makes data of drawn digits in the place of MNIST; each one's label is told by its ink."""
    images = (digits[:10, 0] * 255).round().to(torch.uint8).repeat(6_000, 1, 1)
    monkeypatch.setattr(mnist_files, "prepare", lambda root: root)
    monkeypatch.setattr(
        mnist_files,
        "read",
        lambda root, train: (
            (images, torch.arange(60_000) % 10)
            if train
            else (images[:10_000], torch.arange(10_000) % 10)
        ),
    )

    def make(**settings):
        data = MnistAdditionData(root="drawn", **settings)
        data.setup()
        return data

    return make


def undistorted(data, split, index):
    """Both digits ``(B, 2, 28, 28)`` as they were, read off the image where ``poses`` says that they are."""
    images, _ = data.samples(split, index)
    poses = data.poses(split, index).double()
    pixels = torch.arange(28, dtype=torch.float64) - 13.5
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()])
    there = torch.linalg.solve(poses[..., :2], points - poses[..., 2:])
    grid = (there / (data.input_size / 2)).mT.unflatten(2, (28, 28)).float()
    return F.grid_sample(
        images.flatten(0, 1)[:, None], grid.flatten(0, 1), align_corners=False
    ).view(-1, 2, 28, 28)


@pytest.mark.parametrize("split", ["val", "test"])
def test_each_channel_holds_one_digit_where_poses_says_and_the_label_is_their_sum(
    pairs, digits, split
):
    data = pairs()
    images, labels = data.samples(split, INDEX)
    assert images.shape == (40, 2, 42, 42)
    read = undistorted(data, split, INDEX)
    # Which of the ten drawn digits each is most like.
    distances = (read[:, :, None] - digits[:10, 0]).square().mean(dim=(-1, -2))
    found = distances.argmin(dim=2)
    assert torch.equal(found.sum(dim=1), labels)
    assert torch.equal(found[:, 0], INDEX % 10), "the first channel's digit is the sample's own"
    assert distances.amin(dim=2).max() < 0.01


def test_the_digits_of_a_pair_are_distorted_and_chosen_independently(pairs):
    data = pairs()
    poses = data.poses("test", torch.arange(2_000))
    angles = torch.atan2(poses[:, :, 0, 1], poses[:, :, 0, 0])
    assert abs(torch.corrcoef(angles.T)[0, 1]) < 0.07
    labels = data.samples("test", torch.arange(2_000))[1]
    second = labels - torch.arange(2_000) % 10
    counts = torch.bincount(second, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 140
    assert counts.max() < 260


def test_the_first_channel_is_that_of_distorted_mnist(pairs, digits):
    data = pairs()
    keys = data._keys("test", INDEX)
    expected = rotate_scale_translate((digits[INDEX % 10] * 255).round() / 255, keys, 42)
    assert torch.equal(data.samples("test", INDEX)[0][:, :1], expected)


def test_training_pairs_are_new_in_each_epoch_and_fixed_sets_are_not(pairs):
    data, other = pairs(seed=1), pairs(seed=2)
    first, again = data.samples("train", INDEX, 0), data.samples("train", INDEX, 1)
    assert not torch.equal(first[1], again[1])
    assert not torch.equal(first[0], again[0])
    assert torch.equal(first[0], pairs(seed=1).samples("train", INDEX, 0)[0])
    for split in ("val", "test"):
        assert torch.equal(data.samples(split, INDEX)[0], other.samples(split, INDEX)[0])
    kept = pairs(fresh=False)
    assert torch.equal(kept.samples("train", INDEX, 0)[1], kept.samples("train", INDEX, 1)[1])


def test_a_sample_does_not_depend_on_its_batch(pairs):
    data = pairs()
    whole, labels = data.samples("train", INDEX, 3)
    part, part_labels = data.samples("train", INDEX[7:9], 3)
    assert torch.equal(whole[7:9], part)
    assert torch.equal(labels[7:9], part_labels)


def test_channels_are_shown_in_two_colours_that_add_up_to_white(pairs):
    data = pairs()
    ones = torch.ones(2, 4, 4)
    assert torch.equal(data.to_display(ones), torch.ones(3, 4, 4))
    assert data.to_display(torch.rand(5, 2, 4, 4)).shape == (5, 3, 4, 4)
    only_first = torch.stack([torch.ones(1, 1), torch.zeros(1, 1)])
    assert data.to_display(only_first).flatten().tolist() == [1.0, 0.5, 0.0]
