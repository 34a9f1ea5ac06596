"""Digits in three dimensions (appendix A.3 of the paper): extruded, rotated and placed at random in a volume.

Convention
    Volumes are ``(B, 1, D, H, W)`` with values in [0, 1] and background 0, seen along their depth D. Points are (x, y, z) in
    voxels from the centre of a cube; rotations are ``(B, 3, 3)`` and turn the digit.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..projection import THICKNESS, project
from .distortions import DIGIT
from .keyed import integers, uniform
from .mnist import MnistData

CUBE = 40
"""Side of the cube that holds an extruded digit however it is turned, in voxels; only black corners of the image may be cut."""
MAX_TILT = 60
"""Degrees by which a digit's plane is tilted out of the projection plane, at most (ours)."""
CANVAS = 60


class Mnist3dData(MnistData):
    """MNIST digits extruded to a thickness of 8, turned, tilted and placed in a volume.

    In its plane a digit is turned by an angle uniform in +-45 degrees, as in RTS; then its plane is tilted to any side, so
    that its normal is uniform on the cap within 60 degrees of the depth axis; then the cube that holds it is placed at a
    uniform random whole-voxel location. The paper says "randomly placed and rotated" and no more.

    Args:
        canvas: depth, height and width of the volume in voxels.
        root, batch_size, eval_batch_size, fresh, seed: as for :class:`~spatial_transformer.data.mnist.MnistData`.

    Raises:
        UsageError: a setting out of range.
    """

    no_pictures = "its images are volumes"

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
                f"data.canvas={canvas} is too small: a digit needs {CUBE} voxels however it is turned. Way out: {CANVAS}."
            )
        super().__init__("t", canvas, root, batch_size, eval_batch_size, fresh, seed)

    def _distorted(self, split: str, index: Tensor, keys: Tensor) -> Tensor:
        cubes = extrude(self._digits(split, index), rotations(keys))
        room = self.input_size - CUBE
        volumes = cubes.new_zeros(len(cubes), 1, *[self.input_size] * 3)
        corners = integers(keys, 3, room + 1, stream=1).tolist()
        for volume, cube, (z, y, x) in zip(volumes, cubes, corners, strict=True):
            volume[:, z : z + CUBE, y : y + CUBE, x : x + CUBE] = cube
        return volumes

    def shown(self, images: Tensor) -> Tensor:
        """Side by side ``(..., 1, H, W + D + W)``: projection over depth, over width, middle slice."""
        front, side = project(images, self.input_size), project(images.transpose(-3, -1), self.input_size)
        return torch.cat([front, side, images[..., images.shape[-3] // 2, :, :]], dim=-1)


def rotations(keys: Tensor) -> Tensor:
    """How each digit is turned and tilted: ``(B, 3, 3)``."""
    unit = uniform(keys, 3)
    cap = 1 - math.cos(math.radians(MAX_TILT))
    return rotation(math.pi / 2 * (unit[:, 0] - 0.5), torch.acos(1 - cap * unit[:, 1]), 2 * math.pi * unit[:, 2])


def rotation(angle: Tensor, tilt: Tensor, towards: Tensor) -> Tensor:
    """Turns by ``angle`` about the depth axis, clockwise on the screen, then tilts about the axis at ``towards`` in the plane.

    Args:
        angle, tilt, towards: ``(B,)`` radians.

    Returns:
        ``(B, 3, 3)``.
    """
    axis = _about_depth(towards)
    cos, sin, zero, one = torch.cos(tilt), torch.sin(tilt), torch.zeros_like(tilt), torch.ones_like(tilt)
    about_x = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    return axis @ about_x @ axis.mT @ _about_depth(angle)


def _about_depth(angle: Tensor) -> Tensor:
    cos, sin, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).view(-1, 3, 3)


def extrude(digits: Tensor, turns: Tensor, side: int = CUBE) -> Tensor:
    """Digits ``(B, 1, 28, 28)`` extruded and turned by ``(B, 3, 3)``, in cubes ``(B, 1, side, side, side)``.

    A point of a cube is turned back and read in the digit, bilinearly; in depth the digit fades over one voxel, which is what
    trilinear interpolation of the extruded digit would give.
    """
    axis = torch.arange(side, device=digits.device, dtype=torch.float32) - (side - 1) / 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), z.flatten()])
    back = turns.mT @ points  # (B, 3, side^3)
    grid = (back[:, :2] * (2 / DIGIT)).mT[:, None]
    values = F.grid_sample(digits, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]
    inside = ((THICKNESS + 1) / 2 - back[:, 2:].abs()).clamp(0, 1)
    return (values * inside).unflatten(2, (side, side, side))
