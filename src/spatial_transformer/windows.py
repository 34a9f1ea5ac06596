"""Windows and boxes, for the data and the network of co-localisation (appendix A.2 of the paper).

Convention
    A window is theta of :class:`~spatial_transformer.transformer.Attention`: (s, t_x, t_y), half its side and its centre in
    units of half the image's side. A box is (left, top, right, bottom) in pixels, edges included: a whole image of 84 px is
    (0, 0, 84, 84).
"""

from __future__ import annotations

import torch
from torch import Tensor


def boxes_of(windows: Tensor, size: int) -> Tensor:
    """The boxes of windows, both ``(B, ...)``, in an image of ``size`` pixels: the way back of :func:`windows_of`."""
    half, centre = windows[:, :1].abs(), windows[:, 1:]
    return torch.cat([centre - half + 1, centre + half + 1], dim=1) * (size / 2)


def windows_of(boxes: Tensor, size: int) -> Tensor:
    """The windows, ``(B, 3)``, of square boxes ``(B, 4)`` in an image of ``size`` pixels."""
    corners = boxes * (2 / size) - 1
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    return torch.cat([(corners[:, 2:3] - corners[:, :1]) / 2, centre], dim=1)
