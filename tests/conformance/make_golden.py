"""Write golden.json: the expected results of the conformance suite, in float64 NumPy.

The sampler is a literal sum over all pixels, equations (4) to (7) of the paper. SciPy gives the
thin plate spline. There is no PyTorch in this file.

python tests/conformance/make_golden.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

Array = NDArray[np.float64]
DECIMALS = 8
TOLERANCES = {
    "output": 1e-5,
    "gradient of x": 1e-5,
    "gradient of theta": 1e-5,
    "hessian-vector product": 1e-4,
}
MARGIN = 5e-3
"""Distance in pixels between drawn source points and the next kink of the kernel."""
STEP = 1e-4
"""Step of the finite differences, in units of the direction. No point crosses a kink."""
IDENTITY = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
IDENTITY_3D = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]


# Grids: source points and their derivatives with respect to theta


def pixel_centres(size: Sequence[int]) -> Array:
    """Return the centres of all pixels as (x, y(, z)) in [-1, 1]: ``(N, dims)``."""
    axes = [(2 * np.arange(n) + 1) / n - 1 for n in size]
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")[::-1]], axis=1)


def affine(theta: Array, points: Array) -> tuple[Array, Array]:
    """Return source points ``(N, dims)`` and their derivatives ``(N, dims, n)``, equation (1)."""
    jacobian = _one_row_each(np.column_stack([points, np.ones(len(points))]), points.shape[1])
    return jacobian @ theta, jacobian


def projective(theta: Array, points: Array) -> tuple[Array, Array]:
    """Return the same of a homography whose last element is 1."""
    w = (points @ theta[6:] + 1)[:, None]
    numerators, jacobian = affine(theta[:6], points)
    source = numerators / w
    of_last_row = -source[:, :, None] * (points / w)[:, None, :]
    return source, np.concatenate([jacobian / w[:, :, None], of_last_row], axis=2)


def tps(theta: Array, points: Array) -> tuple[Array, Array]:
    """Return the same of a thin plate spline, as SciPy interpolates the control points."""
    spline = RBFInterpolator(control_points(), np.eye(16), kernel="thin_plate_spline", degree=1)
    jacobian = _one_row_each(spline(points), 2)
    return jacobian @ theta, jacobian


def control_points() -> Array:
    """Return the 4x4 control points, from left to right and top to bottom: ``(16, 2)``."""
    y, x = np.meshgrid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 4), indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _one_row_each(basis: Array, dims: int) -> Array:
    """Return the derivatives ``(N, dims, dims * K)`` of coordinates that are linear in a basis."""
    return np.stack([np.kron(row, basis) for row in np.eye(dims)], axis=1)


GRIDS: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "affine": affine,
    "projective": projective,
    "tps": tps,
    "affine3d": affine,
}


# Sampler


def bilinear(x: Array, length: int) -> Array:
    """Return max(0, 1 - |x - m|) of equation (5) for all m: ``(N, length)``."""
    return np.maximum(0, 1 - np.abs(x[:, None] - np.arange(length)))


def nearest(x: Array, length: int) -> Array:
    """Return delta(floor(x + 0.5) - m) of equation (4) for all m: ``(N, length)``."""
    return (np.floor(x[:, None] + 0.5) == np.arange(length)).astype(float)


def bilinear_slope(x: Array, length: int) -> Array:
    """Return the last factor of equation (7) for all m: ``(N, length)``."""
    m = np.arange(length)
    return np.where(np.abs(m - x[:, None]) >= 1, 0.0, np.where(m >= x[:, None], 1.0, -1.0))


KERNELS = {"bilinear": bilinear, "nearest": nearest}


def to_pixels(points: Array, size: Sequence[int]) -> Array:
    """Return points in [-1, 1] as pixel indices: the centre of the first pixel is 0."""
    return ((points + 1) * np.array(size[::-1]) - 1) / 2


def weights(pixels: Array, size: Sequence[int], mode: str) -> list[Array]:
    """Return the kernel of each axis, in the order of the axes of an image: ((z,) y, x)."""
    return [KERNELS[mode](x, n) for x, n in zip(pixels.T[::-1], size, strict=True)]


def sum_over_pixels(image: Array, factors: list[Array]) -> Array:
    """Return sum_n sum_m U_nm k(y - n) k(x - m): ``(C, H, W)`` -> ``(C, N)``."""
    axes = "zyx"[-len(factors) :]
    equation = f"c{axes}," + ",".join(f"p{axis}" for axis in axes) + "->cp"
    return np.einsum(equation, image, *factors, optimize=True)


def sum_over_points(upstream: Array, factors: list[Array]) -> Array:
    """Return sum_i g_i k(y_i - n) k(x_i - m), of equation (6): ``(C, N)`` -> ``(C, H, W)``."""
    axes = "zyx"[-len(factors) :]
    equation = "cp," + ",".join(f"p{axis}" for axis in axes) + f"->c{axes}"
    return np.einsum(equation, upstream, *factors, optimize=True)


class Reference:
    """The warp of one image, and its derivatives.

    Args:
        transform: a key of :data:`GRIDS`.
        image: ``(C, H, W)`` or ``(C, D, H, W)``.
        theta: ``(n,)``.
        size: of the output.
        mode: "bilinear" or "nearest".
        fill: value outside the image, for each channel or for all.
    """

    def __init__(
        self,
        transform: str,
        image: Array,
        theta: Array,
        size: Sequence[int],
        mode: str = "bilinear",
        fill: float | Sequence[float] = 0.0,
    ) -> None:
        self.arguments = (transform, image, theta, size)
        self.image, self.size, self.in_size = image, size, image.shape[1:]
        self.fill = np.broadcast_to(np.asarray(fill, dtype=float), len(image))[:, None]
        points, self.jacobian = GRIDS[transform](theta, pixel_centres(size))
        self.pixels = to_pixels(points, self.in_size)
        self.factors = weights(self.pixels, self.in_size, mode)

    def output(self) -> Array:
        """Return the warped image, equation (3): ``(C, *size)``. Other pixels read the fill."""
        inside = sum_over_pixels(np.ones((1, *self.in_size)), self.factors)
        values = sum_over_pixels(self.image, self.factors) + self.fill * (1 - inside)
        return values.reshape(len(self.image), *self.size)

    def image_gradient(self, upstream: Array) -> Array:
        """Return the gradient with respect to the image, equation (6): ``(C, H, W)``."""
        return sum_over_points(upstream.reshape(len(self.image), -1), self.factors)

    def theta_gradient(self, upstream: Array) -> Array:
        """Return the gradient with respect to theta, equation (7) and the chain rule: ``(n,)``."""
        of_points = []
        for axis, length in enumerate(self.in_size[::-1]):
            factors = list(self.factors)
            factors[-1 - axis] = bilinear_slope(self.pixels[:, axis], length)
            slopes = sum_over_pixels(self.image, factors)
            of_pixels = (upstream.reshape(len(self.image), -1) * slopes).sum(axis=0)
            of_points.append(of_pixels * length / 2)
        return np.einsum("dp,pdk->k", np.array(of_points), self.jacobian)

    def hessian_product(self, upstream: Array, direction: Array) -> Array:
        """Return the Hessian of ``sum(upstream * output**2) / 2`` times a direction: ``(n,)``.

        It is a central difference of fourth order of the gradient.
        """
        transform, image, theta, size = self.arguments

        def gradient(steps: int) -> Array:
            moved = Reference(transform, image, theta + steps * STEP * direction, size)
            if (np.floor(moved.pixels) != np.floor(self.pixels)).any():
                raise ValueError("A source point crosses a kink of the kernel.")
            return moved.theta_gradient(upstream * moved.output())

        near, far = gradient(1) - gradient(-1), gradient(2) - gradient(-2)
        return (8 * near - far) / (12 * STEP)


# Cases


class CaseList:
    """Cases with images and thetas from one generator of random numbers."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.cases: list[dict[str, Any]] = []

    def draw_image(self, *shape: int) -> Array:
        """Return an image with values in [0, 1) of two decimals."""
        return self.rng.integers(0, 100, shape) / 100

    def draw_upstream(self, *shape: int) -> Array:
        """Return numbers in (-1, 1) of two decimals."""
        return self.rng.integers(-99, 100, shape) / 100

    def draw_theta(self, transform: str, spread: float = 0.2) -> Array:
        """Return a theta near the identity, which float32 represents exactly: ``(n,)``."""
        change = spread * self.rng.uniform(-1, 1, len(identity(transform)))
        return np.round(256 * (identity(transform) + change)) / 256

    def draw_theta_off_kinks(
        self,
        transform: str,
        size: Sequence[int],
        kink: float = 0.0,
        spread: float = 0.2,
    ) -> Array:
        """Return a theta whose source points keep off the points where the kernel has a kink.

        Args:
            transform: a key of :data:`GRIDS`.
            size: of input and output.
            kink: of the kernel, in pixels: 0 or 0.5, plus any whole number.
            spread: largest change of a parameter.
        """
        while True:
            theta = self.draw_theta(transform, spread)
            points, _ = GRIDS[transform](theta, pixel_centres(size))
            offset = to_pixels(points, size) - kink
            if np.abs(offset - np.round(offset)).min() > MARGIN:
                return theta

    def add(
        self,
        group: str,
        name: str,
        transform: str,
        x: Array,
        theta: Array | Sequence,
        size: Sequence[int] | None = None,
        mode: str = "bilinear",
        fill: float | list[float] = 0.0,
        quantity: str = "output",
        autocast: bool = False,
    ) -> None:
        """Add a case.

        Args:
            group, name: what the case is called.
            transform: a key of :data:`GRIDS`.
            x: ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
            theta: ``(B, n)``, or ``(n,)`` for all images.
            size: of the output; None keeps that of x.
            mode, fill: as for :class:`Reference`.
            quantity: what is compared, a key of :data:`TOLERANCES`.
            autocast: whether the case runs under bfloat16 autocast.
        """
        size = x.shape[2:] if size is None else tuple(size)
        thetas = np.round(np.broadcast_to(theta, (len(x), np.shape(theta)[-1])), DECIMALS)
        pairs = zip(x, thetas, strict=True)
        warps = [Reference(transform, image, row, size, mode, fill) for image, row in pairs]
        case: dict[str, Any] = {"name": name, "group": group, "transform": transform}
        case |= {"x": _stored(x), "theta": _stored(thetas), "size": list(size)}
        case |= {"mode": mode, "fill": fill, "quantity": quantity, "autocast": autocast}
        case["tolerance"] = TOLERANCES[quantity]
        if quantity == "output":
            expected = [warp.output() for warp in warps]
        else:
            upstream = self.draw_upstream(*x.shape[:2], *size)
            direction = self.draw_upstream(*thetas.shape)
            case["upstream"] = _stored(upstream)
            if quantity == "hessian-vector product":
                case["direction"] = _stored(direction)
            rows = zip(warps, upstream, direction, strict=True)
            expected = [_derivative(quantity, *row) for row in rows]
        case["expected"] = _stored(np.array(expected))
        self.cases.append(case)


