"""Families of spatial transformations T_theta (section 3.2 of the paper).

Convention
    Points are ``(x, y)`` or ``(x, y, z)`` with x along the width, y along the height and z along the depth.
    They are normalised to [-1, 1] with half-pixel centres (``align_corners=False``): -1 and 1 are the outer
    edges of the first and the last pixel, and pixel ``i`` of ``n`` has its centre at ``(2 i + 1) / n - 1``.
    T_theta maps **output to input**: for a point of the output it gives the point of the input to read there.

Every family is linear in a constant basis of the output points, ``T_theta(G) = M_theta B`` (section 3.2), so that the grids
of a batch are one matrix product. The basis is laid out such that the product's rows are grids as the sampler takes them,
the coordinates of a point side by side: no copy is made, neither forward nor backward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

_KEPT = 16  # bases of as many output sizes


def pixel_centres(size: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Normalised centres of all pixels of an image: shape ``(dims, prod(size))``, rows x, y(, z), each in (-1, 1).

    ``size`` is (H, W) or (D, H, W); points are in the memory order of an image, the last axis fastest.
    """
    axes = [(2 * torch.arange(n, dtype=dtype) + 1) / n - 1 for n in size]
    return torch.stack([axis.flatten() for axis in reversed(torch.meshgrid(*axes, indexing="ij"))])


def is_plain(x: Tensor) -> bool:
    """Whether x is a tensor with values of its own: no stand-in of a tracer, nor of ``torch.func``."""
    return type(x) is Tensor and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


class Transform(nn.Module, ABC):
    """A family of transformations, without parameters of its own: theta comes from a localisation network.

    Attributes
        n_params: length of theta.
        dims: 2 for images, 3 for volumes.
    """

    n_params: int
    dims: ClassVar[int] = 2

    def __init__(self) -> None:
        super().__init__()
        # Not buffers: `.half()` would round them, and a half-precision basis is a wrong grid.
        self._bases: dict[tuple, Tensor] = {}

    @abstractmethod
    def identity(self) -> Tensor:
        """The theta of the identity transformation, ``(n_params,)`` float32: what a regression layer starts from."""

    @abstractmethod
    def _basis(self, points: Tensor) -> Tensor:
        """Basis B at target points: ``(dims, N)`` float64 -> ``(K, N)``."""

    def _map(self, theta: Tensor, basis: Tensor) -> Tensor:
        """``M_theta B``: ``(B, dims * K)``, row by row, and the basis laid out side by side -> ``(B, N, dims)``."""
        # Of a column-major theta, autograd takes the faster of two ways to the gradient.
        return (theta.T.contiguous().T @ basis).unflatten(1, (-1, self.dims))

    def grid(self, theta: Tensor, size: Sequence[int]) -> Tensor:
        """Source points for every pixel of an output of ``size``.

        Args:
            theta: ``(B, n_params)``. Anything but float64 is taken as float32.
            size: ``(H, W)``, or ``(D, H, W)`` in three dimensions.

        Returns:
            ``(B, *size, dims)`` source points in [-1, 1] where they are inside the input, float32 (float64 for a float64
            theta) whatever autocast says: a bfloat16 grid is wrong by half a pixel at 224 px.

        Raises:
            ValueError: theta or size has the wrong shape.
        """
        size = tuple(size)
        if len(size) != self.dims or min(size) < 1:
            raise ValueError(
                f"{type(self).__name__} makes grids of {self.dims} positive sizes, height before width; got {size}"
            )
        theta = self._checked(theta)
        return self._points(theta, self._grid_basis(size, theta)).unflatten(1, size)

    def forward(self, theta: Tensor, points: Tensor) -> Tensor:
        """T_theta at any target points: ``(B, n_params)`` and ``(N, dims)`` -> ``(B, N, dims)``.

        Raises:
            ValueError: theta or points has the wrong shape.
        """
        if points.ndim != 2 or points.shape[1] != self.dims:
            raise ValueError(f"points must be (N, {self.dims}), got {tuple(points.shape)}")
        theta = self._checked(theta)
        return self._points(theta, _side_by_side(self._basis(points.T.double()), self.dims).to(theta.device))

    def _checked(self, theta: Tensor) -> Tensor:
        if theta.ndim != 2 or theta.shape[1] != self.n_params:
            raise ValueError(f"{type(self).__name__} takes theta of shape (B, {self.n_params}), got {tuple(theta.shape)}")
        return theta if theta.dtype == torch.float64 else theta.float()

    def _points(self, theta: Tensor, basis: Tensor) -> Tensor:
        with torch.autocast(theta.device.type, enabled=False):
            return self._map(theta.to(basis.dtype), basis).to(theta.dtype)

    def _grid_basis(self, size: tuple[int, ...], theta: Tensor) -> Tensor:
        # Products in TF32, a setting that many programs switch on, would move points by a tenth of a pixel at 224 px.
        dtype = torch.float64 if theta.is_cuda else theta.dtype
        key = (size, dtype, theta.device)
        basis = self._bases.get(key)
        if basis is None:
            # Validation often comes first, in inference mode, and a tensor made there cannot take part in training.
            with torch.inference_mode(False), torch.no_grad():
                basis = _side_by_side(self._basis(pixel_centres(size)), self.dims).to(theta.device, dtype)
            if is_plain(basis):  # no stand-in is ever kept
                while len(self._bases) >= _KEPT:
                    del self._bases[next(iter(self._bases))]
                self._bases[key] = basis
        return basis

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bases": {}}  # a copy, or a file, makes its own

    def extra_repr(self) -> str:
        return f"n_params={self.n_params}"


