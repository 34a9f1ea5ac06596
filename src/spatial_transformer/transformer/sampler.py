"""The differentiable image sampler (section 3.3 of the paper).

Convention
    Source points are (x, y(, z)) in [-1, 1] with half-pixel centres, as in :mod:`.transforms`. The sums of equations (3)
    to (5) run over existing pixels only, so outside the input the sampler reads 0, or ``fill`` where that is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("bilinear", "nearest")
_BILINEAR, _ZEROS_OUTSIDE = 0, 0  # as torch's own operator numbers them


def sample(x: Tensor, grid: Tensor, mode: str = "bilinear", fill: float | Sequence[float] = 0.0) -> Tensor:
    """Reads ``x`` at the points of ``grid``: V = sum of U k(x - m) k(y - n).

    Points at pixel centres give the pixel **bit for bit** (with a ``fill`` other than 0, to a rounding of x - fill), so an
    identity warp returns its input and a shift by whole pixels is a copy, at any size. ``torch.nn.functional.grid_sample``
    alone does not do that: unless a size is a power of two, float32 coordinates cannot name the centres of its pixels.

    Args:
        x: ``(B, C, H, W)``, or ``(B, C, D, H, W)``.
        grid: ``(B, H', W', 2)``, or ``(B, D', H', W', 3)``: source points, float32 or float64.
        mode: "bilinear" is equation (5), trilinear in three dimensions; "nearest" is the integer kernel of
            equation (4), index floor(x + 0.5), which has no gradient with respect to the points.
        fill: what is read outside, in units of ``x``: one number, or one for each channel. A constant image stays constant
            under any warp when ``fill`` is that constant.

    The gradient with respect to a point at a pixel centre, where the kernel has a kink, is that of one side or the other.

    Returns:
        ``(B, C, H', W')`` or ``(B, C, D', H', W')`` in the dtype of ``x``, rounded where that is of integers. Half precision
        inputs are sampled in float32.

    Raises:
        ValueError: shapes that do not fit, an unknown mode, or as many fills as neither 1 nor C.
    """
    dims = x.ndim - 2
    if dims not in (2, 3):
        raise ValueError(f"x must be (B, C, H, W) or (B, C, D, H, W), got {tuple(x.shape)}")
    if grid.ndim != x.ndim or grid.shape[-1] != dims or grid.shape[0] != x.shape[0]:
        raise ValueError(
            f"a grid for x of shape {tuple(x.shape)} is ({x.shape[0]}, {'D, ' * (dims - 2)}H, W, {dims}), "
            f"got {tuple(grid.shape)}"
        )
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    dtype = torch.float64 if x.dtype == grid.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        background = _background(fill, x, dtype)
        source = x.to(dtype)
        if background is not None:
            source = source - background
        out = _sample(source, grid.to(dtype), mode)
        if background is not None:
            out = out + background
        return (out if x.is_floating_point() else out.round()).to(x.dtype)


def _background(fill: float | Sequence[float], x: Tensor, dtype: torch.dtype) -> Tensor | None:
    values = [float(fill)] if isinstance(fill, int | float) else [float(value) for value in fill]
    if len(values) not in (1, x.shape[1]):
        raise ValueError(f"fill must be one number or one for each of the {x.shape[1]} channels, got {len(values)}")
    if not any(values):
        return None
    return _vector(values, dtype, x.device).view(1, -1, *[1] * (x.ndim - 2))


def _vector(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(N,)``, filled on the device: a copy from the host would make a GPU wait."""
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


def _sample(x: Tensor, grid: Tensor, mode: str) -> Tensor:
    differentiated = torch.is_grad_enabled() and (x.requires_grad or grid.requires_grad)
    if mode == "bilinear" and differentiated and not torch._C._are_functorch_transforms_active():
        return _Bilinear.apply(x, grid)
    return _sample_exactly(x, grid, mode)


class _Bilinear(torch.autograd.Function):
    """Exact sampling forward; backward on the arguments themselves, so neither padding nor rounding is kept."""

    # One method and no setup_context: with that, PyTorch inspects signatures at every call, which a small warp feels.
    @staticmethod
    def forward(ctx, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(x, grid)
        return _sample_exactly(x, grid, "bilinear")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, grid = ctx.saved_tensors
        aten = torch.ops.aten
        operator = aten.grid_sampler_2d_backward if x.ndim == 4 else aten.grid_sampler_3d_backward
        return operator(grad, x, grid, _BILINEAR, _ZEROS_OUTSIDE, False, ctx.needs_input_grad)


def _sample_exactly(x: Tensor, grid: Tensor, mode: str) -> Tensor:
    """torch's sampler on an input padded to powers of two, where pixel centres are exact in floating point.

    The points are moved to the coordinates of the padded input and rounded to a lattice that holds every pixel centre: 2^-20
    in float32, 1.5e-5 px at 28 px, far below what the coordinates carry. Padding reads as outside: that changes nothing.
    """
    sizes = x.shape[2:]
    padded = [1 << (n - 1).bit_length() for n in sizes]
    if padded != list(sizes):
        x = F.pad(x, [end for n, p in zip(reversed(sizes), reversed(padded), strict=True) for end in (0, p - n)])
    grid = _on_lattice(grid, [n / p for n, p in zip(reversed(sizes), reversed(padded), strict=True)], mode)
    return F.grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _on_lattice(grid: Tensor, ratios: list[float], mode: str) -> Tensor:
    bits, digits = (20, 23) if grid.dtype == torch.float32 else (48, 52)
    # Adding 1.5 * 2^k to a float, and taking it off again, rounds to the spacing of floats near 2^k.
    rounder = 1.5 * 2.0 ** (digits - bits)
    # The kernel rounds half to even; the paper's floor(x + 0.5) rounds half up. A nudge within the lattice decides it.
    nudge = 2.0 ** -(bits + 2) if mode == "nearest" else 0.0
    if len(set(ratios)) == 1:
        moved = torch.add(grid.new_full((), ratios[0] - 1 + rounder), grid, alpha=ratios[0])
    else:
        ratio = _vector(ratios, grid.dtype, grid.device)
        moved = torch.addcmul(ratio - 1 + rounder, grid, ratio)
    return moved.sub_(rounder).add_(nudge) if nudge else moved.sub_(rounder)