def _derivative(quantity: str, warp: Reference, upstream: Array, direction: Array) -> Array:
    if quantity == "gradient of x":
        return warp.image_gradient(upstream)
    if quantity == "gradient of theta":
        return warp.theta_gradient(upstream)
    return warp.hessian_product(upstream, direction)


def _stored(array: Array) -> dict[str, list]:
    """Return an array as JSON holds it. Adding 0 removes the sign of -0."""
    return {
        "shape": list(array.shape),
        "values": (np.round(array, DECIMALS) + 0.0).ravel().tolist(),
    }


def identity(transform: str) -> Array:
    """Return the theta of the identity: ``(n,)``."""
    if transform == "tps":
        return control_points().T.ravel()
    if transform == "projective":
        return np.array([*IDENTITY, 0.0, 0.0])
    return np.array(IDENTITY_3D if transform == "affine3d" else IDENTITY)


def shift(right: int, down: int, size: Sequence[int]) -> list[float]:
    """Return the affine theta that moves the content of an image by whole pixels."""
    return [1.0, 0.0, -2 * right / size[1], 0.0, 1.0, -2 * down / size[0]]


def rotation(degrees: float, scale: float = 1.0, x: float = 0.0, y: float = 0.0) -> Array:
    """Return the affine theta of a rotation with scale and translation, of six decimals."""
    angle = np.radians(degrees)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.round([cos, -sin, x, sin, cos, y], 6)


