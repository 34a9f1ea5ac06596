"""The distortions of MNIST (section 4.1 and appendix A.4 of the paper), on batches of tensors.

Each distortion draws its random numbers from one integer key per sample. So a sample is the same in
any batch, order, worker process and on any device. All work runs on the device of the images.

All distortions have the arguments

    images: ``(B, 1, 28, 28)`` with values in [0, 1] and background 0.
    keys: ``(B,)``, see :func:`~spatial_transformer.utils.random.sample_keys`.
    canvas: height and width of the result in pixels.
    source: ``(N, 28, 28)`` uint8 digits that clutter is cut from.

and return ``(B, 1, canvas, canvas)``.

Convention:
    Points are (x, y) in pixels from the centre of the image or of the canvas. y points down, and
    positive angles rotate a digit clockwise on the screen. Warps interpolate bilinearly (ours; the
    paper does not say).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.random import integers, normal, to_double, uniform

DIGIT = 28
"""Height and width of an MNIST image in pixels."""
CORNER_STD = 5 / math.sqrt(2)
"""P: standard deviation of each coordinate of a corner's displacement in pixels.

The paper's 5 px are taken as the root mean square of the displacement's length. With this reading,
the errors are closest to the paper's (docs/experiments/distorted-mnist.md).
"""
POINT_STD = 1.5
"""E: standard deviation of each coordinate of a control point's displacement in pixels."""


def rotate(
    images: Tensor,
    keys: Tensor,
    canvas: int,
    source: Tensor | None = None,
    max_angle: float = 90.0,
) -> Tensor:
    """R: rotate by an angle uniform in ±90 degrees, or ±``max_angle``."""
    return _warp(images, r_pose(keys, canvas, max_angle), canvas)


def r_pose(keys: Tensor, canvas: int, max_angle: float = 90.0) -> Tensor:
    """Return where R places the digits, as :func:`rts_pose`."""
    angle = _lerp(uniform(keys, 1)[:, 0], -max_angle, max_angle)
    return _similarity(angle, torch.ones_like(angle), angle.new_zeros(len(angle), 2))


def rotate_scale_translate(
    images: Tensor, keys: Tensor, canvas: int, source: Tensor | None = None
) -> Tensor:
    """RTS: rotate by ±45 degrees, scale by 0.7 to 1.2, and place on a larger canvas, uniformly.

    The location is uniform over those where the scaled image, before its rotation, is inside the
    canvas. So hardly any ink is cut off (ours; the paper does not say).
    """
    return _warp(images, rts_pose(keys, canvas), canvas)


def rts_pose(keys: Tensor, canvas: int) -> Tensor:
    """Return where RTS places the digits.

    Returns:
        ``(B, 2, 3)`` matrices from pixels of the canvas to pixels of the digit, both from the
        centre.
    """
    unit = uniform(keys, 4)
    scale = _lerp(unit[:, 1], 0.7, 1.2)
    room = (canvas - DIGIT * scale) / 2
    shift = _lerp(unit[:, 2:], -1, 1) * room[:, None]
    return _similarity(_lerp(unit[:, 0], -45, 45), scale, shift)


