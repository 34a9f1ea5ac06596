"""Whether a transformer brings what it reads to one pose, and of which object, measured by where the objects are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..transformer import SpatialTransformer, Transform
from ..transformer.transforms import pixel_centres
from .statistics import AfterTest

_LATTICE = 8  # points along each side of the output at which poses are compared


class Poses(AfterTest):
    """After the test: how far a digit in a transformer's output lies from its usual pose there (appendix A.1 of the paper).

    The data module gives ``poses(split, index)``, ``(B, C, 2, 3)``: for each channel the matrix from pixels of the image to
    pixels of the digit, both from the centre. A transformer that resolves a channel gives its digit in one and the same pose,
    whatever the distortion was.

    Logged
        ``test/pose_K_C``: median over the samples of the distance, in pixels of the digit, between where transformer K reads
        channel C's digit and where it mostly does; ``test/pose_input_C``: the same in the image.
        ``test/resolves_first_K``: percentage of the samples of which transformer K brings the first channel's digit closer to
        its usual pose than the second's.
    """

    def measure(self, trainer: Any, pl_module: Any, transformer: SpatialTransformer, thetas: Tensor) -> None:
        transform, data = transformer.transform, trainer.datamodule
        poses = data.poses("test", torch.arange(len(thetas)))
        identity = transform.identity().expand(len(thetas), -1)
        figures = {}
        for name, theta in [("input", identity), *((str(k), theta) for k, theta in enumerate(thetas.unbind(1), start=1))]:
            distances = distances_to_usual_pose(transform, theta, poses, data.input_size)
            for channel, values in enumerate(distances.unbind(1), start=1):
                figures[f"test/pose_{name}_{channel}"] = values.median()
            if name != "input":
                figures[f"test/resolves_first_{name}"] = 100 * (distances[:, 0] < distances[:, 1]).float().mean()
        pl_module.log_dict(figures)


def distances_to_usual_pose(transform: Transform, theta: Tensor, poses: Tensor, size: int) -> Tensor:
    """How far each digit lies from its usual pose in the output of a transformer: ``(B, C)``, in pixels of the digit.

    The pose is where points of the output are read in the digit; the usual one is their median over the samples; the
    distance is the root mean square over the points.

    Args:
        transform: the family of transformations.
        theta: ``(B, n_params)``.
        poses: ``(B, C, 2, 3)``, from pixels of the image to pixels of the digit, both from the centre.
        size: height and width of the image in pixels.
    """
    in_digit = places_in_digit(transform, theta, poses, size)
    usual = in_digit.median(dim=0).values
    return (in_digit - usual).square().sum(dim=-1).mean(dim=-1).sqrt()


def places_in_digit(transform: Transform, theta: Tensor, poses: Tensor, size: int) -> Tensor:
    """Where points of the output are read in each digit: ``(B, C, points, 2)``, in pixels of the digit from its centre.

    Args: as for :func:`distances_to_usual_pose`.
    """
    points = lattice().to(theta.device)
    read = transform(theta, points) * (size / 2)
    read = torch.cat([read, torch.ones_like(read[..., :1])], dim=2)
    return read[:, None] @ poses.mT


def lattice() -> Tensor:
    """The points of the output at which poses are compared: ``(points, 2)``, (x, y) in [-1, 1]."""
    return pixel_centres((_LATTICE, _LATTICE), torch.float32).T


def turned_by(in_digit: Tensor) -> Tensor:
    """By how many degrees each digit is turned in the output, ``(B, C)``: the rotation nearest to where its points lie.

    Args:
        in_digit: of :func:`places_in_digit`.
    """
    points = lattice().to(in_digit.device)  # symmetric about 0: a shift falls out
    (xx, xy), (yx, yy) = (in_digit.mT @ points).movedim((-2, -1), (0, 1))
    return torch.atan2(yx - xy, xx + yy).rad2deg()
