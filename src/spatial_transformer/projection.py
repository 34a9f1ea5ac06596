"""What is seen of a volume along its depth, for the data and the networks of appendix A.3 of the paper."""

from __future__ import annotations

from torch import Tensor

THICKNESS = 8
"""Voxels that a digit is extruded by (ours; the paper does not say)."""


def project(volumes: Tensor, depth: int) -> Tensor:
    """Sums over depth, ``(..., D, H, W)`` -> ``(..., H, W)``, in units in which an untilted digit is what it was, at most 1.

    Args:
        volumes: a volume of any number of layers.
        depth: how many voxels deep it is.
    """
    return (volumes.mean(dim=-3) * (depth / THICKNESS)).clamp(max=1)
