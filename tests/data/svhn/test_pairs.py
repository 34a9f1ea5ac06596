"""Pairs of digits of SVHN."""

import pytest
import torch
from samples import set_up
from tiny_numbers import write_numbers

from spatial_transformer.data.mnist.registration import draw_partners
from spatial_transformer.data.svhn import SvhnPairs
from spatial_transformer.data.svhn.pairs import extract_ink
from spatial_transformer.utils.random import sample_keys


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("svhn") / "SVHN"
    for part in ("train", "test"):
        write_numbers(root / part, [(n % 3, 7) for n in range(20)])
    return set_up(SvhnPairs(root, workers=1))


def test_pairs_show_two_digits_of_one_class(data):
    n = data.size("test")
    pairs, labels = data.samples("test", torch.arange(n))
    assert pairs.shape == (40, 2, 28, 28)
    other = set_up(SvhnPairs(data.root, seed=2, workers=1))
    assert torch.equal(pairs, other.samples("test", torch.arange(n), epoch=5)[0])
    for pair, label in zip(pairs, labels):
        (places,) = (pairs[:, 0] == pair[1]).all(dim=(1, 2)).nonzero(as_tuple=True)
        assert set(labels[places].tolist()) == {int(label)}
    assert data.decode_labels(labels[:2]) == ["0", "7"]


def test_training_pairs_are_drawn_in_each_epoch(data):
    index = torch.arange(data.size("train"))
    first, second = (data.samples("train", index, epoch)[0] for epoch in (0, 1))
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.equal(first[:, 1], second[:, 1])


def test_partners_are_uniform_over_the_class():
    labels = torch.tensor([2, 0, 2, 1, 2, 0])
    for first, same in ((0, [0, 2, 4]), (5, [1, 5]), (3, [3])):
        keys = sample_keys(1, 0, torch.arange(3000))
        partners = draw_partners(labels, torch.full((3000,), first), keys)
        shares = partners.bincount(minlength=6) / 3000
        expected = torch.zeros(6).index_fill(0, torch.tensor(same), 1 / len(same))
        torch.testing.assert_close(shares, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(("digit", "wall"), [(250, 50), (20, 160)])
def test_ink_is_bright_whether_the_digit_is_or_not(digit, wall):
    pixels = torch.full((1, 3, 28, 28), wall, dtype=torch.uint8)
    pixels[..., 6:22, 12:16] = digit
    ink = extract_ink(pixels)
    assert torch.equal(ink == 1, (pixels[:, :1] == digit))
    assert ink.sum() == 16 * 4


def test_flat_image_has_no_ink():
    assert extract_ink(torch.full((1, 3, 28, 28), 7, dtype=torch.uint8)).sum() == 0
