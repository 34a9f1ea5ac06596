"""The differentiable image sampler (section 3.3 of the paper).

Convention
    Source points are those of :mod:`.transforms`. The sums of equations (3) to (5) run over
    existing pixels. Outside of the input the sampler reads 0, or ``fill``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .transforms import is_eager

MODES = ("bilinear", "nearest")
MIN_TABLE_CHANNELS = 64
"""Channels from which on ``embedding_bag`` is faster than ``grid_sample`` on channels-last maps.
Measured in docs/reference/benchmarks.md."""


def sample(
    x: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    fill: float | Sequence[float] = 0.0,
    antialias: bool = False,
    second_order: bool = False,
) -> Tensor:
    """Sample ``x`` at the points of ``grid``: V = sum of U k(x - m) k(y - n), equation (3).

    At pixel centres, bilinear sampling is exact up to the float32 rounding of the grid: 2e-6 at
    28 px and 3e-5 at 224 px for pixels in [0, 1].

    Args:
        x: ``(B, C, H, W)``, or ``(B, C, D, H, W)``.
        grid: source points, ``(B, H', W', 2)`` or ``(B, D', H', W', 3)``.
        mode: "bilinear", equation (5), which is trilinear in three dimensions, or "nearest",
            equation (4), which has no gradient for the grid. PyTorch rounds half to even where
            floor(x + 0.5) of the paper rounds half up.
        fill: value outside of the input, in units of ``x``: one number, or one per channel. A
            constant image stays constant under any warp if ``fill`` is that constant.
        antialias: average over the footprint of output pixels that are larger than input pixels.
            The kernels of the paper alias there. The grid needs two points along each axis.
        second_order: allow second and forward-mode derivatives of channels-last maps on a CPU.
            Without it they are sampled by ``embedding_bag``, for which PyTorch raises an error.

    Returns:
        ``(B, C, H', W')`` or ``(B, C, D', H', W')`` in the dtype of ``x``, and in eager mode in its
        memory format. The computation is in float32 at least.

    Raises:
        TypeError: ``x`` or ``grid`` is not floating point, or ``fill`` is not numeric.
        ValueError: a shape does not fit or is empty, ``fill`` is not finite, or ``mode`` is unknown
            or cannot be antialiased.
    """
    x_shape, grid_shape, dims = x.shape, grid.shape, x.ndim - 2
    if dims not in (2, 3):
        raise ValueError(f"x must be (B, C, H, W) or (B, C, D, H, W), got {tuple(x_shape)}")
    if grid.ndim != x.ndim or grid_shape[-1] != dims or grid_shape[0] != x_shape[0]:
        expected = f"({x_shape[0]}, *size, {dims}) for x of {tuple(x_shape)}"
        raise ValueError(f"grid must be {expected}, got {tuple(grid_shape)}")
    if not (x.numel() and grid.numel()) and 0 in (*x_shape[1:], *grid_shape[1:]):
        shapes = f"{tuple(x_shape)} and {tuple(grid_shape)}"
        raise ValueError(f"x and grid must not be empty, got {shapes}")
    if not (x.is_floating_point() and grid.is_floating_point()):
        raise TypeError(f"x and grid must be floating point, got {x.dtype} and {grid.dtype}")
    check_mode(mode, antialias)
    antialias = antialias and x_shape[0] > 0  # an empty batch has no footprints
    dtype = torch.float64 if x.dtype == grid.dtype == torch.float64 else torch.float32
    source = x if x.dtype == dtype else x.to(dtype)  # a conversion without effect takes 1 us
    grid = grid if grid.dtype == dtype else grid.to(dtype)
    background = _background(fill, source)
    if background is not None:
        source = source - background
    if antialias:
        grid, steps = _supersample(grid, x_shape[2:])
    out = _interpolate(source, grid, mode, second_order)
    if antialias:
        out = (F.avg_pool2d if dims == 2 else F.avg_pool3d)(out, steps)
    if background is not None:
        out = out + background
    return out if x.dtype == dtype else out.to(x.dtype)


def check_mode(mode: str, antialias: bool) -> None:
    """Raise a ValueError unless ``mode`` exists and, if ``antialias``, can be antialiased."""
    if mode != "bilinear" and (antialias or mode not in MODES):
        expected = "'bilinear' with antialias" if antialias else " or ".join(map(repr, MODES))
        raise ValueError(f"mode must be {expected}, got {mode!r}")


def fill_values(fill: float | Sequence[float]) -> list[float]:
    """Return ``fill``, a number, sequence, array or tensor, as a list of finite numbers."""
    try:
        is_scalar = not hasattr(fill, "__len__") or getattr(fill, "ndim", 1) == 0
        sequence: Any = [fill] if is_scalar else fill
        values = [float(value + 0.0) for value in sequence]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"fill must be one number or one per channel, got {fill!r}") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"fill must be finite, got {fill}")
    return values


def _background(fill: float | Sequence[float], x: Tensor) -> Tensor | None:
    if type(fill) in (float, int, tuple) and fill in (0, (0.0,)):
        return None
    values = fill_values(fill)
    if len(values) not in (1, x.shape[1]):
        raise ValueError(f"fill must have 1 or {x.shape[1]} numbers, got {len(values)}")
    if not any(values):
        return None
    # new_full fills on the device, while a copy from the host would make a GPU wait.
    background = torch.stack([x.new_full((), value) for value in values])
    return background.view(-1, *[1] * (x.ndim - 2))


def _interpolate(x: Tensor, grid: Tensor, mode: str, second_order: bool) -> Tensor:
    channels_last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    is_channels_last = (
        not x.is_contiguous()
        and is_eager(x)  # vmap knows no memory formats, and a compiler chooses its own
        and x.is_contiguous(memory_format=channels_last)
    )
    has_table = is_channels_last and x.ndim == 4 and x.shape[1] >= MIN_TABLE_CHANNELS
    if has_table and x.device.type == "cpu" and mode == "bilinear" and not second_order:
        return _sum_rows(x, grid)
    out = F.grid_sample(x, grid, mode, "zeros", align_corners=False)
    return out.contiguous(memory_format=channels_last) if is_channels_last else out


def _sum_rows(x: Tensor, grid: Tensor) -> Tensor:
    """Sample a channels-last map: an output is a weighted sum of four rows of a table of pixels."""
    batch, channels, height, width = x.shape
    row, weight_row = _neighbours(grid[..., 1], height)
    column, weight_column = _neighbours(grid[..., 0], width)
    row = row + torch.arange(batch, dtype=torch.int32, device=x.device).view(-1, 1, 1, 1) * height
    index = row[..., :, None] * width + column[..., None, :]
    weight = weight_row[..., :, None] * weight_column[..., None, :]
    table = x.permute(0, 2, 3, 1).flatten(0, 2)
    index, weight = index.view(-1, 4), weight.view(-1, 4)
    out = F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")
    return out.view(*grid.shape[:3], channels).permute(0, 3, 1, 2)


def _neighbours(points: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the two pixels of n next to each point of one axis, ``(..., 2)``, and their weights.

    The weight of a pixel outside of the image is 0.
    """
    position = (((points + 1) * n - 1) / 2).clamp(-1, n)  # everything further outside is 0
    low = position.floor()
    index = torch.stack([low, low + 1], dim=-1)
    weight = torch.stack([low + 1 - position, position - low], dim=-1)
    # As an integer a NaN is any number. Its weights are NaN.
    return index.int().clamp(0, n - 1), weight * ((index >= 0) & (index < n))


def _supersample(grid: Tensor, size: Sequence[int]) -> tuple[Tensor, int]:
    """Spread n points along each axis over the footprint of each point.

    A footprint of f > 1 input pixels gets n >= f points from -(f - 1) / 2 to (f - 1) / 2 pixels,
    whose mean is the area average for whole f. A smaller footprint repeats its point. All
    footprints have the same n.

    Returns:
        ``(B, n H', n W', 2)`` and n.
    """
    axes = range(1, grid.ndim - 1)
    if min(grid.shape[1:-1]) < 2:
        shape = tuple(grid.shape)
        raise ValueError(f"antialias needs a grid of two points along each axis, got {shape}")
    pixels = torch.cat([grid.new_full((1,), n / 2) for n in reversed(size)])
    spans, longest = [], 1.0
    for axis in axes:
        (slope,) = torch.gradient(grid, dim=axis)
        length = (slope * pixels).square().sum(-1, keepdim=True).clamp(min=1).sqrt()
        spans.append(slope * (1 - 1 / length))
        longest = max(longest, float(length.detach().nan_to_num().amax()))
    steps = math.ceil(min(longest - 1e-4, max(size)))
    offsets = torch.linspace(-0.5, 0.5, steps, dtype=grid.dtype, device=grid.device)
    for axis in axes:
        grid, *spans = (part.repeat_interleave(steps, dim=axis) for part in (grid, *spans))
    for axis, span in zip(axes, spans, strict=True):
        along = offsets.repeat(grid.shape[axis] // steps).view(-1, *[1] * (grid.ndim - axis - 1))
        grid = grid + along * span
    return grid, steps