def project(
    images: Tensor,
    keys: Tensor,
    canvas: int,
    source: Tensor | None = None,
    corner_std: float = CORNER_STD,
) -> Tensor:
    """P: scale by 0.75 to 1, then displace each corner by normal noise, as a perspective view.

    A quadrilateral that is not convex is not a perspective view of the digit. Its corners (0.03 %
    of the samples) are drawn again (ours; the paper does not say).

    ``corner_std`` is the standard deviation of each coordinate of a displacement in pixels.
    """
    # The corners -1 and 1, clockwise from the upper left. A tensor from a list would stall a GPU.
    n = torch.arange(4, device=images.device)
    corners = (torch.stack([(n + 1) // 2 % 2, n // 2], dim=1) * 2 - 1) * (DIGIT / 2)
    displaced = to_double(displace_corners(corners, keys, corner_std))
    matrix = _homography(displaced, to_double(corners).expand_as(displaced)).float()
    points = _homogeneous(_canvas_points(canvas, images.device))
    x, y, w = (matrix.view(-1, 3).to(points.device) @ points).unflatten(0, (-1, 3)).unbind(1)
    w = torch.where(w.abs() < 1e-6, 1e-6, w)  # the horizon, far outside the image
    return _sample_at(images, torch.stack([x, y], dim=1) / w[:, None], canvas)


def displace_corners(
    corners: Tensor, keys: Tensor, std: float = CORNER_STD, draws: int = 4
) -> Tensor:
    """Return the corners of P on the canvas, ``(B, 4, 2)``.

    Of several draws, the first convex one is taken, or else the last (one sample in 10^7).
    """
    scale = _lerp(uniform(keys, 1), 0.75, 1.0)[:, :, None, None]
    displacements = std * normal(keys, 8 * draws, stream=1).view(-1, draws, 4, 2)
    candidates = corners * scale + displacements
    is_taken = is_convex(candidates)
    is_taken[:, -1] = True
    first = is_taken.int().argmax(dim=1)
    return candidates[torch.arange(len(keys), device=keys.device), first]


def is_convex(corners: Tensor) -> Tensor:
    """Return whether quadrilaterals are convex and not folded.

    Args:
        corners: ``(..., 4, 2)``, clockwise on the screen.

    Returns:
        ``(...)`` bool.
    """
    side = corners.roll(-1, dims=-2) - corners
    after = side.roll(-1, dims=-2)
    return (side[..., 0] * after[..., 1] - side[..., 1] * after[..., 0] > 0).all(dim=-1)


def elastic(
    images: Tensor,
    keys: Tensor,
    canvas: int,
    source: Tensor | None = None,
    point_std: float = POINT_STD,
) -> Tensor:
    """E: scale by 0.75 to 1, then displace the 16 control points of a thin plate spline.

    The control points are a regular 4 x 4 grid over the canvas, edge to edge. The spline maps
    pixels of the canvas to the points where the image is sampled.

    ``point_std`` is the standard deviation of each coordinate of a displacement in pixels.
    """
    scale = _lerp(uniform(keys, 1)[:, 0], 0.75, 1.0)
    shifts = point_std * normal(keys, 32, stream=1).view(-1, 2, 16)
    points = _canvas_points(canvas, images.device) + shifts @ _spline_basis(canvas, images.device)
    return _sample_at(images, points / scale[:, None, None], canvas)


def translate(images: Tensor, keys: Tensor, canvas: int, source: Tensor | None = None) -> Tensor:
    """T: place the unchanged image at a uniform random whole-pixel location of a black canvas."""
    corners = digit_corners(keys, canvas)[:, None]
    return _paste(images.new_zeros(len(images), canvas, canvas), images, corners)[:, None]


def digit_corners(keys: Tensor, canvas: int) -> Tensor:
    """Return where T and TC place the digits: ``(B, 2)``, row and column of the top left pixel."""
    return integers(keys, 2, canvas - DIGIT + 1)


def clutter(
    images: Tensor, keys: Tensor, canvas: int, source: Tensor | None = None, patches: int = 6
) -> Tensor:
    """TC: as T, with patches of 6 x 6 pixels cut from random digits and pasted anywhere.

    Patches are cut from ``source``, which are the training digits for every split. Patches and
    digit are joined by the maximum, so that nothing erases the digit (ours; the paper does not
    say).
    """
    assert source is not None, "clutter is cut from digits"
    side = 6
    digit = integers(keys, patches, len(source), stream=1)[:, :, None, None]
    cut = integers(keys, 2 * patches, DIGIT - side + 1, stream=2).unflatten(1, (patches, 2))
    corners = integers(keys, 2 * patches, canvas - side + 1, stream=3).unflatten(1, (patches, 2))
    pixels = source.flatten(1)[digit, _flat_pixels(cut, (side, side), DIGIT)]
    placed = translate(images, keys, canvas)[:, 0]
    return _paste(placed, pixels.to(images.dtype) / 255, corners)[:, None]


@dataclass(frozen=True)
class Distortion:
    """A distortion of section 4.1.

    Attributes:
        apply: ``(images, keys, canvas, source) -> (B, 1, canvas, canvas)``.
        canvas: the paper's canvas in pixels.
        min_canvas: the smallest canvas that holds every digit.
        pose: where the digits are, as :func:`rts_pose`. None if such a matrix does not exist.
    """

    apply: Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
    canvas: int
    min_canvas: int
    pose: Callable[[Tensor, int], Tensor] | None = None


DISTORTIONS = {
    "r": Distortion(rotate, 28, 28, r_pose),
    "rts": Distortion(rotate_scale_translate, 42, 34, rts_pose),  # 28 px at scale 1.2 are 33.6 px
    "p": Distortion(project, 28, 28),
    "e": Distortion(elastic, 28, 28),
    "t": Distortion(translate, 60, 28),
    "tc": Distortion(clutter, 60, 28),
}
"""The distortions by their names in the paper."""


def _lerp(unit: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * unit


def _canvas_points(canvas: int, device: torch.device) -> Tensor:
    """Return the pixel centres of a canvas, ``(2, canvas * canvas)`` with rows x and y."""
    axis = torch.arange(canvas, device=device, dtype=torch.float32) - (canvas - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()])


def _homogeneous(points: Tensor) -> Tensor:
    """Append a row of ones to ``(2, N)`` points."""
    return torch.cat([points, torch.ones_like(points[:1])])


def _sample_at(images: Tensor, points: Tensor, canvas: int) -> Tensor:
    """Sample images at ``(B, 2, canvas * canvas)`` points in pixels. Outside, they are 0."""
    grid = (points * (2 / images.shape[-1])).unflatten(2, (canvas, canvas)).movedim(1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _similarity(angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the inverse of a rotation, a scaling and a shift, in this order: ``(B, 2, 3)``.

    Args:
        angle: ``(B,)`` in degrees.
        scale: ``(B,)``.
        shift: ``(B, 2)`` in pixels.
    """
    angle = angle * (math.pi / 180)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x, y = shift.unbind(1)
    rows = [cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _warp(images: Tensor, matrices: Tensor, canvas: int) -> Tensor:
    """Sample images where ``(B, 2, 3)`` matrices map the pixels of a canvas."""
    points = matrices.view(-1, 3) @ _homogeneous(_canvas_points(canvas, images.device))
    return _sample_at(images, points.unflatten(0, (-1, 2)), canvas)


def _homography(source: Tensor, target: Tensor) -> Tensor:
    """Return ``(B, 3, 3)`` matrices that map four points to four points, both ``(B, 4, 2)``."""
    x, y = source.unbind(-1)
    u, v = target.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    system = torch.cat([rows_u, rows_v], dim=1)
    solution, _ = torch.linalg.solve_ex(system, target.mT.flatten(1))
    return torch.cat([solution, torch.ones_like(solution[:, :1])], dim=1).view(-1, 3, 3)


@cache
def _spline_basis(canvas: int, device: torch.device) -> Tensor:
    """Return the weight of 4 x 4 control points at each pixel: ``(16, canvas * canvas)``."""
    axis = torch.linspace(-canvas / 2, canvas / 2, 4, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    control = _homogeneous(torch.stack([x.flatten(), y.flatten()]))
    points = _homogeneous(_canvas_points(canvas, torch.device("cpu")).double())

    def kernel(targets: Tensor) -> Tensor:
        squared = (control[:2, :, None] - targets[:2, None]).square().sum(0)
        return torch.cat([torch.xlogy(squared, squared), targets])

    sides = torch.cat([control.T, torch.zeros(3, 3, dtype=torch.float64)])
    weights = torch.linalg.solve(torch.cat([kernel(control), sides], dim=1), kernel(points))
    return weights[:16].float().to(device)


def _paste(canvases: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Paste patches by the maximum.

    Args:
        canvases: ``(B, H, W)``.
        patches: ``(B, n, h, w)``.
        corners: ``(B, n, 2)``, row and column of the top left pixels.
    """
    pixels = _flat_pixels(corners, patches.shape[2:], canvases.shape[2]).flatten(1)
    flat = canvases.flatten(1).scatter_reduce(1, pixels, patches.flatten(1), "amax")
    return flat.view_as(canvases)


def _flat_pixels(corners: Tensor, size: Sequence[int], width: int) -> Tensor:
    """Return the flat positions of patches' pixels: ``(B, n, 2)`` corners to ``(B, n, h, w)``."""
    rows, columns = (torch.arange(n, device=corners.device) for n in size)
    row, column = corners[..., None, None].unbind(2)
    return (row + rows[:, None]) * width + column + columns
