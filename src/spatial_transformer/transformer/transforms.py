"""Families of spatial transformations T_theta (section 3.2 of the paper).

Convention
    Points are ``(x, y)`` or ``(x, y, z)``. x runs along the width, y along the height, z along the
    depth. They are normalised to [-1, 1] with half-pixel centres (``align_corners=False``). -1 and
    1 are the outer edges of the first and the last pixel. Pixel ``i`` of ``n`` has its centre at
    ``(2 i + 1) / n - 1``. T_theta maps **output to input**: from a target point to the source point
    that is sampled there.

Every family is linear in a basis of the target points, ``T_theta(G) = M_theta B``. So a batch of
grids is one matrix product.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_CACHE_BYTES = 32 * 2**20
"""Size of the cache of bases of a transform. A larger basis is computed at each call."""


def pixel_centres(size: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the pixel centres of an image, ``(dims, prod(size))``, with rows x, y(, z)."""
    axes = [(2 * torch.arange(n, dtype=torch.float64, device="cpu") + 1) / n - 1 for n in size]
    grids = torch.meshgrid(*(axis.to(dtype) for axis in axes), indexing="ij")
    return torch.stack(grids[::-1]).flatten(1)


def is_eager(x: Tensor) -> bool:
    """Return whether ``x`` is an ordinary tensor outside of tracing and torch.func transforms."""
    return not (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or torch._C._are_functorch_transforms_active()
    )


def is_autocast_on(x: Tensor) -> bool:
    """Return whether operations on the device of ``x`` are autocast."""
    kind = x.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)  # which has no autocast


def grid_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype to compute grids in for a theta of ``dtype``.

    It is float64 on a GPU, where TF32 would be off by 0.1 px at 224 px.
    """
    return torch.float64 if device.type == "cuda" else dtype


class BasisCache(OrderedDict[tuple[Any, ...], Tensor]):
    """The most recently used bases, up to :data:`MAX_CACHE_BYTES`. A copy or a pickle is empty."""

    lock = threading.Lock()

    def get_or_make(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return the basis of ``key``. If it is missing, ``make`` computes it."""
        try:
            self.move_to_end(key)
            return self[key]
        except KeyError:  # missing, or just removed by another thread
            pass
        # Inference mode, tracing and torch.func are local to a thread. In a new one, the basis is
        # a plain tensor.
        with ThreadPoolExecutor(max_workers=1) as thread:
            basis = thread.submit(make).result()
        if basis.nbytes <= MAX_CACHE_BYTES:
            with self.lock:
                self[key] = basis
                while sum(cached.nbytes for cached in self.values()) > MAX_CACHE_BYTES:
                    self.popitem(last=False)
        return basis

    def __reduce__(self) -> tuple[Any, ...]:
        return BasisCache, ()


