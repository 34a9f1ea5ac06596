"""How consistently transformers normalise the pose of digits with known distortions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..transformer import SpatialTransformer, Transform
from ..transformer.transforms import pixel_centres
from .theta_stats import ThetaTestCallback

_GRID_SIZE = 8  # points along each side of the output at which poses are compared


class PoseConsistency(ThetaTestCallback):
    """Measure how far each test digit is from its usual pose in the output (appendix A.1).

    The data module has ``poses(split, index)``, ``(B, C, 2, 3)``: for each channel the matrix from
    pixels of the image to pixels of the digit, both from the centre. A transformer that resolves a
    channel brings its digit to one pose, for any distortion.

    Logged:
        ``test/pose_K_C``: median over the samples of the distance, in pixels of the digit, between
        where transformer K reads the digit of channel C and where it usually does.
        ``test/pose_input_C``: the same in the image.
        ``test/resolves_first_K``: percentage of the samples of which transformer K brings the digit
        of the first channel closer to its usual pose than that of the second.
    """

    def measure(
        self, trainer: Any, pl_module: Any, transformer: SpatialTransformer, thetas: Tensor
    ) -> None:
        transform, data = transformer.transform, trainer.datamodule
        poses = data.poses("test", torch.arange(len(thetas)))
        readers = {"input": transform.identity().expand(len(thetas), -1)}
        readers |= {str(k): theta for k, theta in enumerate(thetas.unbind(1), start=1)}
        metrics = {}
        for name, theta in readers.items():
            distances = distances_to_usual_pose(transform, theta, poses, data.input_size)
            for channel, values in enumerate(distances.unbind(1), start=1):
                metrics[f"test/pose_{name}_{channel}"] = values.median()
            if name != "input" and distances.shape[1] > 1:
                is_first = distances[:, 0] < distances[:, 1]
                metrics[f"test/resolves_first_{name}"] = 100 * is_first.float().mean()
        pl_module.log_dict(metrics, sync_dist=True)


def distances_to_usual_pose(
    transform: Transform, theta: Tensor, poses: Tensor, size: int
) -> Tensor:
    """Return how far each digit is from its usual pose in the output, ``(B, C)``, in its pixels.

    The pose of a digit is where points of the output are read in it. The usual pose is the median
    over the samples. The distance is the root mean square over the points.

    Args:
        transform: the family of transformations.
        theta: ``(B, n_params)``.
        poses: ``(B, C, 2, 3)``, from pixels of the image to pixels of the digit, both from the
            centre.
        size: height and width of the image in pixels.
    """
    in_digit = to_digit_coordinates(transform, theta, poses, size)
    usual = in_digit.median(dim=0).values
    return (in_digit - usual).square().sum(dim=-1).mean(dim=-1).sqrt()


def to_digit_coordinates(transform: Transform, theta: Tensor, poses: Tensor, size: int) -> Tensor:
    """Return where points of the output are read in each digit, in pixels from its centre.

    Args:
        transform, theta, poses, size: as for :func:`distances_to_usual_pose`.

    Returns:
        ``(B, C, points, 2)``.
    """
    points = output_grid().to(theta.device)
    read = transform(theta, points) * (size / 2)
    read = torch.cat([read, torch.ones_like(read[..., :1])], dim=2)
    return read[:, None] @ poses.mT


def output_grid() -> Tensor:
    """Return the points of the output at which poses are compared: ``(points, 2)`` in [-1, 1]."""
    return pixel_centres((_GRID_SIZE, _GRID_SIZE), torch.float32).T


def digit_pose(in_digit: Tensor) -> Tensor:
    """Return how each digit lies in the output, ``(B, C, 4)``: rotation, log size, x and y.

    It is that of the affine map that is nearest to where the points are read. The rotation is in
    degrees, and positive if the digit is rotated anticlockwise on the screen. The size is in half
    outputs for a pixel of the digit, and x and y of its centre are in [-1, 1] of the output.

    Args:
        in_digit: output of :func:`to_digit_coordinates`.
    """
    points = output_grid().to(in_digit.device)  # symmetric about 0: a shift has no effect
    matrix = in_digit.mT @ points / points.square().sum(0)
    (xx, xy), (yx, yy) = matrix.movedim((-2, -1), (0, 1))
    shift_x, shift_y = in_digit.mean(dim=2).unbind(-1)
    determinant = xx * yy - xy * yx
    x = (xy * shift_y - yy * shift_x) / determinant
    y = (yx * shift_x - xx * shift_y) / determinant
    degrees = torch.atan2(yx - xy, xx + yy).rad2deg()
    return torch.stack([degrees, -determinant.abs().log() / 2, x, y], dim=-1)
