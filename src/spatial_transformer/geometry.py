"""Windows, boxes and projections that data and networks share (appendices A.2 and A.3).

Convention
    A window is the theta ``(s, t_x, t_y)`` of :class:`~spatial_transformer.transformer.Attention`:
    half its side and its centre, in units of half the side of the image. A box is
    ``(left, top, right, bottom)`` in pixels with edges included: a whole image of 84 px is
    ``(0, 0, 84, 84)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

THICKNESS = 8
"""Voxels by which a digit is extruded (ours: the paper does not state it)."""


def theta_to_box(theta: Tensor, size: int) -> Tensor:
    """Return the boxes ``(B, 4)`` of windows ``(B, 3)`` in an image of ``size`` pixels."""
    half, centre = theta[:, :1].abs(), theta[:, 1:]
    return torch.cat([centre - half + 1, centre + half + 1], dim=1) * (size / 2)


def box_to_theta(boxes: Tensor, size: int) -> Tensor:
    """Return the windows ``(B, 3)`` of square boxes ``(B, 4)`` in an image of ``size`` pixels."""
    corners = boxes * (2 / size) - 1
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    return torch.cat([(corners[:, 2:3] - corners[:, :1]) / 2, centre], dim=1)


def project_volume(volumes: Tensor, depth: int) -> Tensor:
    """Sum volumes over their depth: ``(..., D, H, W)`` -> ``(..., H, W)``.

    The sum of an untilted digit is the digit itself. Values are at most 1.

    Args:
        volumes: volumes of any number of layers.
        depth: depth of the volumes in voxels.
    """
    return (volumes.mean(dim=-3) * (depth / THICKNESS)).clamp(max=1)