def _side_by_side(basis: Tensor, dims: int) -> Tensor:
    """Lays a basis ``(K, N)`` out for ``dims`` coordinates: ``(dims * K, N * dims)``, zero where coordinates do not mix."""
    blocks = basis.new_zeros(dims, basis.shape[0], basis.shape[1], dims)
    for axis in range(dims):
        blocks[axis, :, :, axis] = basis
    return blocks.flatten(2).flatten(0, 1)


def _homogeneous(points: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(points[:1])])


class Affine(Transform):
    """Plane affine, 6 parameters: the rows of A_theta in equation (1), ``(x_s, y_s) = A_theta (x_t, y_t, 1)``."""

    n_params = 6

    def identity(self) -> Tensor:
        return torch.eye(self.dims, self.dims + 1).flatten()

    def _basis(self, points: Tensor) -> Tensor:
        return _homogeneous(points)


class Affine3d(Affine):
    """Affine in three dimensions, 12 parameters: the rows of a 3x4 matrix on ``(x, y, z, 1)`` (appendix A.3)."""

    n_params = 12
    dims = 3


class Attention(Affine):
    """Isotropic scale and translation, equation (2): a square window of the input.

    theta is ``(s, t_x, t_y)``; with a fixed ``scale`` it is ``(t_x, t_y)`` (appendix A.6 fixes 0.5 for birds).

    Args:
        scale: half-width of the window in units of the half-width of the input; None lets theta say.

    Raises:
        ValueError: a fixed scale that is not positive.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and not scale > 0:
            raise ValueError(f"a fixed scale must be positive, got {scale}")
        self.scale = scale
        self.n_params = 3 if scale is None else 2

    def identity(self) -> Tensor:
        """Scale 1, or the fixed one, and no translation: with a fixed scale other than 1, the central window."""
        return torch.tensor([1.0, 0.0, 0.0] if self.scale is None else [0.0, 0.0])

    def _map(self, theta: Tensor, basis: Tensor) -> Tensor:
        shift_x, shift_y = theta[:, -2], theta[:, -1]
        zero = torch.zeros_like(shift_x)
        scale = theta[:, 0] if self.scale is None else torch.full_like(shift_x, self.scale)
        return super()._map(torch.stack([scale, zero, shift_x, zero, scale, shift_y], dim=1), basis)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.scale is None else f", scale={self.scale}")


class Projective(Transform):
    """Plane projective, 8 parameters: the rows of a 3x3 matrix whose last element is 1.

    ``x_s = (theta_1 x + theta_2 y + theta_3) / w``, ``y_s`` likewise with theta_4..6, ``w = theta_7 x + theta_8 y + 1``.
    Where w falls below ``min_w`` (near the horizon and behind it) it goes on as a positive, ever smaller
    number with a continuous slope: no division by zero, and no pixel loses its gradient.

    Args:
        min_w: where that begins.

    Raises:
        ValueError: ``min_w`` is not between 0 and 1.
    """

    n_params = 8

    def __init__(self, min_w: float = 0.1) -> None:
        super().__init__()
        if not 0 < min_w < 1:
            raise ValueError(f"min_w must be between 0 and 1, where the identity has its w, got {min_w}")
        self.min_w = min_w

    def identity(self) -> Tensor:
        return torch.eye(3).flatten()[:8].clone()

    def _basis(self, points: Tensor) -> Tensor:
        return _homogeneous(points)

    def _map(self, theta: Tensor, basis: Tensor) -> Tensor:
        xy = super()._map(theta[:, :6], basis)
        # w twice, beside x and beside y: a product makes that sooner than a division broadcasts.
        w = torch.addmm(basis.new_ones(()), theta[:, 6:], basis[:2] + basis[3:5]).view_as(xy)
        if _may_fall_below(w, self.min_w):
            low = self.min_w
            w = torch.where(w < low, low * low / (2 * low - w.clamp(max=low)), w)
        return xy / w


def _may_fall_below(w: Tensor, low: float) -> bool:
    """Whether some w is below ``low``; where a look would stop a GPU or a tracer, that it may be."""
    can_look = w.device.type == "cpu" and is_plain(w)
    return not can_look or bool((w < low).any())


class ThinPlateSpline(Transform):
    """Thin plate spline on a regular grid of control points; 2 x rows x columns parameters.

    theta holds the source points of the control points: all x coordinates, then all y coordinates, control points
    from left to right and top to bottom. The control points span the output from edge to edge, -1 to 1. The spline is
    the classical one, with kernel r^2 log r^2 and an affine part; it is linear in theta, and its constant
    matrix is solved for in float64. The paper names 16 points and no layout: 4 x 4 from edge to edge is ours.

    Args:
        points: rows and columns of the control grid, at least 2 each.

    Raises:
        ValueError: fewer than 2 rows or columns.
    """

    def __init__(self, points: Sequence[int] = (4, 4)) -> None:
        super().__init__()
        self.points = tuple(points)
        if len(self.points) != 2 or min(self.points) < 2:
            raise ValueError(f"the control grid needs at least 2 rows and 2 columns, got {tuple(points)}")
        self.n_params = 2 * self.points[0] * self.points[1]

    def _control_points(self) -> Tensor:
        rows, columns = self.points
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, rows, dtype=torch.float64),
            torch.linspace(-1, 1, columns, dtype=torch.float64),
            indexing="ij",
        )
        return torch.stack([x.flatten(), y.flatten()])

    def identity(self) -> Tensor:
        return self._control_points().flatten().float()

    def _basis(self, points: Tensor) -> Tensor:
        control = self._control_points().to(points.device)
        n = control.shape[1]
        affine = _homogeneous(control)
        system = torch.cat(
            [
                torch.cat([_radial(control, control), affine.T], dim=1),
                torch.cat([affine, affine.new_zeros(3, 3)], dim=1),
            ]
        )
        at_points = torch.cat([_radial(control, points), _homogeneous(points)])
        return torch.linalg.solve(system, at_points)[:n]  # the system is symmetric

    def extra_repr(self) -> str:
        return f"points={self.points}"


def _radial(a: Tensor, b: Tensor) -> Tensor:
    """r^2 log r^2 between all points of ``a`` (2, N) and ``b`` (2, M): (N, M); 0 at r = 0."""
    squared = (a[:, :, None] - b[:, None, :]).square().sum(dim=0)
    return torch.xlogy(squared, squared)
