"""Digits in photographs and drawings, converted to MNIST's format: light ink on black.

As in MNIST (LeCun et al. 1998), the longer side of the ink is 20 pixels, and its centre of mass is
at the centre of the image. The ink is first separated from unevenly lit paper (ours).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from ...utils.errors import UsageError
from ..base import PreprocessedPicture

SIDE = 20  # pixels: longer side of a digit of MNIST
MIN_STROKE = 2.0  # pixels: thinner strokes are widened to it; MNIST's are 2 to 3 pixels wide
_SEARCH_SIDE = 384  # pixels: longer side of the picture in which ink is searched
_MAX_STROKE = 0.25  # of the longer side of the picture
_SPECK = 30  # pixels
_MIN_CONTRAST = 0.06  # of ink and paper, in [0, 1]
_MIN_SIGNAL = 4.0  # contrast, as a multiple of the roughness of the paper


def preprocess_photo(picture: Image.Image, size: int) -> PreprocessedPicture:
    """Return the digit of an RGB picture as the ``(1, size, size)`` input of a network for MNIST.

    A picture of this size is used as it is, or inverted if its border is bright.

    Raises:
        UsageError: the picture has no ink.
    """
    grey = picture.convert("L")
    if picture.size == (size, size):
        values = _to_array(grey)
        border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        is_dark = bool(np.median(border) > 0.5)
        image = torch.from_numpy(1 - values if is_dark else values)[None]
        note = "taken as it is, inverted" if is_dark else "taken as it is"
        return PreprocessedPicture(image, (0, 0, size, size), note)
    shrink = max(1.0, max(grey.size) / _SEARCH_SIDE)
    small = grey.resize([max(1, round(side / shrink)) for side in grey.size], Image.Resampling.BOX)
    ink, is_dark = find_ink(_to_array(small))
    digit = ink * _select_parts(ink > 0.5)
    box = _digit_box(digit, size)
    left, top, right, bottom = (box.reshape(2, 2) * grey.size / small.size).flatten().tolist()
    image = _render(digit, box, size)
    notes = ["dark on light: inverted"] if is_dark else []
    parts = _label_parts(image[0] > 0.5)
    areas = parts[parts > 0].unique(return_counts=True)[1]
    if len(areas) > 1 and (large := int((areas * 10 >= areas.max()).sum())) > 1:
        notes.append(f"{large} separate shapes: expected one digit")
    return PreprocessedPicture(image, (left, top, right, bottom), "; ".join(notes))


def find_ink(grey: np.ndarray) -> tuple[np.ndarray, bool]:
    """Separate ink from paper. Either may be darker, and the light uneven.

    Ink is what deviates from the brightness around it, in the rarer direction. A morphological
    closing of the image (an opening for light ink) removes strokes and leaves the paper.

    Args:
        grey: ``(H, W)`` float32 in [0, 1].

    Returns:
        The amount of ink, ``(H, W)`` float32 in [0, 1], and whether it is darker than the paper.

    Raises:
        UsageError: nothing stands out from the roughness of the paper.
    """
    half = max(1, round(max(grey.shape) * _MAX_STROKE / 2))
    image = torch.from_numpy(grey)[None, None]
    padded = F.pad(image, (half,) * 4, mode="replicate")  # a digit may fill the picture
    is_dark = float((padded - _mean_filter(padded, half)).pow(3).sum()) < 0
    bright = 1 - image if is_dark else image
    paper = _max_filter(-_max_filter(-bright, half), half)
    strength = (bright - paper)[0, 0].numpy()
    # Half of the maximum, without specks: ink may be a thousandth of the picture or most of it.
    maximum = np.sort(strength, axis=None)[-max(1, min(_SPECK, strength.size // _SPECK))]
    threshold = (maximum + np.quantile(strength, 0.25)) / 2
    core, rest = strength[strength > threshold], strength[strength <= threshold]
    level, full = (float(np.median(part)) if len(part) else 0.0 for part in (rest, core))
    roughness = 1.4826 * float(np.median(np.abs(rest - level))) if len(rest) else 0.0
    if full - level < max(_MIN_CONTRAST, _MIN_SIGNAL * roughness):
        raise UsageError(
            "it shows no digit: its brightness is nearly the same everywhere. Use darker ink, or "
            "more light."
        )
    # Above three quarters of full strength all is ink, below a quarter all is paper.
    relative = (strength - level) / (full - level)
    return (2 * relative - 0.5).clip(0, 1).astype(np.float32), is_dark


def _to_array(grey: Image.Image) -> np.ndarray:
    return np.asarray(grey, dtype=np.float32) / 255


def _max_filter(image: Tensor, half: int) -> Tensor:
    """Return the maximum of ``(1, 1, H, W)`` in a square that reaches ``half`` pixels."""
    rows = F.max_pool2d(image, (1, 2 * half + 1), 1, (0, half))
    return F.max_pool2d(rows, (2 * half + 1, 1), 1, (half, 0))


def _mean_filter(image: Tensor, half: int) -> Tensor:
    """Return the mean of the pixels inside the image, in the same square."""
    rows = F.avg_pool2d(image, (1, 2 * half + 1), 1, (0, half), count_include_pad=False)
    return F.avg_pool2d(rows, (2 * half + 1, 1), 1, (half, 0), count_include_pad=False)


def _select_parts(mask: np.ndarray) -> np.ndarray:
    """Return a mask's large connected parts, each grown by a pixel for soft edges.

    Large is at least a tenth of the largest area. Parts that touch the border (the edge of the
    paper, a shadow) are left out if there are others.
    """
    parts = _label_parts(torch.from_numpy(mask))
    cut_off = torch.cat([parts[0], parts[-1], parts[:, 0], parts[:, -1]]).unique()
    whole = parts * ~torch.isin(parts, cut_off)
    if whole.any():
        parts = whole
    names, areas = parts[parts > 0].unique(return_counts=True)
    large = torch.isin(parts, names[areas * 10 >= areas.max()]).float()
    return F.max_pool2d(large[None, None], 3, 1, 1)[0, 0].numpy()


def _label_parts(mask: Tensor) -> Tensor:
    """Return a number for each connected part of an ``(H, W)`` mask, and 0 elsewhere."""
    inside = mask.float()[None, None]
    labels = torch.arange(1.0, mask.numel() + 1).view_as(inside) * inside
    while True:  # the highest label of a part spreads to neighbours, and to where it came from
        spread = F.max_pool2d(labels, 3, 1, 1) * inside
        spread = torch.maximum(spread, spread.flatten()[(spread.long() - 1).clamp(min=0)]) * inside
        if torch.equal(spread, labels):
            return labels[0, 0].long()
        labels = spread


def _digit_box(digit: np.ndarray, size: int) -> np.ndarray:
    """Return left, top, right and bottom of the square that becomes the network's input."""
    rows, columns = (np.flatnonzero(digit.max(axis) > 0.5) for axis in (1, 0))
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    half = longer / SIDE * size / 2
    y, x = (
        (digit.sum(axis) * (np.arange(n) + 0.5)).sum() / digit.sum()
        for axis, n in zip((1, 0), digit.shape)
    )
    return np.array([x - half, y - half, x + half, y + half])


def _render(digit: np.ndarray, box: np.ndarray, size: int) -> Tensor:
    """Resize a box to ``(1, size, size)``, with strokes of at least :data:`MIN_STROKE`."""
    first, last = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    image = Image.fromarray((digit * 255).round().astype(np.uint8))
    image = image.crop((*first.tolist(), *last.tolist()))
    missing = MIN_STROKE * (box[2] - box[0]) / size - _stroke_width(np.asarray(image) > 127)
    if missing > 1:
        image = image.filter(ImageFilter.MaxFilter(2 * round(missing / 2) + 1))
    inner = tuple((box - np.tile(first, 2)).tolist())
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=inner)
    return torch.from_numpy(_to_array(image))[None]


def _stroke_width(mask: np.ndarray) -> float:
    """Return twice the area over the length of the outline, in pixels."""
    padded = np.pad(mask, 1).astype(np.int8)
    outline = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    # A slanted line has more pixel edges than length: in the mean over all directions 4 / pi times.
    return 2 * mask.sum() / max(outline * np.pi / 4, 1)
