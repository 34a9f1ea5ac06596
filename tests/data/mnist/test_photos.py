"""Digits found on paper, and pictures of every kind read."""

import struct

import numpy as np
import pytest
import torch
from photographs import photograph
from PIL import Image, ImageDraw, ImageOps

from spatial_transformer.data.io.image_files import read_picture
from spatial_transformer.data.mnist.photos import SIDE, digit_view, find_ink
from spatial_transformer.utils.errors import UsageError


def ink_of(view):
    rows, columns = (np.flatnonzero((view.image[0] > 0.5).any(axis).numpy()) for axis in (1, 0))
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


@pytest.mark.parametrize("size", [28, 42, 60])
@pytest.mark.parametrize("light", [False, True])
def test_a_digit_comes_out_as_mnist_has_them(size, light):
    picture = photograph("4", angle=20)
    view = digit_view(ImageOps.invert(picture) if light else picture, size)
    assert view.image.shape == (1, size, size)
    assert ("inverted" in view.note) is not light
    assert max(ink_of(view)) == pytest.approx(SIDE, abs=1)
    assert view.image.max() == 1
    assert view.image[0, [0, -1]].max() == 0
    mass = view.image[0] / view.image.sum()
    place = torch.arange(size) + 0.5
    assert (mass.sum(0) @ place).item() == pytest.approx(size / 2, abs=0.5)
    assert (mass.sum(1) @ place).item() == pytest.approx(size / 2, abs=0.5)
    left, top, right, bottom = view.box
    assert right - left == pytest.approx(bottom - top, rel=0.01)


def test_neither_a_shadow_nor_the_edge_of_the_paper_is_the_digit():
    picture = photograph("5", size=(300, 400))
    plain = digit_view(picture, 42).image
    pixels = np.asarray(picture).astype(np.float32)
    pixels[:, 30:] *= np.linspace(1, 0.6, 20).repeat(14)[:270][None, :, None]
    shaded = Image.fromarray(pixels.astype(np.uint8))
    ImageDraw.Draw(shaded).polygon([(0, 0), (0, 400), (25, 400), (8, 0)], fill=(60, 40, 30))
    assert (digit_view(shaded, 42).image - plain).abs().mean() < 0.02


@pytest.mark.parametrize("noise", [0, 2, 20])
def test_paper_alone_has_no_ink(noise):
    paper = 0.7 + noise / 255 * np.random.default_rng(0).normal(size=(200, 150))
    with pytest.raises(UsageError, match="no digit"):
        find_ink(paper.clip(0, 1).astype(np.float32))


KINDS = {
    "1.png": lambda grey: grey.convert("1"),
    "palette.png": lambda grey: grey.convert("P"),
    "la.png": lambda grey: Image.merge("LA", (grey, grey.point(lambda value: 255))),
    "rgba.png": lambda grey: Image.merge(
        "RGBA", (*[grey.point(lambda value: 0)] * 3, ImageOps.invert(grey))
    ),
    "16 bit.png": lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    "float.tiff": lambda grey: grey.convert("F"),
    "cmyk.tiff": lambda grey: grey.convert("CMYK"),
    "drawing.webp": lambda grey: grey.convert("RGB"),
    "animation.gif": lambda grey: grey,
}


def drawn():
    grey = Image.new("L", (60, 80), 255)
    ImageDraw.Draw(grey).line([(20, 10), (40, 70)], fill=0, width=9)
    return grey


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_of_any_kind_is_the_same_picture(tmp_path, name):
    grey = drawn()
    picture = KINDS[name](grey)
    more = (
        {"save_all": True, "append_images": [Image.new("L", grey.size)]}
        if name.endswith("gif")
        else {}
    )
    picture.save(tmp_path / name, **(more | ({"lossless": True} if name.endswith("webp") else {})))
    found = read_picture(tmp_path / name)
    assert (found.mode, found.size) == ("RGB", (60, 80))
    assert np.abs(np.asarray(found).astype(int) - np.asarray(grey)[:, :, None]).max() <= 1


def test_a_picture_with_tags_that_make_no_sense_is_turned_upright(tmp_path):
    grey = drawn()
    tags = b"II*\0" + struct.pack(
        "<IH", 8, 2
    )  # of two: the orientation, and a resolution that is text
    tags += (
        struct.pack("<HHII", 0x0112, 3, 1, 6)
        + struct.pack("<HHI4s", 0x011A, 2, 3, b"72\0")
        + bytes(4)
    )
    for name in ("odd.jpg", "odd.png"):
        grey.transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, exif=b"Exif\0\0" + tags)
        assert read_picture(tmp_path / name).size == (60, 80)


def test_light_ink_on_nothing_lies_on_black(tmp_path):
    ink = ImageOps.invert(drawn())
    Image.merge("RGBA", (*[ink.point(lambda value: 255)] * 3, ink)).save(tmp_path / "chalk.png")
    assert np.array_equal(
        np.asarray(read_picture(tmp_path / "chalk.png")), np.asarray(ink.convert("RGB"))
    )
    Image.new("RGBA", (60, 80), (255, 255, 255, 0)).save(tmp_path / "nothing.png")
    assert np.asarray(read_picture(tmp_path / "nothing.png")).min() == 255


@pytest.mark.parametrize(
    "name", [name for name in KINDS if not name.endswith("gif")]
)  # GIF has no such tags
def test_a_picture_of_any_kind_is_turned_upright(tmp_path, name):
    grey = drawn()
    lying = grey.transpose(Image.Transpose.ROTATE_90)
    tags = lying.getexif()
    tags[0x0112] = 6  # to be turned by a quarter, clockwise
    KINDS[name](lying).save(
        tmp_path / name, exif=tags, **({"lossless": True} if name.endswith("webp") else {})
    )
    found = read_picture(tmp_path / name)
    assert found.size == (60, 80)
    assert np.abs(np.asarray(found).astype(int) - np.asarray(grey)[:, :, None]).max() <= 1