def through_four_points(target: Array, source: Array) -> Array:
    """Return the projective theta that maps four target points to four source points.

    Args:
        target, source: ``(4, 2)``.
    """
    rows, values = [], []
    for (x, y), (source_x, source_y) in zip(target, source, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -source_x * x, -source_x * y])
        rows.append([0, 0, 0, x, y, 1, -source_y * x, -source_y * y])
        values += [source_x, source_y]
    return np.linalg.solve(np.array(rows), np.array(values))


def make_cases() -> list[dict[str, Any]]:
    """Return all cases. Two calls return the same."""
    cases = CaseList()
    _add_exact_warps(cases)
    _add_affine_warps(cases)
    _add_nearest(cases)
    _add_fills(cases)
    _add_volumes(cases)
    _add_projective_and_tps(cases)
    _add_derivatives(cases)
    _add_autocast(cases)
    return cases.cases


def _add_exact_warps(cases: CaseList) -> None:
    for size in ((28, 28), (42, 28), (7, 5), (1, 1)):
        name = f"identity, {size[0]} x {size[1]} px"
        cases.add("identity", name, "affine", cases.draw_image(1, 1, *size), IDENTITY)
    for (right, down), size in (
        ((1, 0), (12, 10)),
        ((0, -1), (12, 10)),
        ((-3, 2), (9, 7)),
        ((7, 0), (9, 7)),
    ):
        name = f"{right} px to the right, {down} px down, {size[0]} x {size[1]} px"
        theta = shift(right, down, size)
        cases.add("whole-pixel shift", name, "affine", cases.draw_image(1, 1, *size), theta)
    turns = {"90": [0, -1, 0, 1, 0, 0], "180": [-1, 0, 0, 0, -1, 0], "270": [0, 1, 0, -1, 0, 0]}
    for degrees, turn in turns.items():
        x = cases.draw_image(1, 1, 9, 9)
        cases.add("quarter turn", f"{degrees} degrees, 9 x 9 px", "affine", x, turn)
    x = cases.draw_image(1, 1, 10, 10)
    cases.add("quarter turn", "90 degrees, 10 x 10 px", "affine", x, turns["90"])
    x = cases.draw_image(1, 1, 6, 9)
    cases.add("quarter turn", "90 degrees, 6 x 9 to 9 x 6 px", "affine", x, turns["90"], (9, 6))