class Transform(nn.Module, ABC):
    """Family of transformations. It has no weights: a localisation network regresses theta.

    Attributes:
        n_params: length of theta.
        dims: 2 for images, 3 for volumes.
        is_group: whether the family has :meth:`compose` and :meth:`inverse`.
    """

    n_params: int
    dims: int = 2
    is_group: bool = True

    def __init__(self) -> None:
        super().__init__()
        self._bases = BasisCache()

    @abstractmethod
    def identity(self) -> Tensor:
        """Return the theta of the identity, ``(n_params,)`` float32."""

    @abstractmethod
    def _coefficients(self, theta: Tensor) -> Tensor:
        """Return the matrices M_theta: ``(B, n_params)`` -> ``(B, rows, K)``."""

    def _basis(self, points: Tensor) -> Tensor:
        """Return the basis B at target points: ``(dims, N)`` -> ``(K, N)``."""
        return torch.cat([points, torch.ones_like(points[:1])])  # homogeneous coordinates

    def _source_points(self, theta: Tensor, basis: Tensor, size: Sequence[int]) -> Tensor:
        """Return the source points M_theta B, ``(B, *size, dims)``."""
        rows = self._coefficients(theta).flatten(0, 1) @ basis  # one product for the whole batch
        return rows.view(-1, self.dims, *size).movedim(1, -1)

    def grid(self, theta: Tensor, size: Sequence[int], basis: Tensor | None = None) -> Tensor:
        """Return the source points of all pixels of an output.

        Args:
            theta: ``(B, n_params)``. Every dtype but float64 is converted to float32.
            size: ``(H, W)``, or ``(D, H, W)`` in three dimensions.
            basis: result of :meth:`basis` for this size. None takes it from a cache.

        Returns:
            ``(B, *size, dims)`` in float32 (float64 for a float64 theta), also under autocast.

        Raises:
            TypeError: theta is not floating point.
            ValueError: theta or size has the wrong shape.
        """
        theta = self._check_theta(theta)
        size = tuple(map(int, size))  # torch.jit.trace passes tensors
        if len(size) != self.dims or min(size) < 1:
            name = type(self).__name__
            raise ValueError(f"size must be {self.dims} positive numbers for {name}, got {size}")
        if basis is None:
            # A fake tensor must not mix with cached ones.
            is_cached = type(theta) is Tensor or torch.compiler.is_compiling()
            make = self.basis if is_cached else self._make_basis
            basis = make(size, grid_dtype(theta.dtype, theta.device), theta.device)
        return self._map(theta, basis, size)

    def forward(self, theta: Tensor, points: Tensor) -> Tensor:
        """Return T_theta at target points: ``(N, dims)`` -> ``(B, N, dims)``.

        Raises:
            TypeError, ValueError: as for :meth:`grid`, or points has the wrong shape.
        """
        if points.ndim != 2 or points.shape[1] != self.dims:
            raise ValueError(f"points must be (N, {self.dims}), got {tuple(points.shape)}")
        theta = self._check_theta(theta)
        basis = self._basis(points.T.double()).to(
            theta.device, grid_dtype(theta.dtype, theta.device)
        )
        return self._map(theta, basis, (len(points),))

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def basis(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the basis of all pixels of an output, ``(K, prod(size))``."""
        key = (size, dtype, device)
        return self._bases.get_or_make(key, lambda: self._make_basis(*key))

    def _make_basis(self, size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._basis(pixel_centres(size, dtype)).to(device)

    def _map(self, theta: Tensor, basis: Tensor, size: Sequence[int]) -> Tensor:
        """Return source points ``(B, *size, dims)`` in the dtype of theta."""
        if theta.dtype != basis.dtype:
            return self._map(theta.to(basis.dtype), basis, size).to(theta.dtype)
        if is_autocast_on(theta):
            with torch.autocast(theta.device.type, enabled=False):
                return self._map(theta, basis, size)
        return self._source_points(theta, basis, size)

    def _check_theta(self, theta: Tensor) -> Tensor:
        if theta.ndim != 2 or theta.shape[1] != self.n_params:
            expected = f"(B, {self.n_params}) for {type(self).__name__}"
            raise ValueError(f"theta must be {expected}, got {tuple(theta.shape)}")
        if theta.dtype in (torch.float32, torch.float64):
            return theta
        if not theta.is_floating_point():
            raise TypeError(f"theta must be floating point, got {theta.dtype}")
        return theta.float()

    def compose(self, theta_a: Tensor, theta_b: Tensor) -> Tensor:
        """Return the theta of T_a after T_b: a warp by a, followed by a warp by b.

        Raises:
            TypeError: ``is_group`` is False.
        """
        # Broadcast instead of a matmul, which autocast would round.
        product = self._square(theta_a)[..., None] * self._square(theta_b)[:, None]
        return self._theta(product.sum(dim=2)).to(theta_a.dtype)

    def inverse(self, theta: Tensor) -> Tensor:
        """Return the theta of the inverse transformation.

        Raises:
            TypeError: ``is_group`` is False.
            torch.linalg.LinAlgError: a transformation is singular.
        """
        return self._theta(torch.linalg.inv(self._square(theta))).to(theta.dtype)

    def _square(self, theta: Tensor) -> Tensor:
        """Return matrices on homogeneous coordinates, ``(B, dims + 1, dims + 1)``."""
        if not self.is_group:
            raise TypeError(f"{self} has no compose and inverse: the results leave the family.")
        theta = self._check_theta(theta)
        rows = self._coefficients(theta.to(grid_dtype(theta.dtype, theta.device)))
        last = F.pad(torch.zeros_like(rows[:, :1, 1:]), (0, 1), value=1.0)
        return rows if rows.shape[1] > self.dims else torch.cat([rows, last], dim=1)

    def _theta(self, matrix: Tensor) -> Tensor:
        """Return the theta of matrices on homogeneous coordinates."""
        return matrix[:, : self.dims].flatten(1)


class Affine(Transform):
    """Affine transformation, 6 parameters: the rows of A_theta in equation (1)."""

    n_params = 6

    def identity(self) -> Tensor:
        return torch.eye(2, 3, dtype=torch.float32, device="cpu").flatten()

    def _coefficients(self, theta: Tensor) -> Tensor:
        return self._elements(theta).view(-1, 2, 3)

    def _elements(self, theta: Tensor) -> Tensor:
        """Return the elements of A_theta, ``(B, 6)``."""
        return theta

    # The basis is (6, 2N), half of it zeros. So the product has x and y of a pixel side by side, as
    # grid_sample reads and differentiates them. With three coefficients a row, this is faster.

    def _basis(self, points: Tensor) -> Tensor:
        axes = torch.eye(2, dtype=points.dtype, device=points.device)
        return torch.einsum("kn,ij->iknj", super()._basis(points), axes).reshape(6, -1)

    def _source_points(self, theta: Tensor, basis: Tensor, size: Sequence[int]) -> Tensor:
        return (self._elements(theta) @ basis).view(-1, *size, 2)


class Affine3d(Transform):
    """Affine transformation of volumes, 12 parameters: the rows of a 3x4 matrix (appendix A.3)."""

    n_params = 12
    dims = 3

    def identity(self) -> Tensor:
        return torch.eye(3, 4, dtype=torch.float32, device="cpu").flatten()

    def _coefficients(self, theta: Tensor) -> Tensor:
        return theta.view(-1, 3, 4)


class Attention(Affine):
    """Isotropic scale and translation, equation (2): a square window with theta ``(s, t_x, t_y)``.

    Args:
        scale: half-width of the window in units of the half-width of the input. If it is fixed, as
            to 0.5 in appendix A.6, theta is ``(t_x, t_y)`` and the identity is the central window.

    Raises:
        ValueError: scale is not positive and finite.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {scale}")
        self.scale = scale
        self.n_params = 3 if scale is None else 2
        self.is_group = scale is None

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0][-self.n_params :], dtype=torch.float32, device="cpu")

    def _elements(self, theta: Tensor) -> Tensor:
        shift_x, shift_y = theta[:, -2], theta[:, -1]
        zero = torch.zeros_like(shift_x)
        scale = theta[:, 0] if self.scale is None else torch.full_like(shift_x, self.scale)
        return torch.stack([scale, zero, shift_x, zero, scale, shift_y], dim=1)

    def _theta(self, matrix: Tensor) -> Tensor:
        return torch.stack([matrix[:, 0, 0], matrix[:, 0, 2], matrix[:, 1, 2]], dim=1)


