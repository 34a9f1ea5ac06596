"""Test every family of transformations against its formula, another solver or SciPy."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from families import FAMILIES, every_family, half_precision
from families import thetas as random_thetas
from scipy.interpolate import RBFInterpolator

from spatial_transformer.transformer import (
    Affine,
    Affine3d,
    Attention,
    Projective,
    ThinPlateSpline,
    pixel_centres,
)
from spatial_transformer.transformer.transforms import MAX_CACHE_BYTES

SIZES = [(1, 1), (28, 28), (42, 42), (60, 60), (64, 64), (33, 17), (5, 224), (224, 224)]


thetas = partial(random_thetas, batch=3, dtype=torch.float64)


def small_size(transform):
    return (3, 4, 5)[-transform.dims :]


def target_points(size):
    return pixel_centres(size).T


# Coordinates


@pytest.mark.parametrize("size", [(4, 6), (3, 4, 5)])
def test_pixel_centres_are_those_of_torch(size):
    theta = torch.eye(len(size), len(size) + 1, dtype=torch.float64)[None]
    grid = torch.nn.functional.affine_grid(theta, [1, 1, *size], align_corners=False)
    torch.testing.assert_close(pixel_centres(size).T, grid.flatten(0, -2))


# What holds for every family


@pytest.mark.parametrize(
    ("make", "n_params"),
    [
        (Affine, 6),
        (Attention, 3),
        (lambda: Attention(scale=0.5), 2),
        (Projective, 8),
        (ThinPlateSpline, 32),
        (lambda: ThinPlateSpline((3, 5)), 30),
        (Affine3d, 12),
    ],
)
def test_theta_has_the_length_of_the_family(make, n_params):
    transform = make()
    assert transform.n_params == n_params
    assert transform.identity().shape == (n_params,)
    assert transform.identity().dtype == torch.float32


@every_family
def test_grid_is_the_transformation_of_the_pixel_centres(make):
    transform = make()
    theta, size = thetas(transform), small_size(transform)
    grid = transform.grid(theta, size)
    assert grid.shape == (3, *size, transform.dims)
    torch.testing.assert_close(grid.flatten(1, -2), transform(theta, target_points(size)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("affine", 1e-7), ("attention", 1e-7), ("projective", 1e-6), ("tps", 1e-6), ("tps_3x5", 1e-6)],
)
def test_identity_grid_is_the_pixel_centres(name, tolerance, size):
    transform = FAMILIES[name]()
    grid = transform.grid(transform.identity()[None], size).flatten(0, -2)
    torch.testing.assert_close(grid, target_points(size).float(), rtol=0, atol=tolerance)


def test_the_cache_of_bases_is_bounded_in_bytes_and_stays_out_of_copies():
    transform, made, side = Affine(), 0, 512
    theta = transform.identity()[None]
    first = transform.grid(theta, (2, 2))
    while made < 1.5 * MAX_CACHE_BYTES:
        side += 1
        made += transform.basis((side, side), torch.float32, torch.device("cpu")).nbytes
        assert sum(basis.nbytes for basis in transform._bases.values()) <= MAX_CACHE_BYTES
    assert not copy.deepcopy(transform)._bases
    assert not pickle.loads(pickle.dumps(transform))._bases
    assert torch.equal(transform.grid(theta, (2, 2)), first)


def test_the_size_used_last_is_kept_and_large_volumes_are_not():
    transform = Affine3d()
    theta = transform.identity()[None]
    transform.grid(theta, (4, 5, 6))
    transform.grid(theta, (130, 130, 130))
    assert [size for size, *_ in transform._bases] == [(4, 5, 6)]


def test_threads_share_the_cache():
    transform, sizes = ThinPlateSpline(), [(n, n) for n in range(2, 9)] * 8
    theta = thetas(transform, dtype=torch.float32)
    expected = {size: ThinPlateSpline().grid(theta, size) for size in set(sizes)}
    with ThreadPoolExecutor(4) as threads:
        grids = list(threads.map(lambda size: transform.grid(theta, size), sizes))
    assert all(torch.equal(grid, expected[size]) for grid, size in zip(grids, sizes, strict=True))


@every_family
def test_a_volume_or_a_spline_has_no_structural_zeros_in_its_basis(make):
    transform = make()
    basis = transform.basis((3, 4, 5)[-transform.dims :], torch.float32, torch.device("cpu"))
    rows = {"ThinPlateSpline": transform.n_params // 2 + 2, "Projective": 3, "Affine3d": 4}
    assert len(basis) == rows.get(type(transform).__name__, 6)
    assert (basis != 0).any(dim=1).all()


@every_family
def test_grid_of_an_empty_batch_is_empty(make):
    transform = make()
    size, theta = small_size(transform), torch.empty(0, transform.n_params)
    assert transform.grid(theta, list(size)).shape == (0, *size, transform.dims)


# Affine and attention


def test_affine_theta_is_the_rows_of_a_2x3_matrix():
    a, b, c, d, e, f = theta = torch.tensor([0.9, 0.2, -0.1, 0.3, 1.1, 0.4], dtype=torch.float64)
    x, y = points = pixel_centres((3, 4))
    expected = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=1)
    torch.testing.assert_close(Affine()(theta[None], points.T)[0], expected)


def test_attention_is_one_scale_and_a_translation():
    s, t_x, t_y = theta = torch.tensor([0.7, 0.2, -0.1], dtype=torch.float64)
    as_affine = torch.stack([s, s * 0, t_x, s * 0, s, t_y])
    torch.testing.assert_close(
        Attention().grid(theta[None], (4, 5)), Affine().grid(as_affine[None], (4, 5))
    )


def test_attention_of_fixed_scale_takes_the_translation_alone():
    theta = torch.tensor([[0.2, -0.1]], dtype=torch.float64)
    with_scale = torch.tensor([[0.5, 0.2, -0.1]], dtype=torch.float64)
    torch.testing.assert_close(
        Attention(scale=0.5).grid(theta, (4, 5)), Attention().grid(with_scale, (4, 5))
    )


def test_identity_of_a_fixed_scale_is_the_central_window():
    transform = Attention(scale=0.5)
    grid = transform.grid(transform.identity()[None], (4, 5))
    assert torch.equal(grid.flatten(0, -2), 0.5 * target_points((4, 5)).float())


def test_affine3d_theta_is_the_rows_of_a_3x4_matrix():
    transform = Affine3d()
    theta, points = thetas(transform, batch=1), pixel_centres((3, 4, 5))
    expected = theta.reshape(3, 4) @ torch.cat([points, torch.ones_like(points[:1])])
    torch.testing.assert_close(transform(theta, points.T)[0], expected.T)


# Projective


def test_projective_is_the_quotient_by_w_wherever_w_is_above_min_w():
    theta = torch.tensor([[1.1, 0.1, 0.2, -0.1, 0.9, 0.3, 0.5, -0.3]], dtype=torch.float64)
    x, y = points = pixel_centres((6, 7))
    w = 0.5 * x - 0.3 * y + 1
    assert w.min() > 0.1
    expected = torch.stack([(1.1 * x + 0.1 * y + 0.2) / w, (-0.1 * x + 0.9 * y + 0.3) / w], dim=1)
    torch.testing.assert_close(Projective()(theta, points.T)[0], expected)


@pytest.mark.parametrize("slope", [-0.95, -1.0, -3.0, -100.0, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_projective_is_finite_with_a_gradient_at_every_pixel_when_w_is_near_or_below_zero(
    slope, dtype
):
    points = target_points((8, 8)).to(dtype)
    theta = (
        torch.tensor([1, 0, 0.1, 0, 1, 0.2, slope, slope / 2], dtype=dtype)
        .repeat(len(points), 1)
        .requires_grad_()
    )
    assert (1 + points @ theta[0, 6:]).min() < 0.1
    # Point i by theta i, so that each pixel has a gradient of its own.
    mapped = Projective()(theta, points).diagonal().T
    gradient = torch.autograd.grad(mapped.sum(), theta)[0]
    assert mapped.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[:, :6].abs().sum(1) > 0).all()
    assert (gradient[:, 6:].abs().sum(1) > 0).all()


@pytest.mark.parametrize("w", [0.0, -1.0])
def test_projective_is_finite_exactly_at_the_horizon_and_behind_it(w):
    theta = torch.tensor([[1.0, 0, 0, 0, 1, 0, w - 1, 0]])
    assert Projective()(theta, torch.tensor([[1.0, 1.0]])).isfinite().all()


def test_projective_goes_on_without_a_step_or_a_kink_at_min_w():
    transform = Projective(min_w=0.2)
    point = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    values, slopes = [], []
    for w in (0.2 - 1e-9, 0.2 + 1e-9):
        theta = torch.tensor(
            [[1, 0, 0, 0, 1, 0, w - 1, 0]], dtype=torch.float64, requires_grad=True
        )
        value = transform(theta, point)
        values.append(value.detach())
        slopes.append(torch.autograd.grad(value.sum(), theta)[0])
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-6, atol=1e-12)


def test_projective_gradient_is_the_numerical_one_below_min_w_too():
    theta = torch.tensor(
        [[1, 0, 0.1, 0, 1, 0.2, -2.1, -0.7]], dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda t: Projective().grid(t, (4, 5)), theta)


# Thin plate spline

control_grids = pytest.mark.parametrize("points", [(4, 4), (3, 5), (2, 2)], ids=str)


def control_grid(rows, columns):
    """Control points, (rows x columns, 2): from left to right and top to bottom."""
    return np.array([[x, y] for y in np.linspace(-1, 1, rows) for x in np.linspace(-1, 1, columns)])


@control_grids
def test_tps_identity_is_all_x_then_all_y_of_the_control_grid(points):
    expected = torch.from_numpy(control_grid(*points).T.flatten()).float()
    torch.testing.assert_close(ThinPlateSpline(points).identity(), expected)


@control_grids
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)], ids=str
)
def test_tps_is_the_thin_plate_spline_of_scipy(points, dtype, tolerance):
    transform = ThinPlateSpline(points)
    theta = thetas(transform, batch=1)
    source = theta[0].unflatten(0, (2, -1)).T.numpy()
    spline = RBFInterpolator(control_grid(*points), source, kernel="thin_plate_spline", degree=1)
    expected = torch.from_numpy(spline(target_points((28, 20)).numpy())).to(dtype)
    grid = transform.grid(theta.to(dtype), (28, 20))
    torch.testing.assert_close(grid.flatten(0, -2), expected, rtol=0, atol=tolerance)


@control_grids
def test_tps_slope_at_its_control_points_is_the_numerical_one(points):
    transform = ThinPlateSpline(points)
    theta = thetas(transform, batch=2, dtype=torch.float64)
    at_control_points = torch.from_numpy(control_grid(*points)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: transform(theta, p), at_control_points, atol=1e-4)


# Precision


@every_family
def test_grid_is_float64_for_a_float64_theta_and_float32_otherwise(make):
    transform = make()
    size = small_size(transform)
    for given, made in {
        torch.float64: torch.float64,
        torch.float32: torch.float32,
        torch.bfloat16: torch.float32,
    }.items():
        assert transform.grid(thetas(transform).to(given), size).dtype == made


@every_family
def test_autocast_leaves_the_grid_as_it_is(make):
    transform = make()
    theta, size = thetas(transform, dtype=torch.float32), small_size(transform)
    expected = transform.grid(theta, size), transform(theta, target_points(size))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = transform.grid(theta, size), transform(theta, target_points(size))
    assert torch.equal(under_autocast[0], expected[0])
    assert torch.equal(under_autocast[1], expected[1])


@every_family
@half_precision
def test_a_module_moved_to_half_precision_makes_the_same_grid(make, dtype):
    transform = make()
    theta, size = thetas(transform, dtype=torch.float32), small_size(transform)
    first = transform.grid(theta, size)
    transform.to(dtype)
    assert torch.equal(transform.grid(theta, size), first)
    assert torch.equal(make().to(dtype).grid(theta, size), first)


@pytest.mark.parametrize("make", [ThinPlateSpline, Projective])
def test_float32_grid_is_the_float64_one_to_1e_6_at_224_px(make):
    transform = make()
    theta = thetas(transform, batch=1, spread=0.05, dtype=torch.float32)
    torch.testing.assert_close(
        transform.grid(theta, (224, 224)).double(),
        transform.grid(theta.double(), (224, 224)),
        rtol=1e-6,
        atol=1e-6,
    )


# State


@every_family
def test_one_transform_serves_many_sizes_and_dtypes_in_any_order(make):
    transform = make()
    size = small_size(transform)
    other = tuple(reversed(size))
    for asked in (size, other, size):
        for dtype in (torch.float32, torch.float64, torch.float32):
            theta = thetas(transform, dtype=dtype)
            assert torch.equal(transform.grid(theta, asked), make().grid(theta, asked))


# Composition and inverse

closed_families = pytest.mark.parametrize("make", [Affine, Attention, Projective, Affine3d])


@closed_families
def test_compose_is_the_first_transformation_after_the_second(make):
    transform = make()
    a, b = (thetas(transform, batch=2, spread=0.1, seed=seed) for seed in (0, 1))
    points = target_points(small_size(transform))
    one_by_one = torch.stack([transform(a[[n]], transform(b[[n]], points)[0])[0] for n in range(2)])
    torch.testing.assert_close(transform(transform.compose(a, b), points), one_by_one)


@closed_families
def test_inverse_undoes_the_transformation(make):
    transform = make()
    theta = thetas(transform, batch=2, spread=0.1)
    identity = transform.identity().double().expand(2, -1)
    torch.testing.assert_close(transform.compose(theta, transform.inverse(theta)), identity)
    torch.testing.assert_close(transform.inverse(transform.inverse(theta)), theta)


@closed_families
def test_compose_and_inverse_are_float32_under_autocast_and_have_gradients(make):
    transform = make()
    theta = thetas(transform, spread=0.1, dtype=torch.float32).requires_grad_()
    expected = transform.compose(theta, transform.inverse(theta))
    with torch.autocast("cpu", torch.bfloat16):
        composed = transform.compose(theta, transform.inverse(theta))
    assert torch.equal(composed, expected)
    composed.square().sum().backward()
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize("transform", [ThinPlateSpline(), Attention(scale=0.5)])
def test_families_that_are_not_closed_refuse_compose_and_inverse(transform):
    theta = transform.identity()[None]
    for call in (lambda: transform.compose(theta, theta), lambda: transform.inverse(theta)):
        with pytest.raises(
            TypeError, match="has no compose and inverse: the results leave the family"
        ):
            call()


def test_a_singular_transformation_has_no_inverse():
    with pytest.raises(torch.linalg.LinAlgError):
        Affine().inverse(torch.zeros(1, 6))


def test_compose_and_inverse_check_their_thetas():
    with pytest.raises(ValueError, match=r"theta must be \(B, 6\) for Affine"):
        Affine().compose(torch.zeros(1, 6), torch.zeros(1, 8))
    with pytest.raises(TypeError, match=r"theta must be floating point, got torch.int64"):
        Affine().inverse(torch.zeros(1, 6, dtype=torch.int64))


# Refusals


@every_family
@pytest.mark.parametrize("wrong", [(1,), (2, 3, 4, 5), (0, 3), (3, 0, 3), (-1, 4)], ids=str)
def test_a_size_that_is_no_image_is_refused(make, wrong):
    transform = make()
    message = f"size must be {transform.dims} positive numbers for {type(transform).__name__}, got"
    with pytest.raises(ValueError, match=message):
        transform.grid(thetas(transform), wrong)


@every_family
@pytest.mark.parametrize(
    "change", [lambda theta: theta[:, 1:], lambda theta: theta[0], lambda theta: theta[None]]
)
def test_a_theta_of_another_shape_is_refused(make, change):
    transform = make()
    theta, size = change(thetas(transform)), small_size(transform)
    message = rf"theta must be \(B, {transform.n_params}\) for {type(transform).__name__}, got \("
    with pytest.raises(ValueError, match=message):
        transform.grid(theta, size)
    with pytest.raises(ValueError, match=message):
        transform(theta, target_points(size))


@every_family
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_a_theta_that_is_not_of_floating_point_is_refused(make, dtype):
    transform = make()
    with pytest.raises(TypeError, match=f"theta must be floating point, got {dtype}"):
        transform.grid(torch.zeros(2, transform.n_params, dtype=dtype), small_size(transform))


@every_family
def test_points_of_another_dimension_are_refused(make):
    transform = make()
    for shape in [(4, 5 - transform.dims), (4,), (1, 4, transform.dims)]:
        with pytest.raises(ValueError, match=rf"points must be \(N, {transform.dims}\), got \("):
            transform(thetas(transform), torch.zeros(shape))


@pytest.mark.parametrize("scale", [0, 0.0, -0.5, float("nan"), float("inf")])
def test_a_fixed_scale_that_is_not_positive_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be positive and finite, got"):
        Attention(scale=scale)


@pytest.mark.parametrize("min_w", [0.0, -0.1, 1.0, 2.0, float("nan")])
def test_min_w_outside_0_to_1_is_refused(min_w):
    with pytest.raises(ValueError, match="min_w must be between 0 and 1"):
        Projective(min_w=min_w)


@pytest.mark.parametrize("points", [(1, 1), (1, 4), (4, 1), (4,), 4, (4, 4, 4), (4.5, 4)], ids=str)
def test_a_control_grid_without_two_rows_and_columns_is_refused(points):
    with pytest.raises(ValueError, match="points must be at least 2 rows and 2 columns, got"):
        ThinPlateSpline(points)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU, where products may be in TF32"
)
@every_family
def test_a_program_that_allows_coarse_products_gets_the_same_grid(make):
    transform = make()
    theta, size = thetas(transform, dtype=torch.float32), (40,) * transform.dims
    torch.set_float32_matmul_precision("high")
    try:
        grid = transform.grid(theta.cuda(), size).cpu()
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(grid, transform.grid(theta, size), rtol=0, atol=1e-5)