def _add_affine_warps(cases: CaseList) -> None:
    group = "rotation and scale, equation (5)"
    x = cases.draw_image(1, 1, 11, 11)
    cases.add(group, "30 degrees, 11 x 11 px", "affine", x, rotation(30))
    x = cases.draw_image(1, 1, 12, 9)
    theta = rotation(-50, 0.7, 0.2, -0.1)
    cases.add(group, "zoom and translation, 12 x 9 px", "affine", x, theta)
    x = cases.draw_image(1, 1, 9, 12)
    cases.add(group, "half the size, 9 x 12 px", "affine", x, rotation(20, 2.0))
    x = cases.draw_image(3, 1, 10, 8)
    thetas = [cases.draw_theta("affine", spread=0.4) for _ in range(3)]
    thetas[2] = -thetas[2]
    cases.add(group, "three images, shear and half turn", "affine", x, thetas)
    group = "output of another size"
    for in_size, size in (
        ((12, 8), (5, 9)),
        ((5, 7), (11, 6)),
        ((8, 8), (8, 5)),
        ((4, 10), (1, 7)),
    ):
        name = f"{in_size[0]} x {in_size[1]} to {size[0]} x {size[1]} px"
        theta = cases.draw_theta("affine")
        cases.add(group, name, "affine", cases.draw_image(1, 2, *in_size), theta, size)


def _add_nearest(cases: CaseList) -> None:
    group = "nearest neighbour, equation (4)"
    for size in ((9, 9), (12, 8)):
        theta = cases.draw_theta_off_kinks("affine", size, kink=0.5, spread=0.4)
        name = f"{size[0]} x {size[1]} px"
        cases.add(group, name, "affine", cases.draw_image(1, 2, *size), theta, mode="nearest")
    x = cases.draw_image(1, 1, 6, 5)
    cases.add(group, "twice the size", "affine", x, IDENTITY, (12, 10), mode="nearest")
    # Sizes are powers of two, so that float32 represents the points between pixels exactly.
    for right, down in ((0.5, 0.0), (0.0, -0.5), (-0.5, 1.5)):
        theta = [1.0, 0.0, right / 4, 0.0, 1.0, down / 4]
        name = f"points moved by {right} px to the right, {down} px down"
        x = cases.draw_image(1, 1, 8, 8)
        cases.add("ties, equation (4)", name, "affine", x, theta, mode="nearest")


