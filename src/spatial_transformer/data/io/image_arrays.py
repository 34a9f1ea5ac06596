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
_ARRAYS = "(H, W), (H, W, C), (B, H, W) or (B, H, W, C) with 1, 3 or 4 channels"
_TENSORS = "(H, W), (C, H, W) or (B, C, H, W) with 1, 3 or 4 channels"
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
    is_list = isinstance(images, list | tuple)
    parts: Any = images if is_list else [images]
    pictures: list[Image.Image] = []
    for part in parts:
        name = f"images[{len(pictures)}]" if is_list else "images"
        if isinstance(part, Image.Image):
            _check_not_empty(part.size, name)
            pictures.append(to_rgb(part))
        else:
            for array in _split(part, name):
                pictures.append(_to_picture(array, f"images[{len(pictures)}]"))
    if not pictures:
        raise ValueError("images is empty: got 0 images, expected at least one.")
    return pictures


def _split(part: Any, name: str) -> list[np.ndarray]:
    """Return the images of an array or tensor, each ``(H, W)`` or ``(H, W, C)``."""
    is_tensor = isinstance(part, Tensor)
    if not is_tensor and not isinstance(part, np.ndarray):
        kind, expected = type(part).__name__, "a NumPy array, a torch tensor or a PIL image"
        raise TypeError(f"{name} has the wrong type: got {kind}, expected {expected}.")
    is_float = part.is_floating_point() if is_tensor else np.issubdtype(part.dtype, np.floating)
    if not is_float and str(part.dtype).removeprefix("torch.") != "uint8":
        expected = "uint8 in 0 to 255 or floating point in [0, 1]"
        raise TypeError(f"{name} has the wrong dtype: got {part.dtype}, expected {expected}.")
    shape, ndim = tuple(part.shape), part.ndim
    _check_not_empty(shape, name)
    axis = -3 if is_tensor else -1
    has_channels = ndim == 4 or (ndim == 3 and (is_tensor or shape[-1] in CHANNELS))
    if ndim not in (2, 3, 4) or (has_channels and shape[axis] not in CHANNELS):
        expected = _TENSORS if is_tensor else _ARRAYS
        raise ValueError(f"{name} has the wrong shape: got {shape}, expected {expected}.")
    if is_tensor:
        array = (part.float() if is_float else part).detach().cpu().numpy()
        part = np.moveaxis(array, -3, -1) if has_channels else array
    return list(part) if ndim == (4 if has_channels else 3) else [part]


def _check_not_empty(shape: Sequence[int], name: str) -> None:
    if 0 in shape:
        raise ValueError(f"{name} is empty: got shape {tuple(shape)}, expected at least one pixel.")


def _to_picture(array: np.ndarray, name: str) -> Image.Image:
    """Convert an ``(H, W)`` or ``(H, W, C)`` array of a checked dtype."""
    if array.dtype != np.uint8:
        is_finite = np.isfinite(array)
        if not is_finite.all():
            value = array[~is_finite][0]
            raise ValueError(f"{name} is not finite: got {value}, expected values in [0, 1].")
        low, high = float(array.min()), float(array.max())
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise ValueError(
                f"{name} is out of range: got values from {low:g} to {high:g}, expected [0, 1] for "
                f"{array.dtype}. Use uint8 for values from 0 to 255."
            )
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))
