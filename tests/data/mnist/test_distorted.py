"""Distorted MNIST: splits, what samples depend on, and settings."""

import math

import pytest
import torch
from conftest import replace_mnist
from samples import differ, set_up

from spatial_transformer.data.mnist import MnistAdditionData, MnistData
from spatial_transformer.data.mnist import files as mnist_files
from spatial_transformer.utils.errors import UsageError

SIZES = {"train": 55_000, "val": 5_000, "test": 10_000}
INDEX = torch.arange(20)


@pytest.fixture
def mnist(digits, monkeypatch):
    """Build data from synthetic digits, with positions in the files as labels."""

    def build(distortion="r", train=None, test=None, **settings):
        images = (digits[:, 0] * 255).round().to(torch.uint8).repeat(1_000, 1, 1)
        train = images[:60_000] if train is None else train
        test = images[:10_000] if test is None else test
        replace_mnist(monkeypatch, (train, torch.arange(60_000)), (test, torch.arange(10_000)))
        return set_up(MnistData(distortion, **settings))

    return build


def constant(value, n):
    return torch.full((1, 28, 28), value, dtype=torch.uint8).expand(n, 28, 28)


# Splits


def test_real_mnist_is_split_into_55000_5000_and_10000_digits(mnist_root):
    data = set_up(MnistData("t", canvas=28, root=mnist_root))
    images, labels = mnist_files.read(mnist_root, train=True)
    expected = {
        "train": (images[:55_000], labels[:55_000]),
        "val": (images[55_000:], labels[55_000:]),
        "test": mnist_files.read(mnist_root, train=False),
    }
    for split, (images, labels) in expected.items():
        assert data.size(split) == len(images) == SIZES[split]
        index = torch.cat([torch.arange(0, SIZES[split], 97), torch.tensor([SIZES[split] - 1])])
        made, made_labels = data.samples(split, index)
        assert torch.equal((made[:, 0] * 255).round().to(torch.uint8), images[index])
        assert torch.equal(made_labels, labels[index])


def test_splits_are_distorted_independently(mnist):
    data = mnist("rts", train=constant(255, 60_000), test=constant(255, 10_000))
    train, val, test = (data.samples(split, INDEX)[0] for split in SIZES)
    assert differ(train, val)
    assert differ(train, test)
    assert differ(val, test)


@pytest.mark.parametrize("split", SIZES)
def test_clutter_is_cut_from_training_digits(mnist, split):
    train = torch.cat([constant(255, 55_000), constant(0, 5_000)])
    made = mnist("tc", train, constant(0, 10_000)).samples(split, torch.arange(50))[0]
    ink = made.sum(dim=(1, 2, 3))
    assert made.unique().tolist() == [0, 1]
    assert (ink > 36).all()
    assert split == "train" or (ink <= 6 * 36).all()


# Samples


def test_without_fresh_all_epochs_are_the_first(mnist):
    first = mnist().samples("train", INDEX)[0]
    for epoch in (0, 1, 7):
        assert torch.equal(mnist(fresh=False).samples("train", INDEX, epoch)[0], first)
    assert differ(first, mnist(fresh=False, seed=2).samples("train", INDEX, 1)[0])


@pytest.mark.parametrize("split", ["val", "test"])
def test_redraw_is_repeatable(mnist, split):
    data = mnist()
    (first, labels), (again, _), (other, _) = (data.redraw(split, INDEX, n) for n in (1, 1, 2))
    fixed, expected = data.samples(split, INDEX)
    assert torch.equal(labels, expected)
    assert torch.equal(first, again)
    assert differ(first, other)
    assert differ(first, fixed)


def test_digest_identifies_the_official_files():
    assert len(MnistData().digest()) == 16
    for other in (MnistData(root="elsewhere", seed=3), MnistAdditionData()):
        assert other.digest() == MnistData().digest()


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distortion": "rst"}, "data.distortion must be one of r, rts, p, e, t, tc, got rst"),
        ({"distortion": "rts", "canvas": 33}, "data.canvas must be at least 34 .* got 33"),
        ({"distortion": "r", "corner_std": 2.5}, "data.corner_std must be null, .* got 2.5 with r"),
        ({"distortion": "p", "point_std": 2.0}, "data.point_std must be null, .* got 2.0 with p"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        MnistData(**settings)


@pytest.mark.parametrize(
    ("distortion", "name", "paper"),
    [("p", "corner_std", 5 / math.sqrt(2)), ("e", "point_std", 1.5)],
)
def test_standard_deviation_scales_the_displacement(mnist, distortion, name, paper):
    rest, mild, default, expected = (
        mnist(distortion, **{name: std}).samples("val", INDEX)[0] for std in (0, 1, None, paper)
    )
    assert torch.equal(default, expected)
    assert 0 < (mild - rest).abs().mean() < (default - rest).abs().mean()