def _add_fills(cases: CaseList) -> None:
    group = "fill outside the input"
    for mode in ("bilinear", "nearest"):
        theta = cases.draw_theta_off_kinks("affine", (9, 9), kink=0.5, spread=0.6)
        x = np.full((1, 1, 9, 9), 0.7)
        cases.add(group, f"a constant image, {mode}", "affine", x, theta, mode=mode, fill=0.7)
    x = np.broadcast_to(np.array([0.2, -1.5, 0.0])[:, None, None], (1, 3, 7, 8))
    fill = [0.2, -1.5, 0.0]
    cases.add(group, "constant channels", "affine", x, rotation(40, 1.3), fill=fill)
    x = cases.draw_image(1, 2, 8, 9)
    cases.add(group, "one fill for each channel", "affine", x, rotation(15, 1.5), fill=[0.5, 1.0])


def _add_volumes(cases: CaseList) -> None:
    group = "three dimensions"
    cases.add(group, "identity", "affine3d", cases.draw_image(1, 1, 4, 5, 7), IDENTITY_3D)
    theta = np.array(IDENTITY_3D)
    theta[[3, 11]] = -2 * 2 / 7, 2 * 1 / 4
    name = "2 voxels to the right, 1 slice up"
    cases.add(group, name, "affine3d", cases.draw_image(1, 1, 4, 5, 7), theta)
    quarter_turn = [0.0, 0, -1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    name = "quarter turn of width and depth"
    cases.add(group, name, "affine3d", cases.draw_image(1, 1, 6, 4, 6), quarter_turn)
    theta = cases.draw_theta("affine3d")
    name = "5 x 4 x 6 to 4 x 5 x 3 voxels"
    cases.add(group, name, "affine3d", cases.draw_image(1, 2, 5, 4, 6), theta, (4, 5, 3))


def _add_projective_and_tps(cases: CaseList) -> None:
    corners = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    group = "projective by four points"
    for in_size, size in (((11, 11), (11, 11)), ((9, 12), (9, 12)), ((12, 9), (7, 10))):
        source = corners * 0.9 + np.round(cases.rng.uniform(-0.3, 0.3, (4, 2)), 2)
        theta = through_four_points(corners, source)
        name = f"{in_size[0]} x {in_size[1]} to {size[0]} x {size[1]} px"
        cases.add(group, name, "projective", cases.draw_image(1, 1, *in_size), theta, size)
    group = "thin plate spline, SciPy's"
    x = cases.draw_image(1, 1, 13, 9)
    cases.add(group, "identity, 13 x 9 px", "tps", x, identity("tps"))
    for in_size, size in (((10, 10), (10, 10)), ((9, 12), (9, 12)), ((12, 9), (7, 10))):
        thetas = [cases.draw_theta("tps", spread=0.25) for _ in range(2)]
        name = f"{in_size[0]} x {in_size[1]} to {size[0]} x {size[1]} px"
        cases.add(group, name, "tps", cases.draw_image(2, 1, *in_size), thetas, size)


def _add_derivatives(cases: CaseList) -> None:
    groups = {
        "gradient of x": "gradient of the input, equation (6)",
        "gradient of theta": "gradient of theta, equation (7)",
        "hessian-vector product": "second derivatives in theta",
    }
    for quantity, group in groups.items():
        for transform in ("affine", "projective", "tps", "affine3d"):
            channels, *size = (1, 4, 5, 6) if transform == "affine3d" else (2, 5, 6)
            theta = cases.draw_theta_off_kinks(transform, size)
            x = cases.draw_image(1, channels, *size)
            cases.add(group, transform, transform, x, theta, quantity=quantity)


def _add_autocast(cases: CaseList) -> None:
    group = "bfloat16 autocast, 64 px"
    for transform, size in (
        ("affine", (2, 64)),
        ("affine", (64, 2)),
        ("projective", (2, 64)),
        ("tps", (2, 64)),
    ):
        name = f"{transform}, {size[0]} x {size[1]} px"
        x, theta = cases.draw_image(1, 1, *size), cases.draw_theta(transform, spread=0.1)
        cases.add(group, name, transform, x, theta, autocast=True)


def make_golden() -> dict[str, Any]:
    """Return what golden.json holds."""
    about = "Expected results of spatial-transformer samplers. suite.py documents the fields."
    return {"about": about, "version": 1, "cases": make_cases()}


def main() -> None:
    """Write golden.json next to this file."""
    # Here, as the suite itself does not need the package.
    from spatial_transformer.utils.files import write_json

    write_json(make_golden(), Path(__file__).with_name("golden.json"))


if __name__ == "__main__":
    main()
