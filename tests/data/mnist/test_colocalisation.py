"""The images of co-localisation: one class, where the digits are, the same whatever the split, and refusals."""

import pytest
import torch

from spatial_transformer.data.mnist.colocalisation import ColocalisationData
from spatial_transformer.geometry import theta_to_box
from spatial_transformer.utils.errors import UsageError


@pytest.fixture
def drawn(drawn_mnist):
    """Makes data of drawn digits in the place of MNIST."""

    def make(**settings):
        data = ColocalisationData(root="drawn", **settings)
        data.setup()
        return data

    return make


@pytest.mark.parametrize("distortion", ["t", "tc"])
def test_the_digit_of_the_class_is_where_its_window_says(drawn, digits, distortion):
    data = drawn(digit=7, distortion=distortion)
    images, windows = data.samples("train", torch.arange(20))
    assert images.shape == (20, 1, 84, 84)
    assert windows[:, 0].tolist() == pytest.approx([1 / 3] * 20)
    for image, (left, top, right, bottom) in zip(
        images, theta_to_box(windows, 84).round().int().tolist(), strict=True
    ):
        assert (right - left, bottom - top) == (28, 28)
        found = image[:, top:bottom, left:right]
        assert (found >= digits[7] - 1e-2).all(), "clutter is joined by the maximum"
        if distortion == "t":
            assert image.sum() == pytest.approx(found.sum().item()), "there is nothing else"
            assert torch.allclose(found, digits[7], atol=1e-2)
    assert windows[:, 1:].std(dim=0).min() > 0.2, "each is at a place of its own"


def test_clutter_is_of_sixteen_patches_on_all_of_the_image(drawn):
    plain, cluttered = (
        drawn(digit=1, distortion=name, images=60).samples("val", torch.arange(60))[0]
        for name in ("t", "tc")
    )
    changed = (cluttered - plain).amax(dim=0)[0] > 0
    assert changed.any(dim=0).float().mean() > 0.9
    assert ((cluttered - plain) > 0).flatten(1).sum(dim=1).max() <= 16 * 36


def test_all_splits_seeds_and_epochs_are_the_same_images(drawn):
    first, other = drawn(digit=2), drawn(digit=2, seed=5, batch_size=10)
    index = torch.tensor([3, 50, 99])
    expected, windows = first.samples("train", index)
    for data, split, epoch in ((first, "test", 0), (first, "train", 4), (other, "val", 0)):
        images, same = data.samples(split, index, epoch)
        assert torch.equal(images, expected)
        assert torch.equal(same, windows)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"digit": 10}, "data.digit must be from 0 to 9, got 10"),
        ({"distortion": "rts"}, "data.distortion must be t or tc, got rts"),
        ({"canvas": 28}, "data.canvas must be more than 28 pixels, got 28"),
        ({"batch_size": 1}, "data.batch_size must be from 2 to .* got 1"),
        ({"batch_size": 101}, "data.images=100"),
        ({"images": 7_000}, "data.images must be at most .* got 7000"),
    ],
)
def test_settings_out_of_range_are_refused(drawn, settings, text):
    with pytest.raises(UsageError, match=text):
        drawn(**settings)
