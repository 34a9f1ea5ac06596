"""One's own pictures, of whatever kind a camera or a drawing program writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageStat
from torch import Tensor

from ..errors import UsageError
from .decoding import BROKEN, FORMATS

_UPRIGHT: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned, by its orientation tag; 1 is upright."""
MOST_PIXELS = 64_000_000
"""Decoding takes some ten bytes for each."""


class View(NamedTuple):
    """What a network gets of a picture."""

    image: Tensor
    """``(C, size, size)``, as the data module's ``samples`` have it."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of it in the picture, in pixels; it may stick out."""
    note: str = ""
    """What was done to the picture that its owner may want to know."""


def list_pictures(place: Path) -> list[Path]:
    """What a folder holds in the order of the names, hidden files left out; or the one file.

    Folders in it are listed as well: :func:`read_picture` says that they are none.

    Raises:
        UsageError: there is no such place, or no file in it.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UsageError(f"images={place}: there is no such folder or file. Way out: a picture, or a folder of pictures.")
    files = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    if not any(path.is_file() for path in files):
        raise UsageError(f"images={place}: the folder has no files in it. Way out: a folder of pictures, not of folders.")
    return files


def read_picture(path: Path) -> Image.Image:
    """A picture in RGB, upright. Of an animation it is the first frame.

    What is transparent lies on white, under light ink on black.

    More than 8 bits of grey are stretched from the darkest pixel to the brightest.

    Raises:
        UsageError: the file is no picture of :data:`FORMATS`, is damaged, or would take too much memory. The message
            does not name it.
    """
    if path.is_dir():
        raise UsageError("it is a folder. Way out: images=FOLDER, for it alone.")
    try:
        # Opened here: a TIFF that Pillow opens itself it may map into memory, where it confuses the sides of one that lies.
        with path.open("rb") as opened, Image.open(opened, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise UsageError(_too_large(f"{file.width:,} x {file.height:,} pixels"))
            return to_rgb(file)
    except Image.DecompressionBombError as error:
        raise UsageError(_too_large(str(error))) from error
    except (*BROKEN, MemoryError) as error:
        reason = "no picture of these formats" if isinstance(error, Image.UnidentifiedImageError) else f"{error}"
        raise UsageError(f"it cannot be read: {reason}. Way out: one of {', '.join(FORMATS)}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to RGB, turned upright by its orientation tag.

    What is transparent lies on white, under light ink on black. More than 8 bits of grey are
    stretched from the darkest pixel to the brightest.
    """
    # In this order: a new picture has no tags. ImageOps would write tags back that may be invalid.
    image.load()  # turns a TIFF
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return _convert_to_rgb(image if turn is None else image.transpose(turn))


def _too_large(size: str) -> str:
    return f"it is too large to be decoded: {size}. Way out: reduce it to at most {MOST_PIXELS:,} pixels."


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        grey = np.nan_to_num(np.asarray(image, dtype=np.float32))
        low, high = float(grey.min()), float(grey.max())
        return Image.fromarray(((grey - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opacity = image.getchannel("A")
        light = any(opacity.histogram()[1:]) and ImageStat.Stat(image.convert("L"), opacity).mean[0] > 127
        paper = Image.new("RGB", image.size, "black" if light else "white")
        paper.paste(image, mask=opacity)
        return paper
    return image.convert("RGB")
