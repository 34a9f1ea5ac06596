"""Rotated photographs of birds (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.errors import UsageError
from ...utils.random import sample_keys, uniform
from ..base import FIXED_SEEDS
from .datamodule import MEAN_COLOUR, CubData


class RotatedCubData(CubData):
    """Crops of :class:`CubData`, rotated about their centre by a random angle.

    A training image has another angle in each epoch. The angle of a validation or test image is the
    same for every run. The corners that a rotation uncovers have ImageNet's mean colour.

    Args:
        root, species, size, cache, batch_size, eval_batch_size: as for :class:`CubData`.
        augment, seed, workers: as for :class:`CubData`. The seed is also that of the angles.
        max_angle: angles are uniform in ±``max_angle`` degrees, 0 to 180.

    Raises:
        UsageError: a setting is out of range.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        species: str | int | Sequence[str | int] | None = None,
        size: int = 224,
        cache: str | Path | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 100,
        augment: bool = True,
        seed: int = 1,
        workers: int | None = None,
        max_angle: float = 90.0,
    ) -> None:
        super().__init__(
            root, species, size, cache, batch_size, eval_batch_size, augment, seed, workers
        )
        if not 0 <= max_angle <= 180:
            raise UsageError(f"data.max_angle must be 0 to 180 degrees, got {max_angle}.")
        self.max_angle = max_angle

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return rotated images ``(B, 3, size, size)`` in [0, 1], and labels ``(B,)``."""
        images, labels = super().samples(split, index, epoch)
        return rotate(images, self.angles(split, index, epoch).to(images.device)), labels

    def angles(self, split: str, index: Tensor, epoch: int = 0) -> Tensor:
        """Return the angles of images in radians, ``(B,)`` on the CPU.

        *Convention*: a positive angle turns the content of an image clockwise.
        """
        if split == "train":
            draws = uniform(sample_keys(self.seed, epoch, index.cpu()), 4)[:, 3]
        else:  # by CUB's number of the image, so that the choice of species has no effect
            ids = torch.from_numpy(self.birds.ids[self._positions[split]])[index.cpu()]
            draws = uniform(sample_keys(FIXED_SEEDS[split], 0, ids), 1)[:, 0]
        return (2 * draws - 1) * math.radians(self.max_angle)

    def _fixed_positions(self, split: str) -> np.ndarray:
        raise UsageError("Rotated crops have no annotations. Choose data=cub.")


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate images about their centre, with the mean colour outside of them.

    Args:
        images: ``(B, 3, H, H)`` in [0, 1].
        angles: ``(B,)`` in radians, clockwise.
    """
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    to_source = torch.stack([cos, sin, zero, -sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(to_source, list(images.shape), align_corners=False)
    mean = images.new_tensor(MEAN_COLOUR).view(3, 1, 1)
    return F.grid_sample(images - mean, grid, align_corners=False).add_(mean).clamp_(0, 1)
