"""The distortions of MNIST (section 4.1 and appendix A.4 of the paper), as batched functions of tensors.

Each distortion draws its numbers from one integer key per sample and nothing else, so that a sample is the same whatever
batch, order, worker or device it is made in. All work runs on the device of the images.

Convention
    Images are ``(B, 1, 28, 28)`` with values in [0, 1] and background 0. Points are in pixels, (x, y), measured from the
    centre of the image or of the canvas; y points down and positive angles turn a digit clockwise on the screen.
    Warps read the source by bilinear interpolation (ours; the paper does not say).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.random import integers, normal, uniform

DIGIT = 28
"""Height and width of an MNIST image in pixels."""
CORNER_STD = 5 / math.sqrt(2)
"""P: standard deviation of each coordinate of a corner's displacement in pixels: 5 px are taken for the root mean square of
its length, as then the errors are nearest the paper's (docs/experiments/distorted-mnist.md)."""


def _between(unit: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * unit


def _canvas_points(canvas: int, device: torch.device) -> Tensor:
    """Pixel centres of a canvas, from its centre: (2, canvas * canvas), rows x and y."""
    axis = torch.arange(canvas, device=device, dtype=torch.float32) - (canvas - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()])


def _homogeneous(points: Tensor) -> Tensor:
    """``(2, N)`` points with a third row of ones."""
    return torch.cat([points, torch.ones_like(points[:1])])


