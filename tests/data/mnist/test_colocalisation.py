"""Images for co-localisation: digits of one class, and where they are."""

import pytest
import torch
from samples import set_up

from spatial_transformer.data.mnist import ColocalisationData
from spatial_transformer.geometry import theta_to_box
from spatial_transformer.utils.errors import UsageError

pytestmark = pytest.mark.usefixtures("drawn_mnist")


def colocalisation(**settings):
    return set_up(ColocalisationData(**settings))


@pytest.mark.parametrize("distortion", ["t", "tc"])
def test_digits_of_the_class_are_in_their_boxes(digits, distortion):
    data = colocalisation(digit=7, distortion=distortion)
    images, thetas = data.samples("train", torch.arange(20))
    assert images.shape == (20, 1, 84, 84)
    assert thetas[:, 0].tolist() == pytest.approx([1 / 3] * 20)
    assert thetas[:, 1:].std(dim=0).min() > 0.2, "locations differ"
    boxes = theta_to_box(thetas, 84).round().int().tolist()
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        assert (right - left, bottom - top) == (28, 28)
        found = image[:, top:bottom, left:right]
        assert (found >= digits[7] - 1e-2).all(), "clutter is joined by the maximum"
        if distortion == "t":
            assert torch.allclose(found, digits[7], atol=1e-2)
            assert image.sum() == pytest.approx(found.sum().item()), "nothing else is there"


def test_clutter_has_sixteen_patches_anywhere():
    data = (colocalisation(digit=1, distortion=name, images=60) for name in ("t", "tc"))
    plain, cluttered = (one.samples("val", torch.arange(60))[0] for one in data)
    changed = cluttered > plain
    assert changed.any(dim=0)[0].any(dim=0).float().mean() > 0.9
    assert changed.flatten(1).sum(dim=1).max() <= 16 * 36


def test_splits_seeds_and_epochs_have_the_same_images():
    first, other = colocalisation(digit=2), colocalisation(digit=2, seed=5, batch_size=10)
    index = torch.tensor([3, 50, 99])
    expected, thetas = first.samples("train", index)
    for data, split, epoch in ((first, "test", 0), (first, "train", 4), (other, "val", 0)):
        images, same = data.samples(split, index, epoch)
        assert torch.equal(images, expected)
        assert torch.equal(same, thetas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"digit": 10}, "data.images must be at most 0, .* got 100"),
        ({"distortion": "rts"}, "data.distortion must be t or tc, got rts"),
        ({"batch_size": 1}, "data.batch_size must be at least 2 .* got 1"),
        ({"images": 7_000}, "data.images must be at most 1000, .* got 7000"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        colocalisation(**settings)
