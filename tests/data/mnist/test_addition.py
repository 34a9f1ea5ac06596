"""MNIST addition: labels, channels, and what samples depend on."""

import pytest
import torch
import torch.nn.functional as F
from samples import set_up

from spatial_transformer.data.mnist import MnistAdditionData, MnistData

INDEX = torch.arange(40)
pytestmark = pytest.mark.usefixtures("drawn_mnist")


def addition(**settings):
    return set_up(MnistAdditionData(**settings))


def undo_distortions(images, poses):
    """Sample both digits where the poses place them: ``(B, 2, 28, 28)``."""
    pixels = torch.arange(28, dtype=torch.float64) - 13.5
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()])
    poses = poses.double()
    inverse = torch.linalg.solve(poses[..., :2], points - poses[..., 2:])
    grid = (inverse / (images.shape[-1] / 2)).mT.unflatten(2, (28, 28)).float().flatten(0, 1)
    found = F.grid_sample(images.flatten(0, 1)[:, None], grid, align_corners=False)
    return found.view(-1, 2, 28, 28)


@pytest.mark.parametrize("split", ["val", "test"])
def test_labels_are_sums_of_the_digits_at_the_poses(digits, split):
    data = addition()
    images, labels = data.samples(split, INDEX)
    assert images.shape == (40, 2, 42, 42)
    found = undo_distortions(images, data.poses(split, INDEX))
    distances = (found[:, :, None] - digits[:10, 0]).square().mean(dim=(-1, -2))
    assert distances.amin(dim=2).max() < 0.01
    pairs = distances.argmin(dim=2)
    assert torch.equal(pairs.sum(dim=1), labels)
    assert torch.equal(pairs[:, 0], INDEX % 10)


def test_digits_of_a_pair_are_independent():
    data, index = addition(), torch.arange(2_000)
    poses = data.poses("test", index)
    angles = torch.atan2(poses[:, :, 0, 1], poses[:, :, 0, 0])
    assert abs(torch.corrcoef(angles.T)[0, 1]) < 0.07
    counts = torch.bincount(data.samples("test", index)[1] - index % 10)
    assert len(counts) == 10
    assert 140 < counts.min() <= counts.max() < 260


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_first_channel_is_distorted_mnist(split):
    mnist = set_up(MnistData("rts"))
    images, _ = addition().samples(split, INDEX, 2)
    assert torch.equal(images[:, :1], mnist.samples(split, INDEX, 2)[0])


def test_training_pairs_depend_on_the_epoch():
    data = addition()
    first, second = data.samples("train", INDEX, 0), data.samples("train", INDEX, 1)
    for one, other in zip(first, second):
        assert not torch.equal(one, other)
    fixed = addition(fresh=False)
    for epoch in (0, 1):
        assert torch.equal(fixed.samples("train", INDEX, epoch)[1], first[1])


def test_channels_have_two_colours_that_add_up_to_white():
    data = MnistAdditionData()
    assert torch.equal(data.to_display(torch.ones(2, 4, 4)), torch.ones(3, 4, 4))
    assert data.to_display(torch.rand(5, 2, 4, 4)).shape == (5, 3, 4, 4)
    only_first = torch.stack([torch.ones(1, 1), torch.zeros(1, 1)])
    assert data.to_display(only_first).flatten().tolist() == [1.0, 0.5, 0.0]
