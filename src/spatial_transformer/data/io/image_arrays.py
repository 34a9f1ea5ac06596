"""Images in memory as RGB pictures: NumPy arrays, torch tensors and PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from .image_files import to_rgb

ImageLike: TypeAlias = np.ndarray | Tensor | Image.Image
"""One image, or a batch of images in one array or tensor."""
CHANNELS = (1, 3, 4)
"""Numbers of channels: grey, RGB, and RGB with opacity."""
_SHAPES = "arrays (H, W), (B, H, W) or (..., H, W, C), or tensors (H, W) or (..., C, H, W)"
_TOLERANCE = 1e-4  # of the range [0, 1], for the rounding errors of resampled images


def to_pictures(images: ImageLike | Sequence[ImageLike]) -> list[Image.Image]:
    """Convert images to RGB pictures of 8 bits.

    A NumPy array has its channels last: ``(H, W)``, ``(H, W, C)``, ``(B, H, W)`` or
    ``(B, H, W, C)`` with 1, 3 or 4 channels. With three axes it is one image if the last axis has
    length 1, 3 or 4. A tensor has its channels first: ``(H, W)``, ``(C, H, W)`` or
    ``(B, C, H, W)``. Values are uint8, or floating point in [0, 1]. Transparent images get a
    background as by :func:`.image_files.to_rgb`.

    Args:
        images: array, tensor or PIL image, or a list of these.

    Returns:
        All images in order.

    Raises:
        TypeError: the type or the dtype is wrong.
        ValueError: the shape is wrong, there is no image, or a value is NaN or out of range.
    """
    parts: Any = images if isinstance(images, list | tuple) else [images]
    pictures: list[Image.Image] = []
    for part in parts:
        for image in [part] if isinstance(part, Image.Image) else _split(part):
            try:
                pictures.append(to_rgb(image) if isinstance(image, Image.Image) else _draw(image))
            except ValueError as error:
                raise ValueError(f"images[{len(pictures)}]: {error}") from error
    if not pictures:
        raise ValueError("images must contain at least one image, got 0.")
    return pictures


def _split(part: Any) -> list[np.ndarray]:
    """Return the images of an array or tensor, each ``(H, W)`` or ``(H, W, C)``."""
    is_tensor = isinstance(part, Tensor)
    if is_tensor:
        part = part.detach().cpu()
        part = (part.float() if part.is_floating_point() else part).numpy()
    if not isinstance(part, np.ndarray):
        kind = type(part).__name__
        raise TypeError(f"images must be NumPy arrays, tensors or PIL images, got {kind}.")
    if part.dtype != np.uint8 and not np.issubdtype(part.dtype, np.floating):
        raise TypeError(f"images must be uint8, or floating point in [0, 1], got {part.dtype}.")
    axis = -3 if is_tensor else -1
    is_3d_image = part.ndim == 3 and (is_tensor or part.shape[axis] in CHANNELS)
    has_channels = part.ndim == 4 or is_3d_image
    if part.ndim not in (2, 3, 4) or (has_channels and part.shape[axis] not in CHANNELS):
        raise ValueError(f"images must be {_SHAPES}, with C of 1, 3 or 4, got {part.shape}.")
    if has_channels:
        part = np.moveaxis(part, axis, -1)
    return list(part) if part.ndim == 3 + has_channels else [part]


def _draw(array: np.ndarray) -> Image.Image:
    """Convert an ``(H, W)`` or ``(H, W, C)`` array of a checked dtype."""
    if array.size == 0:
        raise ValueError(f"it must have at least one pixel, got shape {array.shape}.")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # also NaN
            raise ValueError(
                f"its values must be in [0, 1], got values from {low:g} to {high:g}. Use uint8 "
                "for values from 0 to 255."
            )
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return to_rgb(Image.fromarray(array))
