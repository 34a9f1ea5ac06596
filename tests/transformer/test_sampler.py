"""Test the sampler against equations (4) to (7) as literal loops."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import (
    FAMILIES,
    both_modes,
    every_family,
    half_precision,
    random,
    since_torch,
    small_inputs,
    small_warp,
    thetas,
)

from spatial_transformer.transformer import (
    Affine,
    Affine3d,
    pixel_centres,
    sample,
)

PLANAR = ("affine", "attention", "projective", "tps", "tps_3x5")
SIZES = [(1, 1), (2, 3), (28, 28), (42, 42), (60, 60), (64, 64), (33, 17), (17, 100), (224, 224)]
VOLUMES = [(1, 1, 1), (4, 4, 4), (5, 7, 9), (6, 28, 28), (3, 33, 17)]


def identity_grid(transform, size, batch=1):
    return transform.grid(transform.identity().expand(batch, -1), size)


def normalised(pixels, sizes):
    """Pixel indices (x, y(, z)), possibly between pixels, as points in [-1, 1]."""
    return (2 * pixels + 1) / torch.tensor(list(reversed(sizes)), dtype=pixels.dtype) - 1


def random_pixels(count, sizes, seed=2):
    """Points in pixel units in and around an image, none on a pixel."""
    share = torch.rand(
        count, len(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return share * (torch.tensor(list(reversed(sizes))) + 2) - 1.5


def as_row(pixels, sizes):
    """Points as a grid of one row, or of one row in one slice."""
    return normalised(pixels, sizes).reshape(1, *[1] * (len(sizes) - 1), len(pixels), len(sizes))


# Identity and whole pixels, to the rounding of float32 coordinates


def assert_equal_to_rounding(out, expected, size, mode="bilinear"):
    """2e-6 at 28 px and 3e-5 at 224 px for images in [0, 1]; "nearest" copies."""
    assert out.dtype == expected.dtype
    tolerance = 0.0 if mode == "nearest" else max(2e-6, 3e-5 * max(size) / 224)
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)


@both_modes
@pytest.mark.parametrize(
    ("name", "size"),
    [*itertools.product(PLANAR, SIZES), *itertools.product(["affine3d"], VOLUMES)],
    ids=str,
)
def test_identity_returns_the_input(name, size, mode):
    x = torch.rand(2, 3, *size)
    out = sample(x, identity_grid(FAMILIES[name](), size, 2), mode)
    assert_equal_to_rounding(out, x, size, mode)


@both_modes
def test_identity_returns_the_input_at_every_length_to_256(mode):
    transform = Affine()
    for length in range(1, 257):
        x = torch.rand(1, 1, 1, length)
        out = sample(x, identity_grid(transform, (1, length)), mode)
        assert_equal_to_rounding(out, x, (1, length), mode)


@both_modes
@pytest.mark.parametrize("size", [(28, 28), (33, 17), (224, 224)], ids=str)
def test_a_shift_by_whole_pixels_is_a_copy_with_zeros_from_outside(size, mode):
    x = torch.rand(1, 2, *size)
    theta = torch.tensor([[1.0, 0, -2 * 3 / size[1], 0, 1, 2 * 5 / size[0]]])  # right and up
    expected = F.pad(x[..., 5:, :-3], (3, 0, 0, 5))
    assert_equal_to_rounding(sample(x, Affine().grid(theta, size), mode), expected, size, mode)


def test_other_warps_are_as_accurate_as_those_of_torch():
    theta = torch.tensor([[0.79, -0.25, 0.0371, 0.25, 0.79, -0.0213]])
    x = torch.rand(1, 1, 224, 224)

    def torchs(x, theta):
        return F.grid_sample(
            x, F.affine_grid(theta.view(1, 2, 3), x.shape, align_corners=False), align_corners=False
        )

    exact = torchs(x.double(), theta.double())
    errors = [
        (out - exact).square().mean().sqrt()
        for out in (sample(x, Affine().grid(theta, (224, 224))), torchs(x, theta))
    ]
    assert errors[0] < 1.5 * errors[1]


# Outside


@both_modes
@every_family
@pytest.mark.parametrize("spread", [0.3, 3.0, 1e4])
def test_a_constant_image_stays_constant_under_any_warp(make, spread, mode):
    transform = make()
    size = (5, 13, 11)[-transform.dims :]
    x = torch.full((4, 1, *size), 0.3)
    grid = transform.grid(thetas(transform, batch=4, spread=spread), size)
    assert torch.equal(sample(x, grid, mode, fill=0.3), x)


@both_modes
def test_each_channel_stays_constant_with_its_own_fill(mode):
    fill = [0.3, -1.7, 0.0]
    x = torch.tensor(fill).view(1, 3, 1, 1).expand(4, 3, 28, 28)
    grid = Affine().grid(thetas(Affine(), batch=4, spread=1.0), (28, 28))
    assert torch.equal(sample(x, grid, mode, fill=fill), x)


@both_modes
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_far_outside_is_zero_or_the_fill_of_the_channel(layout, mode):
    x = random(1, 64, 5, 6).contiguous(memory_format=layout)
    grid = torch.tensor([-3.0, 2.5, 1e4, -1e9, 1e30]).view(1, 1, -1, 1).expand(1, 1, -1, 2)
    assert torch.equal(sample(x, grid, mode), torch.zeros(1, 64, 1, 5))
    fill = torch.linspace(-2, 0.25, 64)
    expected = fill.view(1, 64, 1, 1).expand(1, 64, 1, 5)
    assert torch.equal(sample(x, grid, mode, fill=fill), expected)


@both_modes
def test_a_fill_is_what_an_input_with_a_wide_border_of_it_would_give(mode):
    x = random(2, 1, 6, 7)
    grid = Affine().grid(thetas(Affine()), (6, 7))
    wide = F.pad(x, [7, 7, 6, 6], value=0.4)
    torch.testing.assert_close(
        sample(x, grid, mode, fill=0.4), sample(wide, grid / 3, mode), rtol=0, atol=1e-4
    )


# The paper's equations, literally


def hat(x, length):
    """max(0, 1 - |x - m|) for all m, ``(N, length)``."""
    return (1 - (x[:, None] - torch.arange(length)).abs()).clamp(min=0)


def slope(x, length):
    """The last factor of equation (7) for all m, ``(N, length)``."""
    distance = torch.arange(length) - x[:, None]
    return torch.where(distance.abs() >= 1, 0.0, torch.where(distance >= 0, 1.0, -1.0)).double()


def hats(pixels, size):
    """The factors of equation (5) of each axis: y and x, or z, y and x."""
    return [hat(x, n) for x, n in zip(reversed(pixels.unbind(1)), size, strict=True)]


@pytest.mark.parametrize("size", [(4, 5), (7, 3), (8, 8), (3, 4, 5)], ids=str)
def test_bilinear_is_equation_5(size):
    x, pixels = random(1, 2, *size, dtype=torch.float64), random_pixels(40, size)
    axes = "zyx"[-len(size) :]
    sums = f"c{axes}," + ",".join(f"n{axis}" for axis in axes) + "->cn"
    expected = torch.einsum(sums, x[0], *hats(pixels, size))
    torch.testing.assert_close(sample(x, as_row(pixels, size))[0].flatten(1), expected)


def equation_4(image, *point):
    """The pixel at floor(x + 0.5), floor(y + 0.5)(, floor(z + 0.5)) where there is one, else 0."""
    index = tuple(math.floor(coordinate + 0.5) for coordinate in reversed(point))
    inside = all(0 <= i < n for i, n in zip(index, image.shape, strict=True))
    return image[index].item() if inside else 0.0


@pytest.mark.parametrize("size", [(4, 5), (7, 3), (8, 8), (3, 4, 5)], ids=str)
def test_nearest_is_equation_4(size):
    x = random(1, 1, *size, dtype=torch.float64)
    pixels = random_pixels(60, size)
    expected = [equation_4(x[0, 0], *point) for point in pixels.tolist()]
    assert sample(x, as_row(pixels, size), "nearest").flatten().tolist() == expected


# Gradients


def gradients(x, grid, upstream, mode="bilinear"):
    x, grid = x.clone().requires_grad_(), grid.clone().requires_grad_()
    return torch.autograd.grad((sample(x, grid, mode) * upstream).sum(), (x, grid))


@pytest.mark.parametrize("size", [(4, 5), (7, 3), (8, 8)], ids=str)
def test_gradient_of_the_input_is_equation_6(size):
    x, pixels = random(1, 2, *size, dtype=torch.float64), random_pixels(20, size)
    upstream = random(1, 2, 1, 20, dtype=torch.float64, seed=3)
    expected = torch.einsum("cn,ny,nx->cyx", upstream[0, :, 0], *hats(pixels, size))
    torch.testing.assert_close(gradients(x, as_row(pixels, size), upstream)[0][0], expected)


@pytest.mark.parametrize("size", [(4, 5), (7, 3), (8, 8)], ids=str)
def test_gradient_of_the_points_is_equation_7(size):
    x, pixels = random(1, 2, *size, dtype=torch.float64), random_pixels(20, size)
    upstream = random(1, 2, 1, 20, dtype=torch.float64, seed=3)
    hat_y, hat_x = hats(pixels, size)
    slope_x, slope_y = (slope(pixels[:, axis], size[1 - axis]) for axis in (0, 1))
    expected = [
        n / 2 * torch.einsum("cyx,cn,ny,nx->n", x[0], upstream[0, :, 0], *factors)
        for n, factors in ((size[1], (hat_y, slope_x)), (size[0], (slope_y, hat_x)))
    ]
    found = gradients(x, as_row(pixels, size), upstream)[1]
    torch.testing.assert_close(found.reshape(-1, 2), torch.stack(expected, dim=1))


@every_family
@both_modes
def test_gradients_are_the_numerical_ones_through_theta_and_input(make, mode):
    """For nearest, the gradient of theta is 0."""
    transform = make()
    assert torch.autograd.gradcheck(small_warp(transform, mode), small_inputs(transform))


def test_gradient_through_a_fill_is_the_numerical_one():
    transform = Affine()
    assert torch.autograd.gradcheck(
        lambda u, t: sample(u, transform.grid(t, (3, 4)), fill=[0.5, -1]), small_inputs(transform)
    )


# Shapes, memory and precision


def test_sampling_leaves_its_arguments_as_they_are():
    x, grid = random(2, 3, 8, 8), Affine().grid(thetas(Affine()), (8, 8))
    before = x.clone(), grid.clone()
    sample(x, grid, "nearest", fill=0.5)
    assert torch.equal(x, before[0])
    assert torch.equal(grid, before[1])


@pytest.mark.parametrize("antialias", [False, True])
def test_an_empty_batch_gives_an_empty_batch(antialias):
    out = sample(torch.empty(0, 3, 9, 10), torch.empty(0, 7, 6, 2), antialias=antialias)
    assert out.shape == (0, 3, 7, 6)


@both_modes
@half_precision
def test_half_precision_is_sampled_in_float32_and_rounded_once(dtype, mode):
    x, grid = random(2, 3, 28, 28).to(dtype), Affine().grid(thetas(Affine()), (28, 28))
    out = sample(x, grid, mode)
    assert out.dtype == dtype
    assert torch.equal(out, sample(x.float(), grid, mode).to(dtype))


@both_modes
def test_autocast_leaves_the_warp_as_it_is(mode):
    x, grid = random(2, 3, 28, 28), Affine().grid(thetas(Affine()), (28, 28))
    expected = sample(x, grid, mode, fill=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = sample(x, grid, mode, fill=0.3)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, expected)


@pytest.mark.parametrize(
    ("x_dtype", "grid_dtype", "out_dtype"),
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float32, torch.float64, torch.float32),
    ],
)
def test_the_output_has_the_dtype_of_the_input(x_dtype, grid_dtype, out_dtype):
    grid = pixel_centres((1, 4)).T[None, None].to(grid_dtype)
    assert sample(random(1, 1, 4, 4, dtype=x_dtype), grid).dtype == out_dtype


# Refusals


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (1, 1, 2, 3, 4, 5)], ids=str)
def test_an_input_that_is_no_batch_of_images_or_volumes_is_refused(shape):
    with pytest.raises(ValueError, match=r"x must be \(B, C, H, W\) or \(B, C, D, H, W\), got \("):
        sample(torch.zeros(shape), torch.zeros(1, 4, 5, 2))


@pytest.mark.parametrize(
    ("size", "shape"),
    [((4, 5), shape) for shape in [(2, 4, 5, 3), (1, 4, 5, 2), (2, 5, 2), (2, 3, 4, 5, 3)]]
    + [((3, 4, 5), shape) for shape in [(2, 3, 4, 5, 2), (1, 3, 4, 5, 3), (2, 4, 5, 2)]],
    ids=str,
)
def test_a_grid_that_does_not_fit_the_input_is_refused(size, shape):
    x = torch.zeros(2, 1, *size)
    message = f"grid must be (2, *size, {len(size)}) for x of {tuple(x.shape)}, got {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(x, torch.zeros(shape))


@pytest.mark.parametrize(
    ("x_shape", "grid_shape"),
    [
        ((1, 1, 0, 4), (1, 2, 2, 2)),
        ((1, 0, 4, 4), (1, 2, 2, 2)),
        ((1, 1, 4, 4), (1, 0, 2, 2)),
        ((1, 1, 2, 0, 4), (1, 2, 2, 2, 3)),
    ],
)
def test_empty_dimensions_are_refused(x_shape, grid_shape):
    with pytest.raises(ValueError, match=r"x and grid must not be empty, got \("):
        sample(torch.zeros(x_shape), torch.zeros(grid_shape))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.uint8, torch.bool], ids=str)
def test_images_and_grids_that_are_not_of_floating_point_are_refused(dtype):
    with pytest.raises(
        TypeError, match=f"x and grid must be floating point, got {dtype} and torch.float32"
    ):
        sample(torch.zeros(1, 1, 4, 5, dtype=dtype), torch.zeros(1, 4, 5, 2))
    with pytest.raises(
        TypeError, match=f"x and grid must be floating point, got torch.float32 and {dtype}"
    ):
        sample(torch.zeros(1, 1, 4, 5), torch.zeros(1, 4, 5, 2, dtype=dtype))


@pytest.mark.parametrize("mode", ["bicubic", "", "Bilinear"])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match=f"mode must be 'bilinear' or 'nearest', got '{mode}'"):
        sample(torch.zeros(1, 1, 4, 5), torch.zeros(1, 4, 5, 2), mode)


@pytest.mark.parametrize("fill", [[], [0.1, 0.2], [0.1] * 4])
def test_as_many_fills_as_neither_one_nor_the_channels_are_refused(fill):
    with pytest.raises(
        ValueError,
        match=f"fill must have 1 or 3 numbers, got {len(fill)}",
    ):
        sample(torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, 2), fill=fill)


@pytest.mark.parametrize(
    "fill", [math.nan, math.inf, [0.0, -math.inf, 1.0], torch.tensor(math.nan)], ids=str
)
def test_a_fill_that_is_not_finite_is_refused(fill):
    with pytest.raises(ValueError, match="fill must be finite, got"):
        sample(torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, 2), fill=fill)


@pytest.mark.parametrize("fill", [None, "0.5", "red", [None] * 3, ["0"] * 3, 1j, {"a": 1}], ids=str)
def test_a_fill_that_is_not_numeric_is_refused(fill):
    with pytest.raises(TypeError, match="fill must be one number or one per channel, got"):
        sample(torch.zeros(1, 3, 4, 5), torch.zeros(1, 4, 5, 2), fill=fill)


@pytest.mark.parametrize(
    "fill",
    [
        np.float32(0.5),
        np.array(0.5),
        torch.tensor(0.5),
        np.full(3, 0.5),
        torch.full((3,), 0.5),
        (0.5,),
    ],
)
def test_a_fill_may_be_an_array_or_a_tensor(fill):
    x, grid = random(1, 3, 4, 5), Affine().grid(thetas(Affine(), 1), (4, 5))
    assert torch.equal(sample(x, grid, fill=fill), sample(x, grid, fill=0.5))


# Channels-last maps


@pytest.mark.parametrize("channels", [3, 64, 80])
@both_modes
def test_channels_last_maps_are_sampled_alike_and_stay_channels_last(channels, mode):
    x = random(2, channels, 9, 12)
    grid = Affine().grid(thetas(Affine(), spread=0.5), (7, 6))
    last = x.contiguous(memory_format=torch.channels_last)
    out = sample(last, grid, mode, fill=0.3)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert sample(x, grid, mode).is_contiguous()
    torch.testing.assert_close(out, sample(x, grid, mode, fill=0.3), rtol=0, atol=1e-5)


def test_a_point_that_is_nan_makes_only_its_own_output_nan():
    x, grid = random(2, 64, 5, 4), Affine().grid(thetas(Affine()), (3, 3))
    grid[1, 0, 2] = math.nan
    expected = sample(x, grid)
    assert expected.isnan().sum() == 64
    out = sample(x.contiguous(memory_format=torch.channels_last), grid)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5, equal_nan=True)


def test_channels_last_volumes_stay_channels_last():
    x = random(1, 5, 4, 6, 7)
    grid = Affine3d().grid(thetas(Affine3d(), 1), (3, 4, 5))
    out = sample(x.contiguous(memory_format=torch.channels_last_3d), grid)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(out, sample(x, grid))


@pytest.mark.parametrize("spread", [0.2, 3.0], ids=["inside", "mostly_outside"])
def test_gradients_of_channels_last_maps_are_those_of_others(spread):
    x = random(2, 64, 9, 12)
    grid = Affine().grid(thetas(Affine(), spread=spread), (7, 6))
    upstream = random(2, 64, 7, 6, seed=3)
    last = gradients(x.contiguous(memory_format=torch.channels_last), grid, upstream)
    for ours, expected in zip(last, gradients(x, grid, upstream), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)


@since_torch("2.12")
def test_second_derivatives_of_channels_last_maps_need_the_general_path():
    x = (
        random(1, 64, 4, 5, dtype=torch.float64)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    grid = Affine().grid(thetas(Affine(), 1, dtype=torch.float64), (2, 3)).requires_grad_()

    def second(**options):
        (first,) = torch.autograd.grad(
            sample(x, grid, **options).square().sum(), grid, create_graph=True
        )
        return torch.autograd.grad(first.sum(), grid)[0]

    assert second(second_order=True).abs().sum() > 0
    with pytest.raises(RuntimeError, match=r"not implemented|not differentiable|derivative"):
        second()


# Antialiasing


@pytest.mark.parametrize(
    ("size", "factors"),
    [(size, (n, n)) for size in [(12, 12), (6, 9)] for n in (1, 2, 3, 5)]
    + [((12, 9), (1, 4)), ((2, 3, 4), (3, 3, 3))],
    ids=str,
)
def test_antialiasing_is_area_averaging_where_the_factor_is_whole(size, factors):
    transform, pool = (Affine(), F.avg_pool2d) if len(size) == 2 else (Affine3d(), F.avg_pool3d)
    x = random(2, 3, *(n * factor for n, factor in zip(size, factors, strict=True)))
    out = sample(x, identity_grid(transform, size, 2), antialias=True)
    torch.testing.assert_close(out, pool(x, factors), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [2.5, 3.3, 4.7])
def test_antialiasing_is_near_area_averaging_for_other_factors(factor):
    out_size = 20
    size = round(out_size * factor)
    noise = random(8, 1, size, size)
    averaged = F.interpolate(noise, (out_size, out_size), mode="area")
    grid = identity_grid(Affine(), (out_size, out_size), 8)
    plain, smooth = (
        (sample(noise, grid, antialias=on) - averaged).square().mean().sqrt()
        for on in (False, True)
    )
    assert smooth < 0.4 * plain


def test_antialiasing_leaves_windows_that_enlarge_as_they_are():
    x = random(2, 1, 9, 10)
    grid = Affine().grid(0.5 * thetas(Affine()), (12, 14))
    torch.testing.assert_close(sample(x, grid, antialias=True), sample(x, grid))


def test_antialiasing_of_a_sample_does_not_depend_on_the_batch():
    x = random(2, 1, 24, 24)
    theta = torch.tensor([[3.0, 0, 0, 0, 3, 0], [1.0, 0, 0, 0, 1, 0]])
    together = sample(x, Affine().grid(theta, (8, 8)), antialias=True)
    alone = sample(x[:1], Affine().grid(theta[:1], (8, 8)), antialias=True)
    torch.testing.assert_close(together[:1], alone)


def test_antialiasing_has_the_numerical_gradient():
    transform = Affine()
    x = random(1, 1, 9, 11, dtype=torch.float64).requires_grad_()
    theta = torch.tensor(
        [[1.1, 0.2, 0.05, -0.1, 0.9, 0.1]], dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(
        lambda u, t: sample(u, transform.grid(t, (3, 4)), antialias=True), (x, theta)
    )


def test_antialiasing_needs_bilinear_mode_and_two_points_along_each_axis():
    with pytest.raises(ValueError, match="mode must be 'bilinear' with antialias, got 'nearest'"):
        sample(torch.zeros(1, 1, 4, 5), torch.zeros(1, 4, 5, 2), "nearest", antialias=True)
    with pytest.raises(ValueError, match="antialias needs a grid of two points along each axis"):
        sample(torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 5, 2), antialias=True)
