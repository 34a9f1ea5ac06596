"""Digits in three dimensions (appendix A.3 of the paper): extruded, rotated, placed in a volume.

Convention:
    Volumes are ``(B, 1, D, H, W)`` with values in [0, 1] and background 0, seen along the depth D.
    Points are (x, y, z) in voxels from the centre of a cube. Rotations are ``(B, 3, 3)`` and rotate
    the digit.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...geometry import THICKNESS, project_volume
from ...utils.errors import UsageError
from ...utils.random import integers, uniform
from .distorted import MnistData
from .distortions import DIGIT

CUBE = 40
"""Side of the cube that holds any rotated digit, in voxels. Only black corners may be cut."""
MAX_TILT = 60
"""Largest angle between a digit's plane and the projection plane, in degrees (ours)."""
CANVAS = 60


class Mnist3dData(MnistData):
    """MNIST digits extruded to a thickness of 8, rotated, tilted and placed in a volume.

    A digit is rotated in its plane by an angle uniform in ±45 degrees, as in RTS. Then its plane is
    tilted, so that its normal is uniform on the cap within 60 degrees of the depth axis. Last, the
    cube that holds it is placed at a uniform random whole-voxel location (ours; the paper only says
    "randomly placed and rotated").

    Args:
        canvas: depth, height and width of the volume in voxels.
        root, batch_size, eval_batch_size, fresh, seed: as for
            :class:`~spatial_transformer.data.mnist.MnistData`.

    Raises:
        UsageError: a setting is out of range.
    """

    unsupported_reason = "its images are volumes"
    display_views = "front, side, middle slice"

    def __init__(
        self,
        canvas: int = CANVAS,
        root: str | Path | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 200,
        fresh: bool = True,
        seed: int = 1,
    ) -> None:
        if canvas < CUBE:
            raise UsageError(
                f"data.canvas must be at least {CUBE}, to hold a rotated digit, got {canvas}."
            )
        super().__init__("t", canvas, root, batch_size, eval_batch_size, fresh, seed)

    def _distort(self, split: str, index: Tensor, keys: Tensor) -> Tensor:
        cubes = extrude(self._digits(split, index), draw_rotations(keys))
        room = self.input_size - CUBE
        volumes = cubes.new_zeros(len(cubes), 1, *[self.input_size] * 3)
        corners = integers(keys, 3, room + 1, stream=1).tolist()
        for volume, cube, (z, y, x) in zip(volumes, cubes, corners, strict=True):
            volume[:, z : z + CUBE, y : y + CUBE, x : x + CUBE] = cube
        return volumes

    def to_display(self, images: Tensor) -> Tensor:
        """Return front view, side view and middle slice: ``(..., 1, H, W + D + W)``."""
        front = project_volume(images, self.input_size)
        side = project_volume(images.transpose(-3, -1), self.input_size)
        return torch.cat([front, side, images[..., images.shape[-3] // 2, :, :]], dim=-1)


def draw_rotations(keys: Tensor) -> Tensor:
    """Return a random rotation for each key: ``(B, 3, 3)``."""
    unit = uniform(keys, 3)
    cap = 1 - math.cos(math.radians(MAX_TILT))
    angle, tilt = math.pi / 2 * (unit[:, 0] - 0.5), torch.acos(1 - cap * unit[:, 1])
    return rotation_matrices(angle, tilt, 2 * math.pi * unit[:, 2])


def rotation_matrices(angle: Tensor, tilt: Tensor, direction: Tensor) -> Tensor:
    """Return ``(B, 3, 3)`` rotations about the depth axis, then about an axis in the plane.

    Args:
        angle: ``(B,)`` radians about the depth axis, clockwise on the screen.
        tilt: ``(B,)`` radians about the axis in the plane.
        direction: ``(B,)`` radians, of that axis in the plane.
    """
    axis = _about_depth(direction)
    cos, sin, zero, one = tilt.cos(), tilt.sin(), torch.zeros_like(tilt), torch.ones_like(tilt)
    rows = [one, zero, zero, zero, cos, -sin, zero, sin, cos]
    about_x = torch.stack(rows, dim=1).view(-1, 3, 3)
    return axis @ about_x @ axis.mT @ _about_depth(angle)


def _about_depth(angle: Tensor) -> Tensor:
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, one]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def extrude(digits: Tensor, rotations: Tensor, side: int = CUBE) -> Tensor:
    """Extrude digits and rotate them: ``(B, 1, 28, 28)`` to ``(B, 1, side, side, side)``.

    A point of a cube is rotated back and the digit is sampled there, bilinearly. In depth, the
    digit fades over one voxel, as trilinear interpolation of the extruded digit would give.

    Args:
        digits: the digits.
        rotations: ``(B, 3, 3)``.
        side: of the cubes in voxels.
    """
    axis = torch.arange(side, device=digits.device, dtype=torch.float32) - (side - 1) / 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = rotations.mT @ torch.stack([x.flatten(), y.flatten(), z.flatten()])  # (B, 3, side^3)
    grid = (points[:, :2] * (2 / DIGIT)).mT[:, None]
    values = F.grid_sample(digits, grid, padding_mode="zeros", align_corners=False)[:, :, 0]
    inside = ((THICKNESS + 1) / 2 - points[:, 2:].abs()).clamp(0, 1)
    return (values * inside).unflatten(2, (side, side, side))
