"""The differentiable image sampler (section 3.3 of the paper).

Convention
    Source points are those of :mod:`.transforms`. The sums of equations (3) to (5) run over existing pixels only: outside the
    input the sampler reads 0, or ``fill``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .transforms import is_eager

MODES = ("bilinear", "nearest")
MIN_TABLE_CHANNELS = 64
"""Channels of a channels-last map from which on ``embedding_bag`` is faster than ``grid_sample`` (docs/reference/benchmarks.md)."""


def sample(
    x: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    fill: float | Sequence[float] = 0.0,
    antialias: bool = False,
    second_order: bool = False,
) -> Tensor:
    """Read ``x`` at the points of ``grid``: V = sum of U k(x - m) k(y - n), equation (3).

    Bilinear at pixel centres, it gives pixels in [0, 1] to 2e-6 at 28 px and 3e-5 at 224 px: float32 rounds the centres.

    Args:
        x: ``(B, C, H, W)``, or ``(B, C, D, H, W)``.
        grid: ``(B, H', W', 2)``, or ``(B, D', H', W', 3)``: source points.
        mode: "bilinear" (equation 5), trilinear in three dimensions, or "nearest" (equation 4), which has no gradient for the
            grid and rounds half to even, as PyTorch does, where floor(x + 0.5) of the paper rounds half up.
        fill: value outside the input, in units of ``x``: one number, or one for each channel. A constant image stays constant
            under any warp when ``fill`` is that constant.
        antialias: average over the footprint of an output pixel that is larger than an input pixel, where the paper's kernels
            alias. The grid needs two points along each axis.
        second_order: allow second and forward-mode derivatives of channels-last maps on a CPU, which otherwise are sampled by
            ``embedding_bag``, for which PyTorch raises an error.

    Returns:
        ``(B, C, H', W')`` or ``(B, C, D', H', W')`` in the dtype and memory format of ``x``, sampled in float32 at least.

    Raises:
        TypeError: ``x`` or ``grid`` is not of floating point, or ``fill`` is not numeric.
        ValueError: a shape does not fit or is empty, ``fill`` is not finite, or the mode is unknown or cannot be antialiased.
    """
    dims, x_shape, grid_shape = x.ndim - 2, x.shape, grid.shape
    if dims not in (2, 3):
        raise ValueError(f"x must be (B, C, H, W) or (B, C, D, H, W), got {tuple(x.shape)}")
    if grid.ndim != x.ndim or grid_shape[-1] != dims or grid_shape[0] != x_shape[0]:
        raise ValueError(
            f"grid must be ({x.shape[0]}, *size, {dims}) for x of {tuple(x.shape)}, got {tuple(grid.shape)}"
        )
    if not (x.numel() and grid.numel()) and 0 in (*x.shape[1:], *grid.shape[1:]):
        raise ValueError(
            f"x and grid must not be empty, got {tuple(x.shape)} and {tuple(grid.shape)}"
        )
    if not (x.is_floating_point() and grid.is_floating_point()):
        raise TypeError(f"x and grid must be of floating point, got {x.dtype} and {grid.dtype}")
    if mode not in (modes := MODES[:1] if antialias else MODES):
        raise ValueError(
            f"mode must be one of {', '.join(modes)}{' with antialias' * antialias}, got {mode!r}"
        )
    dtype = torch.float64 if x.dtype == grid.dtype == torch.float64 else torch.float32
    source = (
        x if x.dtype == dtype else x.to(dtype)
    )  # each conversion that does nothing takes a microsecond
    grid = grid if grid.dtype == dtype else grid.to(dtype)
    background = _background(fill, source)
    if background is not None:
        source = source - background
    if antialias:
        grid, steps = _supersample(grid, x.shape[2:])
    out = _interpolate(source, grid, mode, second_order)
    if antialias:
        out = (F.avg_pool2d if dims == 2 else F.avg_pool3d)(out, steps)
    if background is not None:
        out = out + background
    return out if x.dtype == dtype else out.to(x.dtype)


def fill_values(fill: float | Sequence[float]) -> list[float]:
    """Return a fill, which may be a number, a sequence, an array or a tensor, as a list of finite numbers."""
    try:
        is_sequence = (
            not isinstance(fill, str) and hasattr(fill, "__len__") and getattr(fill, "ndim", 1) > 0
        )
        values = [float(value + 0.0) for value in (fill if is_sequence else [fill])]  # type: ignore[operator, union-attr]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"fill must be a number or one for each channel, got {fill!r}") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"fill must be finite, got {fill}")
    return values


def _background(fill: float | Sequence[float], x: Tensor) -> Tensor | None:
    if type(fill) in (float, int, tuple) and fill in (0, (0.0,)):
        return None
    values = fill_values(fill)
    if len(values) not in (1, x.shape[1]):
        raise ValueError(
            f"fill must be one number or one for each of the {x.shape[1]} channels, got {len(values)}"
        )
    # Filled on the device: a copy from the host would make a GPU wait.
    return (
        torch.stack([x.new_full((), value) for value in values]).view(-1, *[1] * (x.ndim - 2))
        if any(values)
        else None
    )


def _interpolate(x: Tensor, grid: Tensor, mode: str, second_order: bool) -> Tensor:
    channels_last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    is_channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=channels_last)
    is_table = (
        is_channels_last and x.ndim == 4 and mode == "bilinear" and x.shape[1] >= MIN_TABLE_CHANNELS
    )
    if is_table and x.device.type == "cpu" and not second_order and is_eager(x):
        return _sum_rows(x, grid)
    out = F.grid_sample(x, grid, mode, "zeros", align_corners=False)
    return out.contiguous(memory_format=channels_last) if is_channels_last else out


def _sum_rows(x: Tensor, grid: Tensor) -> Tensor:
    """Sample a channels-last map bilinearly: each point is a weighted sum of four rows of the table of pixels."""
    batch, channels, height, width = x.shape
    row, weight_row = _neighbours(grid[..., 1], height)
    column, weight_column = _neighbours(grid[..., 0], width)
    row = row + torch.arange(batch, dtype=torch.int32, device=x.device).view(-1, 1, 1, 1) * height
    index = row[..., :, None] * width + column[..., None, :]
    weight = weight_row[..., :, None] * weight_column[..., None, :]
    table = x.permute(0, 2, 3, 1).flatten(0, 2)
    out = F.embedding_bag(
        index.view(-1, 4), table, per_sample_weights=weight.view(-1, 4), mode="sum"
    )
    return out.view(*grid.shape[:3], channels).permute(0, 3, 1, 2)


def _neighbours(points: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the two pixels of n next to each point of one axis, ``(..., 2)``, and their weights, 0 for those outside."""
    position = (((points + 1) * n - 1) / 2).clamp(-1, n)  # further outside, all reads 0
    low = position.floor()
    index = torch.stack([low, low + 1], dim=-1)
    weight = torch.stack([low + 1 - position, position - low], dim=-1)
    return index.clamp(0, n - 1).int(), weight * ((index >= 0) & (index < n))


def _supersample(grid: Tensor, size: Sequence[int]) -> tuple[Tensor, int]:
    """Spread n points, the same n for all, over the footprint of each point: return ``(B, n H', n W', 2)`` and n.

    Along each axis of the output, a footprint of f > 1 pixels of the input gets n >= f points from -(f - 1) / 2 to (f - 1) / 2
    pixels. Their mean is the area average for whole f. Smaller footprints keep their point, n times.
    """
    axes = range(1, grid.ndim - 1)
    if min(grid.shape[1:-1]) < 2:
        raise ValueError(
            f"antialias needs a grid of two points along each axis, got {tuple(grid.shape)}"
        )
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
