"""Pictures of all kinds, read as upright RGB."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from spatial_transformer.data.io.image_files import read_picture


def draw_line():
    grey = Image.new("L", (60, 80), 255)
    ImageDraw.Draw(grey).line([(20, 10), (40, 70)], fill=0, width=9)
    return grey


def with_opacity(grey):
    black = grey.point(lambda value: 0)
    return Image.merge("RGBA", (black, black, black, ImageOps.invert(grey)))


KINDS = {
    "1.png": lambda grey: grey.convert("1"),
    "palette.png": lambda grey: grey.convert("P"),
    "la.png": lambda grey: Image.merge("LA", (grey, grey.point(lambda value: 255))),
    "rgba.png": with_opacity,
    "16 bit.png": lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    "float.tiff": lambda grey: grey.convert("F"),
    "cmyk.tiff": lambda grey: grey.convert("CMYK"),
    "drawing.webp": lambda grey: grey.convert("RGB"),
    "animation.gif": lambda grey: grey,
}
OPTIONS = {
    "drawing.webp": {"lossless": True},
    "animation.gif": {"save_all": True, "append_images": [Image.new("L", (60, 80))]},
}


def assert_is_the_line(path):
    found = read_picture(path)
    assert (found.mode, found.size) == ("RGB", (60, 80))
    expected = np.asarray(draw_line())[:, :, None]
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", KINDS)
def test_pictures_of_all_kinds_are_read(tmp_path, name):
    KINDS[name](draw_line()).save(tmp_path / name, **OPTIONS.get(name, {}))
    assert_is_the_line(tmp_path / name)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "animation.gif"])
def test_pictures_are_rotated_by_their_tag(tmp_path, name):
    picture = draw_line().transpose(Image.Transpose.ROTATE_90)
    tags = picture.getexif()
    tags[0x0112] = 6  # rotate by 90 degrees, clockwise
    KINDS[name](picture).save(tmp_path / name, exif=tags, **OPTIONS.get(name, {}))
    assert_is_the_line(tmp_path / name)


@pytest.mark.parametrize("name", ["odd.jpg", "odd.png"])
def test_invalid_tags_are_ignored(tmp_path, name):
    tags = b"II*\0" + struct.pack("<IH", 8, 2)  # two tags
    tags += struct.pack("<HHII", 0x0112, 3, 1, 6)  # the orientation
    tags += struct.pack("<HHI4s", 0x011A, 2, 3, b"72\0") + bytes(4)  # a resolution that is text
    picture = draw_line().transpose(Image.Transpose.ROTATE_90)
    picture.save(tmp_path / name, exif=b"Exif\0\0" + tags)
    assert read_picture(tmp_path / name).size == (60, 80)


def test_light_transparent_pictures_have_a_black_background(tmp_path):
    ink = ImageOps.invert(draw_line())
    white = ink.point(lambda value: 255)
    Image.merge("RGBA", (white, white, white, ink)).save(tmp_path / "chalk.png")
    found = np.asarray(read_picture(tmp_path / "chalk.png"))
    assert np.array_equal(found, np.asarray(ink.convert("RGB")))
    Image.new("RGBA", (60, 80), (255, 255, 255, 0)).save(tmp_path / "nothing.png")
    assert np.asarray(read_picture(tmp_path / "nothing.png")).min() == 255