def _read(images: Tensor, points: Tensor, canvas: int) -> Tensor:
    """Reads images at ``(B, 2, canvas * canvas)`` points, in pixels from the image's centre; 0 outside."""
    grid = (points * (2 / images.shape[-1])).unflatten(2, (canvas, canvas)).movedim(1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _similarity(angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Turns by ``angle`` (degrees), scales, then shifts by ``shift`` (pixels, (B, 2)): the way back, ``(B, 2, 3)``."""
    angle = angle * (math.pi / 180)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x, y = shift.unbind(1)
    return torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], dim=1).view(
        -1, 2, 3
    )


def _warp(images: Tensor, back: Tensor, canvas: int) -> Tensor:
    """Reads images for each pixel of a canvas where ``back``, ``(B, 2, 3)``, says."""
    points = back.view(-1, 3) @ _homogeneous(_canvas_points(canvas, images.device))
    return _read(images, points.unflatten(0, (-1, 2)), canvas)


def rotate(images: Tensor, keys: Tensor, canvas: int, pool: Tensor | None = None) -> Tensor:
    """R: turned by an angle uniform in +-90 degrees."""
    return _warp(images, r_pose(keys, canvas), canvas)


def r_pose(keys: Tensor, canvas: int) -> Tensor:
    """How R has put each digit, as of :func:`rts_pose`."""
    angle = _between(uniform(keys, 1)[:, 0], -90, 90)
    return _similarity(angle, torch.ones_like(angle), angle.new_zeros(len(angle), 2))


def rotate_scale_translate(
    images: Tensor, keys: Tensor, canvas: int, pool: Tensor | None = None
) -> Tensor:
    """RTS: angle uniform in +-45 degrees, scale uniform in 0.7 to 1.2, random location on a larger canvas.

    The location is uniform over those where the scaled image, before its turn, lies inside the canvas. That keeps the
    20 x 20 pixels of the digit whole. The paper leaves it open.
    """
    return _warp(images, rts_pose(keys, canvas), canvas)


def rts_pose(keys: Tensor, canvas: int) -> Tensor:
    """Where RTS has put each digit: ``(B, 2, 3)``, from pixels of the canvas to pixels of the digit, both from the centre."""
    unit = uniform(keys, 4)
    scale = _between(unit[:, 1], 0.7, 1.2)
    room = (canvas - DIGIT * scale) / 2
    shift = _between(unit[:, 2:], -1, 1) * room[:, None]
    return _similarity(_between(unit[:, 0], -45, 45), scale, shift)


def project(
    images: Tensor,
    keys: Tensor,
    canvas: int,
    pool: Tensor | None = None,
    corner_std: float = CORNER_STD,
) -> Tensor:
    """P: scaled by 0.75 to 1.0, then each corner displaced by N(0, 5 px), perspective warp.

    Displacements after which the quadrilateral is not convex (0.03 % of the draws), where no perspective view of the digit
    exists, are drawn again; the paper does not speak of them.

    Args:
        corner_std: standard deviation of each coordinate of a corner's displacement, in pixels.
    """
    # Made on the device, as a tensor of numbers would make a GPU wait: -1 and 1 clockwise, from the upper left.
    n = torch.arange(4, device=images.device)
    corners = (torch.stack([(n + 1) // 2 % 2, n // 2], dim=1) * 2 - 1) * (DIGIT / 2)
    displaced = _displaced_corners(corners, keys, corner_std)
    matrix = _homography(displaced.double(), corners.double().expand_as(displaced)).float()
    canvas_points = _canvas_points(canvas, images.device)
    x, y, w = (matrix.view(-1, 3) @ _homogeneous(canvas_points)).unflatten(0, (-1, 3)).unbind(1)
    w = torch.where(w.abs() < 1e-6, 1e-6, w)  # the horizon, far outside the image
    return _read(images, torch.stack([x, y], dim=1) / w[:, None], canvas)


def _displaced_corners(
    corners: Tensor, keys: Tensor, std: float = CORNER_STD, draws: int = 4
) -> Tensor:
    """The corners of P on the canvas, ``(B, 4, 2)``: of several draws the first that is convex (else the last, one in 10^7)."""
    scale = _between(uniform(keys, 1), 0.75, 1.0)
    candidates = corners * scale[:, :, None, None] + std * normal(keys, 8 * draws, stream=1).view(
        -1, draws, 4, 2
    )
    convex = is_convex(candidates)
    convex[:, -1] = True
    first = convex.int().argmax(dim=1)
    return candidates[torch.arange(len(keys), device=keys.device), first]


def is_convex(corners: Tensor) -> Tensor:
    """Whether quadrilaterals ``(..., 4, 2)``, corners clockwise on the screen, are convex and not folded: bool ``(...)``."""
    side = corners.roll(-1, dims=-2) - corners
    after = side.roll(-1, dims=-2)
    return (side[..., 0] * after[..., 1] - side[..., 1] * after[..., 0] > 0).all(dim=-1)


def _homography(source: Tensor, target: Tensor) -> Tensor:
    """The 3x3 matrices that map four points to four points, both ``(B, 4, 2)``; the last element is 1."""
    x, y = source.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows = []
    for coordinate, row in (
        (target[..., 0], (x, y, one, zero, zero, zero)),
        (target[..., 1], (zero, zero, zero, x, y, one)),
    ):
        rows.append(torch.stack([*row, -coordinate * x, -coordinate * y], dim=-1))
    solution, _ = torch.linalg.solve_ex(torch.cat(rows, dim=1), target.mT.flatten(1))
    return torch.cat([solution, torch.ones_like(solution[:, :1])], dim=1).view(-1, 3, 3)


def elastic(images: Tensor, keys: Tensor, canvas: int, pool: Tensor | None = None) -> Tensor:
    """E: scaled by 0.75 to 1.0, then the 16 control points of a thin plate spline displaced by N(0, 1.5 px).

    The control points are a regular 4 x 4 grid over the canvas, edge to edge; the displaced spline says
    where each pixel of the canvas is read.
    """
    scale = _between(uniform(keys, 1)[:, 0], 0.75, 1.0)
    shifts = 1.5 * normal(keys, 32, stream=1).view(-1, 2, 16)
    points = _canvas_points(canvas, images.device)
    moved = points + shifts @ _spline_basis(canvas, images.device)
    return _read(images, moved / scale[:, None, None], canvas)


def _spline_basis(canvas: int, device: torch.device) -> Tensor:
    """Weight of each of 4 x 4 control points at each pixel of the canvas: (16, canvas * canvas) float32."""
    if (canvas, device) not in _SPLINE_BASES:
        axis = torch.linspace(-canvas / 2, canvas / 2, 4, dtype=torch.float64)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        control = torch.stack([x.flatten(), y.flatten(), torch.ones(16, dtype=torch.float64)])
        points = _homogeneous(_canvas_points(canvas, torch.device("cpu")).double())

        def kernel(targets: Tensor) -> Tensor:
            squared = (control[:2, :, None] - targets[:2, None]).square().sum(0)
            return torch.cat([torch.xlogy(squared, squared), targets])

        system = torch.cat(
            [kernel(control), torch.cat([control.T, torch.zeros(3, 3, dtype=torch.float64)])], dim=1
        )
        _SPLINE_BASES[canvas, device] = (
            torch.linalg.solve(system, kernel(points))[:16].float().to(device)
        )
    return _SPLINE_BASES[canvas, device]


_SPLINE_BASES: dict[tuple[int, torch.device], Tensor] = {}


def translate(images: Tensor, keys: Tensor, canvas: int, pool: Tensor | None = None) -> Tensor:
    """T: the image, unchanged, at a uniform random whole-pixel location of a black canvas."""
    corner = place(keys, canvas)
    return _paste(images.new_zeros(len(images), canvas, canvas), images, corner[:, None])[:, None]


def place(keys: Tensor, canvas: int) -> Tensor:
    """Where T and TC have put each digit: ``(B, 2)``, row and column of its top left pixel."""
    return integers(keys, 2, canvas - DIGIT + 1)


def clutter(
    images: Tensor, keys: Tensor, canvas: int, pool: Tensor | None = None, patches: int = 6
) -> Tensor:
    """TC: as T, then patches of 6 x 6 pixels from random places of random digits of ``pool``, at random places.

    Patches and digit are joined by the maximum, so that nothing erases the digit (ours; the paper does not say).

    Args:
        pool: ``(N, 28, 28)`` uint8 digits to cut patches from (training digits, for every split).
    """
    assert pool is not None, "clutter needs a pool of digits"
    side = 6
    digit = integers(keys, patches, len(pool), stream=1)
    cut = integers(keys, 2 * patches, DIGIT - side + 1, stream=2).unflatten(1, (patches, 2))
    place = integers(keys, 2 * patches, canvas - side + 1, stream=3).unflatten(1, (patches, 2))
    pieces = (
        pool.flatten(1)[digit[:, :, None, None], _pixels(cut, (side, side), DIGIT)].to(images.dtype)
        / 255
    )
    return _paste(translate(images, keys, canvas)[:, 0], pieces, place)[:, None]


def _paste(canvases: Tensor, patches: Tensor, corners: Tensor) -> Tensor:
    """Puts ``(B, n, h, w)`` patches on ``(B, H, W)`` canvases by the maximum; ``(B, n, 2)`` top left corners (row, column)."""
    pixels = _pixels(corners, patches.shape[2:], canvases.shape[2])
    return (
        canvases.flatten(1)
        .scatter_reduce(1, pixels.flatten(1), patches.flatten(1), "amax")
        .view_as(canvases)
    )


def _pixels(corners: Tensor, size: Sequence[int], width: int) -> Tensor:
    """Places of the pixels of patches in a flat image of ``width``: corners ``(B, n, 2)`` -> ``(B, n, h, w)``."""
    rows, columns = (torch.arange(n, device=corners.device) for n in size)
    return (
        (corners[..., 0, None, None] + rows[:, None]) * width
        + corners[..., 1, None, None]
        + columns
    )


@dataclass(frozen=True)
class Distortion:
    """A distortion by its name in the paper.

    Attributes
        apply: ``(images, keys, canvas, pool) -> (B, 1, canvas, canvas)``.
        canvas: the paper's canvas in pixels.
        smallest: the smallest canvas that holds every digit it may draw.
        pose: where it has put each digit, as :func:`rts_pose`; None where no such matrix says it.
    """

    apply: Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
    canvas: int
    smallest: int
    pose: Callable[[Tensor, int], Tensor] | None = None


DISTORTIONS = {
    "r": Distortion(rotate, 28, 28, r_pose),
    "rts": Distortion(rotate_scale_translate, 42, 34, rts_pose),  # 28 px at scale 1.2 are 33.6 px
    "p": Distortion(project, 28, 28),
    "e": Distortion(elastic, 28, 28),
    "t": Distortion(translate, 60, 28),
    "tc": Distortion(clutter, 60, 28),
}