class Projective(Transform):
    """Projective transformation, 8 parameters: the rows of a 3x3 matrix whose last element is 1.

    ``x_s = (theta_1 x + theta_2 y + theta_3) / w``, ``y_s`` with theta_4 to theta_6, and
    ``w = theta_7 x + theta_8 y + 1``.

    Args:
        min_w: smaller w, at the horizon and behind it, are replaced by positive numbers with a
            continuous slope, so that every pixel has a finite value and gradient. ``compose`` and
            ``inverse`` hold where w is larger.

    Raises:
        ValueError: min_w is not between 0 and 1.
    """

    n_params = 8

    def __init__(self, min_w: float = 0.1) -> None:
        super().__init__()
        if not 0 < min_w < 1:
            raise ValueError(f"min_w must be between 0 and 1, got {min_w}")
        self.min_w = min_w

    def identity(self) -> Tensor:
        return torch.eye(3, dtype=torch.float32, device="cpu").flatten()[:8].clone()

    def _coefficients(self, theta: Tensor) -> Tensor:
        return F.pad(theta, (0, 1), value=1.0).view(-1, 3, 3)

    def _source_points(self, theta: Tensor, basis: Tensor, size: Sequence[int]) -> Tensor:
        rows = (self._coefficients(theta).flatten(0, 1) @ basis).view(-1, 3, *size)
        xy, w, low = rows[:, :2], rows[:, 2:], self.min_w
        # Far behind the horizon the gradient would overflow.
        replaced = low * low / (2 * low - w.clamp(min=-1e9, max=low))
        return (xy / torch.where(w < low, replaced, w)).movedim(1, -1)

    def _theta(self, matrix: Tensor) -> Tensor:
        return (matrix / matrix[:, 2:, 2:]).flatten(1)[:, :8]


