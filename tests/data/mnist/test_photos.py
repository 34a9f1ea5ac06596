"""Digits found in photographs and drawings."""

import numpy as np
import pytest
import torch
from photographs import photograph
from PIL import Image, ImageDraw, ImageOps

from spatial_transformer.data.mnist.photos import SIDE, find_ink, preprocess_photo
from spatial_transformer.utils.errors import UsageError


@pytest.mark.parametrize("size", [28, 42, 60])
@pytest.mark.parametrize("is_dark", [True, False])
def test_digit_has_the_format_of_mnist(size, is_dark):
    picture = photograph("4", angle=20)
    image, box, note = preprocess_photo(picture if is_dark else ImageOps.invert(picture), size)
    assert image.shape == (1, size, size)
    assert ("inverted" in note) is is_dark
    ink = (image[0] > 0.5).nonzero()
    assert (ink.amax(0) - ink.amin(0) + 1).max() == pytest.approx(SIDE, abs=1)
    assert image.max() == 1
    assert image[0, [0, -1]].max() == 0
    centres = torch.arange(size) + 0.5
    for axis in (0, 1):
        centre_of_mass = (image[0].sum(axis) @ centres) / image.sum()
        assert centre_of_mass.item() == pytest.approx(size / 2, abs=0.5)
    left, top, right, bottom = box
    assert right - left == pytest.approx(bottom - top, rel=0.01)


def test_shadow_and_edge_of_the_paper_are_ignored():
    picture = photograph("5", size=(300, 400))
    expected = preprocess_photo(picture, 42).image
    pixels = np.asarray(picture).astype(np.float32)
    pixels[:, 30:] *= np.linspace(1, 0.6, 20).repeat(14)[:270][None, :, None]
    shaded = Image.fromarray(pixels.astype(np.uint8))
    ImageDraw.Draw(shaded).polygon([(0, 0), (0, 400), (25, 400), (8, 0)], fill=(60, 40, 30))
    assert (preprocess_photo(shaded, 42).image - expected).abs().mean() < 0.02


@pytest.mark.parametrize("noise", [0, 2, 20])
def test_empty_paper_is_refused(noise):
    paper = 0.7 + noise / 255 * np.random.default_rng(0).normal(size=(200, 150))
    with pytest.raises(UsageError, match="no digit"):
        find_ink(paper.clip(0, 1).astype(np.float32))
