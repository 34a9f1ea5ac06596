"""Digits in photographs and drawings, converted to MNIST's format: light ink on black, of MNIST's size and strength.

As in MNIST (LeCun et al. 1998), the ink's longer side is 20 pixels, and its centre of mass is the centre of the image.
Before that, the ink is found on unevenly lit paper (ours).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from ...utils.errors import UsageError
from ..base import PreprocessedPicture

SIDE = 20  # pixels: longer side of a digit of MNIST
STROKE = 2.0  # pixels: thinner strokes are widened to it; MNIST's are 2 to 3 pixels wide
_SEEN = 384  # pixels of the longer side that ink is looked for in
_WIDEST = 0.25  # stroke, of the longer side of the picture
_SPECK = 30  # pixels
_LEAST_CONTRAST = 0.06  # of ink to paper, of 1
_FAINTEST = 4.0  # times the paper's own roughness


class Ink(NamedTuple):
    """The ink in a picture."""

    amount: np.ndarray  # (H, W) float32 in [0, 1]
    dark: bool  # whether it is darker than its paper


def digit_view(picture: Image.Image, size: int) -> PreprocessedPicture:
    """Return the digit of an RGB picture as the input of a network for MNIST, ``size`` pixels high and wide.

    A picture of this size is not changed, but for dark ink, which is made light.

    Raises:
        UsageError: the picture has no ink.
    """
    grey = picture.convert("L")
    if picture.size == (size, size):
        values = np.asarray(grey, dtype=np.float32) / 255
        edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        dark = bool(np.median(edge) > 0.5)
        image = torch.from_numpy(1 - values if dark else values)[None]
        return PreprocessedPicture(
            image, (0, 0, size, size), "taken as it is" + (", inverted" if dark else "")
        )
    shrunk = max(1.0, max(grey.size) / _SEEN)
    small = grey.resize([max(1, round(side / shrunk)) for side in grey.size], Image.Resampling.BOX)
    ink = find_ink(np.asarray(small, dtype=np.float32) / 255)
    digit = ink.amount * largest_parts(ink.amount > 0.5)
    box = digit_box(digit, size)
    image = _drawn(digit, box, size)
    scale = np.array(grey.size) / small.size
    left, top, right, bottom = (np.array(box).reshape(2, 2) * scale).flatten().tolist()
    return PreprocessedPicture(
        image, (left, top, right, bottom), "dark on light: inverted" if ink.dark else ""
    )


def find_ink(grey: np.ndarray) -> Ink:
    """Separate ink from paper in ``(H, W)`` float32 grey values in [0, 1]. Either may be darker, and the light uneven.

    Ink is the rarer deviation from the brightness around it. Strokes narrower than :data:`_WIDEST` are what a closing of
    the image (for light ink, an opening) removes. The paper is what remains.

    Raises:
        UsageError: nothing stands out from the roughness of the paper.
    """
    half = max(1, round(max(grey.shape) * _WIDEST / 2))
    image = torch.from_numpy(grey)[None, None]
    framed = F.pad(image, (half,) * 4, mode="replicate")  # a digit may fill the picture
    dark = float((framed - _mean(framed, half)).pow(3).sum()) < 0
    bright = 1 - image if dark else image  # the ink is
    paper = _highest(-_highest(-bright, half), half)
    strength = (bright - paper)[0, 0].numpy()
    # Half of the strongest, though not of single specks: ink may be a thousandth of the picture or most of it.
    strongest = np.sort(strength, axis=None)[-max(1, min(_SPECK, strength.size // _SPECK))]
    threshold = (strongest + np.quantile(strength, 0.25)) / 2
    core, rest = strength[strength > threshold], strength[strength <= threshold]
    level, full = (float(np.median(part)) if len(part) else 0.0 for part in (rest, core))
    rough = 1.4826 * float(np.median(np.abs(rest - level))) if len(rest) else 0.0
    if full - level < max(_LEAST_CONTRAST, _FAINTEST * rough):
        raise UsageError(
            "it shows no digit: its brightness is nearly the same everywhere. Use darker ink, or more light."
        )
    # Above three quarters of full strength all is ink, below a quarter all is paper.
    relative = (strength - level) / (full - level)
    return Ink((2 * relative - 0.5).clip(0, 1).astype(np.float32), dark)


def _highest(image: Tensor, half: int) -> Tensor:
    """The highest value of ``(1, 1, H, W)`` within ``half`` pixels of each, to the sides, up and down."""
    return F.max_pool2d(
        F.max_pool2d(image, (1, 2 * half + 1), 1, (0, half)), (2 * half + 1, 1), 1, (half, 0)
    )


def _mean(image: Tensor, half: int) -> Tensor:
    """The mean likewise, of the pixels that there are."""
    rows = F.avg_pool2d(image, (1, 2 * half + 1), 1, (0, half), count_include_pad=False)
    return F.avg_pool2d(rows, (2 * half + 1, 1), 1, (half, 0), count_include_pad=False)


def largest_parts(mask: np.ndarray) -> np.ndarray:
    """Of connected parts of a mask, those of at least a tenth of the largest's area; grown by a pixel, for soft edges.

    What the border cuts off (the edge of the paper, a shadow) counts only where there is nothing else.
    """
    inside = torch.from_numpy(mask).float()[None, None]
    numbers = torch.arange(1.0, mask.size + 1).view_as(inside) * inside
    while True:
        # The highest number of a part spreads over it: to the neighbours, and to where their numbers came from.
        spread = F.max_pool2d(numbers, 3, 1, 1) * inside
        spread = torch.maximum(spread, spread.flatten()[(spread.long() - 1).clamp(min=0)]) * inside
        if torch.equal(spread, numbers):
            break
        numbers = spread
    parts = numbers[0, 0].long()
    cut_off = torch.cat([parts[0], parts[-1], parts[:, 0], parts[:, -1]]).unique()
    whole = parts * ~torch.isin(parts, cut_off)
    if whole.any():
        parts = whole
    names, areas = parts[parts > 0].unique(return_counts=True)
    kept = torch.isin(parts, names[areas * 10 >= areas.max()]).float()
    return F.max_pool2d(kept[None, None], 3, 1, 1)[0, 0].numpy()


def digit_box(digit: np.ndarray, size: int) -> tuple[float, float, float, float]:
    """The square around a digit that becomes an image of ``size``: left, top, right and bottom in pixels of ``digit``."""
    rows, columns = (np.flatnonzero(digit.max(axis) > 0.5) for axis in (1, 0))
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    half = longer / SIDE * size / 2
    y, x = (
        float((digit.sum(axis) * (np.arange(n) + 0.5)).sum() / digit.sum())
        for axis, n in zip((1, 0), digit.shape)
    )
    return x - half, y - half, x + half, y + half


def _drawn(digit: np.ndarray, box: tuple[float, float, float, float], size: int) -> Tensor:
    """What lies in a box, with strokes of at least :data:`STROKE`, reduced to ``(1, size, size)``; nothing lies outside."""
    left, top, right, bottom = box
    first, last = (
        np.floor([left, top]).astype(int).tolist(),
        np.ceil([right, bottom]).astype(int).tolist(),
    )
    around = Image.fromarray((digit * 255).round().astype(np.uint8)).crop((*first, *last))
    missing = STROKE * (right - left) / size - _stroke_width(np.asarray(around) > 127)
    if missing > 1:
        around = around.filter(ImageFilter.MaxFilter(2 * round(missing / 2) + 1))
    place = (left - first[0], top - first[1], right - first[0], bottom - first[1])
    image = around.resize((size, size), Image.Resampling.BILINEAR, box=place)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def _stroke_width(mask: np.ndarray) -> float:
    """Twice the area over the length of the outline, in pixels."""
    padded = np.pad(mask, 1).astype(np.int8)
    outline = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    # A slanted line has more pixel edges than length: in the mean over all directions 4 / pi times.
    return 2 * mask.sum() / max(outline * np.pi / 4, 1)
