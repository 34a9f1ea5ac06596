"""Image files: those of data sets, and the users' own from any camera or drawing program."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageStat

from ...utils.errors import UsageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The formats that Pillow decodes without starting another program."""
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, EOFError, zlib.error),
    *(struct.error, Image.DecompressionBombError),
)
"""What Pillow raises for damaged files, depending on their format."""
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {tag: Image.Transpose[name] for tag, name in enumerate(_TURNS.split(), 2)}
MOST_PIXELS = 64_000_000  # decoding takes about ten bytes per pixel


def decode(content: bytes) -> Image.Image:
    """Decode the content of an image file to RGB. A damaged one raises ValueError."""
    try:
        return Image.open(BytesIO(content), formats=FORMATS).convert("RGB")
    except DECODING_ERRORS as error:
        raise ValueError(str(error)) from error


def list_pictures(place: Path) -> list[Path]:
    """List a directory's visible entries in the order of their names; or the one file."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UsageError(f"images={place}: there is no such folder or file.")
    files = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    if not any(path.is_file() for path in files):
        raise UsageError(f"images={place}: the folder has no files in it.")
    return files


def read_picture(path: Path) -> Image.Image:
    """Read a picture in RGB, upright. The first frame of an animation counts.

    Transparent pictures are put on white, or on black if they are light. More than 8 bits of grey
    are stretched from the darkest pixel to the brightest.

    Raises:
        UsageError: it is not a picture, or damaged, or too large. The message does not name it.
    """
    if not path.is_file():  # a pipe would wait for ever
        raise UsageError("it is a folder." if path.is_dir() else "it is not a regular file.")
    try:
        # Opened here: Pillow may map a TIFF that it opens itself into memory, and then confuses
        # the sides of one that states them wrongly.
        with path.open("rb") as opened, Image.open(opened, formats=FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise UsageError(_too_large(f"{file.width:,} x {file.height:,} pixels"))
            return to_rgb(file)
    except Image.DecompressionBombError as error:
        raise UsageError(_too_large(str(error))) from error
    except (*DECODING_ERRORS, MemoryError) as error:
        is_unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"no picture of these formats: {', '.join(FORMATS)}" if is_unknown else error
        raise UsageError(f"it cannot be read: {reason}.") from error


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
    return f"it is too large: got {size}, expected at most {MOST_PIXELS:,} pixels."


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, dtype=np.float32)
        if np.isinf(grey).any():
            raise ValueError("its values must be finite, got an infinite one")
        grey = np.nan_to_num(grey)
        low, high = float(grey.min()), float(grey.max())
        scale = 255 / max(high - low, 1e-6)
        return Image.fromarray(((grey - low) * scale).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opacity = image.getchannel("A")
        is_visible = any(opacity.histogram()[1:])
        light = is_visible and ImageStat.Stat(image.convert("L"), opacity).mean[0] > 127
        paper = Image.new("RGB", image.size, "black" if light else "white")
        paper.paste(image, mask=opacity)
        return paper
    return image.convert("RGB")
