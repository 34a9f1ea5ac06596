"""Image files, decoded."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Of all that Pillow knows, those that it decodes by itself: others start programs."""

BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, EOFError, zlib.error, struct.error),
    Image.DecompressionBombError,
)
"""What Pillow raises for broken files, of one format or another."""


def decoded(content: bytes) -> Image.Image:
    """The image of a file's content, in RGB whatever it is there.

    Raises:
        ValueError: it cannot be decoded as a whole.
    """
    try:
        return Image.open(BytesIO(content), formats=FORMATS).convert("RGB")
    except BROKEN as error:
        raise ValueError(str(error)) from error
