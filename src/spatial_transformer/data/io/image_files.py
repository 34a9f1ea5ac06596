"""Image files of data sets, and of users with any camera or drawing program."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageStat

from ...utils.errors import UsageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The formats that Pillow decodes without starting another program."""
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, EOFError, zlib.error),
    *(struct.error, Image.DecompressionBombError, MemoryError),
)
"""What Pillow raises for damaged files, depending on their format."""
MAX_PIXELS = 64_000_000  # decoding takes about ten bytes per pixel
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {tag: Image.Transpose[name] for tag, name in enumerate(_TURNS.split(), 2)}


def read_image(path: Path) -> Image.Image:
    """Read an image of a data set as RGB.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            return file.convert("RGB")
    except DECODING_ERRORS as error:
        raise UsageError(
            f"The image {path.absolute()} cannot be read: {error}.\n"
            "Unpack the archive of the data set again."
        ) from error


def list_pictures(path: Path) -> list[Path]:
    """Return a file, or a directory's visible entries in the order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"images={path} does not exist.")
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    if not any(entry.is_file() for entry in entries):
        raise UsageError(f"images={path} contains no files.")
    return entries


def read_picture(path: Path) -> Image.Image:
    """Read a picture as by :func:`to_rgb`. Of an animation, read the first frame.

    Raises:
        UsageError: it is not a picture, or damaged, or too large. The message does not name it.
    """
    if not path.is_file():  # opening a pipe would block
        raise UsageError("it is a folder." if path.is_dir() else "it is not a regular file.")
    try:
        # Pillow may memory-map a TIFF that it opens itself, and then misreads a wrong size.
        with path.open("rb") as opened, Image.open(opened, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UsageError(
                    f"it is too large: got {file.width:,} x {file.height:,} pixels, expected at "
                    f"most {MAX_PIXELS:,}."
                )
            return to_rgb(file)
    except DECODING_ERRORS as error:
        is_unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"no picture of these formats: {', '.join(FORMATS)}" if is_unknown else error
        raise UsageError(f"it cannot be read: {reason}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to RGB, rotated upright by its orientation tag.

    A transparent image gets a white background, or a black one if it is light. Grey values of more
    than 8 bits are stretched from the darkest pixel to the brightest.
    """
    # ImageOps.exif_transpose would write tags back, which may be invalid.
    image.load()  # rotates a TIFF
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image, dtype=np.float32)
        if not np.isfinite(grey).all():
            raise ValueError("its values must be finite, got NaN or an infinite one")
        low, high = float(grey.min()), float(grey.max())
        scale = 255 / max(high - low, 1e-6)
        return Image.fromarray(((grey - low) * scale).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opacity = image.getchannel("A")
        is_visible = any(opacity.histogram()[1:])
        is_light = is_visible and ImageStat.Stat(image.convert("L"), opacity).mean[0] > 127
        background = Image.new("RGB", image.size, "black" if is_light else "white")
        background.paste(image, mask=opacity)
        return background
    return image.convert("RGB")