class ThinPlateSpline(Transform):
    """Thin plate spline on a regular grid of control points, 2 x rows x columns parameters.

    Theta holds the source points of the control points, row by row: first all x coordinates, then
    all y coordinates. The spline has the kernel r^2 log r^2 and an affine part.

    Args:
        points: rows and columns of the control grid, which spans the output. The paper names 16
            points without their layout.

    Raises:
        ValueError: there are fewer than 2 rows or columns.
    """

    is_group = False

    def __init__(self, points: Sequence[int] = (4, 4)) -> None:
        super().__init__()
        self.points = (points,) if isinstance(points, int) else tuple(points)
        if len(self.points) != 2 or any(n < 2 or n % 1 for n in self.points):
            raise ValueError(f"points must be at least 2 rows and 2 columns, got {self.points}")
        self.n_params = 2 * self.points[0] * self.points[1]

    def identity(self) -> Tensor:
        return self._control_points(torch.float32, torch.device("cpu")).flatten()

    def _control_points(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        axes = [torch.linspace(-1, 1, n, dtype=dtype, device=device) for n in self.points]
        return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1]).flatten(1)

    def _basis(self, points: Tensor) -> Tensor:
        target = points.double()
        control = self._control_points(target.dtype, target.device)
        affine = super()._basis(control)
        system = torch.cat(
            [torch.cat([_radial(control, control), affine.T], 1), F.pad(affine, (0, 3))]
        )
        at_points = torch.cat([_radial(control, target), super()._basis(target)])
        splines = torch.linalg.solve(system, at_points)[: control.shape[1]]  # system is symmetric
        return torch.cat([splines, target]).to(points.dtype)

    def _coefficients(self, theta: Tensor) -> Tensor:
        # Splines of displacements, plus the target points: the identity is not rounded.
        displacements = theta.unflatten(1, (2, -1)) - self._control_points(
            theta.dtype, theta.device
        )
        identity = torch.eye(2, dtype=theta.dtype, device=theta.device).expand(
            theta.shape[0], -1, -1
        )
        return torch.cat([displacements, identity], dim=2)


def _radial(a: Tensor, b: Tensor) -> Tensor:
    """Return r^2 log r^2 between points ``(2, N)`` and ``(2, M)``: ``(N, M)``, 0 at r = 0."""
    squared = (a[:, :, None] - b[:, None, :]).square().sum(dim=0)
    tiny = torch.finfo(squared.dtype).tiny  # the slope at r = 0 is 0, not NaN
    return torch.xlogy(squared, squared.clamp(min=tiny))
