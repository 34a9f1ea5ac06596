"""The distortions of MNIST against slow references, and the random numbers that they are made of."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from spatial_transformer.data.mnist.distortions import (
    DIGIT,
    DISTORTIONS,
    _displaced_corners,
    clutter,
    is_convex,
    translate,
)
from spatial_transformer.utils.random import integers, normal, sample_keys, uniform

MANY = 50_000
UNCORRELATED = 4.5 / math.sqrt(MANY)
LAST_BIT = 5e-6  # the last bit of a float32 coordinate of 20 px is 2e-6 px, and a digit changes by at most 1 in a pixel
SQUARE = [
    [-14.0, -14.0],
    [14.0, -14.0],
    [14.0, 14.0],
    [-14.0, 14.0],
]  # corners of a digit, clockwise on the screen

each_distortion = pytest.mark.parametrize("name", DISTORTIONS)


def keys_of(n, seed=1, epoch=0):
    return sample_keys(seed, epoch, torch.arange(n))


def pool_of(digits):
    return (digits[:, 0] * 255).round().to(torch.uint8)


def distort(name, images, keys, digits, canvas=None):
    return DISTORTIONS[name].apply(
        images, keys, canvas or DISTORTIONS[name].canvas, pool_of(digits).to(images.device)
    )


def assert_uncorrelated(*columns):
    off_diagonal = np.corrcoef(np.stack([column.double().numpy() for column in columns]))[
        np.triu_indices(len(columns), 1)
    ]
    assert np.abs(off_diagonal).max() < UNCORRELATED


# Keys


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_keys_of_a_whole_data_set_over_epochs_are_all_different(seed):
    keys = torch.cat([keys_of(60_000, seed, epoch) for epoch in range(4)])
    assert len(keys.unique()) == len(keys)


def test_keys_of_neighbouring_seeds_and_epochs_are_all_different():
    keys = torch.cat([keys_of(60_000, seed, epoch) for seed, epoch in product(range(3), range(3))])
    assert len(keys.unique()) == len(keys)


def test_keys_have_the_shape_of_the_index_and_do_not_depend_on_its_type():
    index = torch.arange(12).view(3, 4)
    keys = sample_keys(1, 2, index)
    assert keys.shape == index.shape
    assert keys.dtype == torch.int64
    assert torch.equal(keys, sample_keys(1, 2, index.int()))


def test_a_key_depends_on_its_own_index_alone():
    assert torch.equal(sample_keys(3, 2, torch.tensor([7, 5])), keys_of(10, 3, 2)[[7, 5]])


def test_every_bit_of_the_keys_is_set_in_half_of_them():
    keys = keys_of(MANY)
    shares = torch.stack([(keys >> bit & 1).double().mean() for bit in range(64)])
    assert (shares - 0.5).abs().max() < 0.5 * UNCORRELATED


# Random numbers


def test_uniform_numbers_fill_the_open_unit_interval_evenly():
    numbers = uniform(keys_of(MANY), 4)
    assert numbers.shape == (MANY, 4)
    assert numbers.dtype == torch.float32
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert numbers.double().mean().item() == pytest.approx(
        1 / 2, abs=4 / math.sqrt(12 * numbers.numel())
    )
    assert numbers.double().var().item() == pytest.approx(1 / 12, rel=0.01)
    assert stats.chisquare(torch.histc(numbers, 200, 0, 1).numpy()).pvalue > 1e-3


def test_the_least_number_is_above_zero_and_its_normal_finite():
    key = torch.tensor(
        [0x61C8864680B583EB]
    )  # cancels the first counter, so that all bits of the number are 0
    assert 0 < uniform(key, 1).item() < 1e-6
    assert normal(key, 1).isfinite()


def test_normal_numbers_have_the_moments_and_the_shape_of_a_standard_normal():
    numbers = normal(keys_of(MANY), 4).flatten().double()
    assert numbers.isfinite().all()
    moments = [numbers.pow(power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("below", [1, 2, 23, 33, 55_000])
def test_integers_reach_every_value_below_the_bound_equally_often(below):
    numbers = integers(keys_of(MANY), 20, below)
    assert numbers.shape == (MANY, 20)
    assert numbers.dtype == torch.int64
    assert numbers.min() >= 0
    assert numbers.max() == below - 1
    counts = torch.bincount(numbers.flatten(), minlength=below)
    assert counts.min() > 0
    assert below == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("draw", [uniform, normal])
def test_numbers_of_one_sample_and_of_different_streams_are_uncorrelated(draw):
    keys = keys_of(MANY)
    assert_uncorrelated(
        *(column for stream in range(4) for column in draw(keys, 4, stream).unbind(1))
    )


def test_different_streams_of_a_key_share_no_numbers():
    numbers = torch.cat([uniform(keys_of(1), 64, stream) for stream in range(8)], dim=1)
    assert len(numbers.unique()) > 0.99 * numbers.numel()


@pytest.mark.parametrize("lag", [1, 2, 256])
def test_neighbouring_samples_are_uncorrelated(lag):
    numbers = uniform(keys_of(MANY + lag), 2)
    assert_uncorrelated(*numbers[:-lag].unbind(1), *numbers[lag:].unbind(1))


def test_neighbouring_keys_give_uncorrelated_numbers():
    numbers = uniform(torch.arange(MANY + 1), 2)
    assert_uncorrelated(*numbers[:-1].unbind(1), *numbers[1:].unbind(1))


def test_neighbouring_epochs_are_uncorrelated():
    assert_uncorrelated(*(uniform(keys_of(MANY, epoch=epoch), 1)[:, 0] for epoch in range(6)))


def test_neighbouring_seeds_are_uncorrelated():
    assert_uncorrelated(*(uniform(keys_of(MANY, seed=seed), 1)[:, 0] for seed in range(6)))


def test_the_numbers_of_one_sample_over_the_epochs_are_uniform_and_uncorrelated():
    keys = torch.cat([sample_keys(1, epoch, torch.tensor([7])) for epoch in range(2_000)])
    numbers = uniform(keys, 1)[:, 0].double().numpy()
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4.5 / math.sqrt(len(numbers))


# Every distortion


@each_distortion
def test_a_sample_does_not_depend_on_batch_size_or_order(name, digits):
    keys = keys_of(len(digits))
    together = distort(name, digits, keys, digits)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(1))
    apart = torch.cat([distort(name, digits[part], keys[part], digits) for part in order.split(7)])
    tolerance = 0 if name in ("t", "tc") else LAST_BIT
    torch.testing.assert_close(apart, together[order], rtol=0, atol=tolerance)


@each_distortion
def test_the_same_batch_is_the_same_bit_for_bit_when_made_again(name, digits):
    first, second = (distort(name, digits, keys_of(len(digits)), digits) for _ in range(2))
    assert torch.equal(first, second)


@each_distortion
@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 2}], ids=["epoch", "seed"])
def test_another_epoch_or_seed_distorts_every_sample_otherwise(name, other, digits):
    first, second = (
        distort(name, digits, keys_of(len(digits), **change), digits) for change in ({}, other)
    )
    assert ((first - second).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@each_distortion
def test_neighbouring_samples_are_distorted_differently(name, digits):
    made = distort(name, digits[:1].expand(64, -1, -1, -1), keys_of(64), digits)
    assert ((made[1:] - made[:-1]).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@each_distortion
@pytest.mark.parametrize("canvas", ["smallest", "paper's", "larger"])
def test_distorted_images_have_the_canvas_and_the_range_asked_for(name, canvas, digits):
    distortion = DISTORTIONS[name]
    size = {
        "smallest": distortion.smallest,
        "paper's": distortion.canvas,
        "larger": distortion.canvas + 13,
    }[canvas]
    images = torch.cat([digits.repeat(8, 1, 1, 1), torch.ones(512, 1, DIGIT, DIGIT)])
    made = distort(name, images, keys_of(1024), digits, size)
    assert made.shape == (1024, 1, size, size)
    assert made.dtype == torch.float32
    assert made.isfinite().all()
    assert made.min() >= 0
    assert made.max() <= 1 + 1e-6
    assert (
        made.amax(dim=(1, 2, 3)) > 0.5
    ).float().mean() > 0.99  # P squeezes one digit in hundreds to a line or less


@each_distortion
def test_an_empty_batch_gives_an_empty_batch(name, digits):
    assert distort(name, digits[:0], keys_of(0), digits).shape == (
        0,
        1,
        DISTORTIONS[name].canvas,
        DISTORTIONS[name].canvas,
    )


@each_distortion
def test_distorting_leaves_the_images_as_they_were(name, digits):
    images = digits.clone()
    distort(name, images, keys_of(len(images)), digits)
    assert torch.equal(images, digits)


@each_distortion
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_makes_the_samples_of_the_cpu(name, digits):
    here = distort(name, digits, keys_of(64), digits)
    there = distort(name, digits.cuda(), sample_keys(1, 0, torch.arange(64, device="cuda")), digits)
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-4)


def test_the_canvases_are_those_of_the_paper():
    assert {name: distortion.canvas for name, distortion in DISTORTIONS.items()} == {
        "r": 28,
        "rts": 42,
        "p": 28,
        "e": 28,
        "t": 60,
        "tc": 60,
    }


# Slow references: one sample at a time, points in pixels from the centre, y down


def draw(numbers, key, n, *more, stream=0):
    return numbers(key.view(1), n, *more, stream=stream)[0].double().numpy()


def centres(canvas):
    """(canvas * canvas, 2) pixel centres, (x, y)."""
    y, x = np.mgrid[:canvas, :canvas] - (canvas - 1) / 2
    return np.stack([x.ravel(), y.ravel()], axis=1)


def read_at(image, points, canvas):
    x, y = points.T + (DIGIT - 1) / 2
    return map_coordinates(image, [y, x], order=1, mode="grid-constant", cval=0).reshape(
        canvas, canvas
    )


def turned_scaled_shifted(image, degrees, scale, shift, canvas):
    angle = np.radians(degrees)
    forward = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return read_at(image, (centres(canvas) - shift) @ np.linalg.inv(forward).T, canvas)


def slow_r(image, key, canvas, pool):
    return turned_scaled_shifted(
        image, -90 + 180 * draw(uniform, key, 1)[0], 1, np.zeros(2), canvas
    )


def rts_numbers(key, canvas):
    angle, scale, x, y = draw(uniform, key, 4)
    scale = 0.7 + 0.5 * scale
    room = canvas - DIGIT * scale  # how much the scaled image, unturned, may move in all
    return -45 + 90 * angle, scale, (np.array([x, y]) - 0.5) * room


def slow_rts(image, key, canvas, pool):
    return turned_scaled_shifted(image, *rts_numbers(key, canvas), canvas)


def turns_right_at_every_corner(corners):
    sides = [corners[(k + 1) % 4] - corners[k] for k in range(4)]
    return all(a[0] * b[1] - a[1] * b[0] > 0 for a, b in zip(sides, sides[1:] + sides[:1]))


def p_corners(key):
    """The displaced corners and how many draws were thrown away."""
    scaled = np.array(SQUARE) * (0.75 + 0.25 * draw(uniform, key, 1)[0])
    candidates = scaled + 5 / np.sqrt(2) * draw(normal, key, 32, stream=1).reshape(4, 4, 2)
    first = next(k for k, corners in enumerate(candidates) if turns_right_at_every_corner(corners))
    return candidates[first], first


def homography(source, target):
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(rows, values), 1).reshape(3, 3)


def homogeneous(points):
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def slow_p(image, key, canvas, pool):
    corners, _ = p_corners(key)
    back = homography(corners, SQUARE)
    points = homogeneous(centres(canvas)) @ back.T
    side = np.sign((homogeneous(corners) @ back.T)[:, 2])
    assert abs(side.sum()) == 4, "all corners lie before the viewer"
    in_front = points[:, 2] * side[0] > 0
    points[~in_front] = [1e3, 1e3, 1]
    return read_at(image, points[:, :2] / points[:, 2:], canvas)


def slow_e(image, key, canvas, pool):
    scale = 0.75 + 0.25 * draw(uniform, key, 1)[0]
    axis = np.linspace(-canvas / 2, canvas / 2, 4)
    control = np.array([(x, y) for y in axis for x in axis])
    moved = control + 1.5 * draw(normal, key, 32, stream=1).reshape(2, 16).T
    spline = RBFInterpolator(control, moved, kernel="thin_plate_spline")
    return read_at(image, spline(centres(canvas)) / scale, canvas)


def slow_t(image, key, canvas, pool):
    row, column = draw(integers, key, 2, canvas - DIGIT + 1).astype(int)
    made = np.zeros((canvas, canvas))
    made[row : row + DIGIT, column : column + DIGIT] = image
    return made


def slow_tc(image, key, canvas, pool):
    made = slow_t(image, key, canvas, pool)
    sources = draw(integers, key, 6, len(pool), stream=1).astype(int)
    cuts = draw(integers, key, 12, DIGIT - 6 + 1, stream=2).astype(int).reshape(6, 2)
    places = draw(integers, key, 12, canvas - 6 + 1, stream=3).astype(int).reshape(6, 2)
    for source, (row, column), (to_row, to_column) in zip(sources, cuts, places):
        patch = pool[source].numpy()[row : row + 6, column : column + 6] / 255
        below = made[to_row : to_row + 6, to_column : to_column + 6]
        below[:] = np.maximum(below, patch)
    return made


SLOW = {"r": slow_r, "rts": slow_rts, "p": slow_p, "e": slow_e, "t": slow_t, "tc": slow_tc}


def assert_as_slow(name, images, keys, digits, canvas):
    fast = distort(name, images, keys, digits, canvas)
    slow = np.stack(
        [
            SLOW[name](image.double().numpy()[0], key, canvas, pool_of(digits))
            for image, key in zip(images, keys)
        ]
    )
    np.testing.assert_allclose(fast[:, 0].numpy(), slow, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "canvas"), [(name, size) for name, d in DISTORTIONS.items() for size in (d.canvas, 47)]
)
def test_a_distortion_agrees_with_its_slow_reference(name, canvas, digits):
    assert_as_slow(name, digits[:24], keys_of(24, seed=5, epoch=3), digits, canvas)


@each_distortion
def test_a_distortion_agrees_with_its_slow_reference_up_to_the_edge_of_the_image(name, digits):
    images = 0.1 + 0.9 * torch.rand(12, 1, DIGIT, DIGIT, generator=torch.Generator().manual_seed(2))
    assert_as_slow(name, images, keys_of(12, seed=6), digits, DISTORTIONS[name].canvas)


def test_p_draws_again_where_the_corners_are_not_convex(digits):
    keys = keys_of(20_000)
    once = _displaced_corners(torch.tensor(SQUARE), keys, draws=1)
    keys = keys[~is_convex(once)]
    again = torch.tensor([p_corners(key)[1] > 0 for key in keys])
    assert 3 <= len(keys) <= 20
    assert again.all()
    assert_as_slow("p", digits[: again.sum()], keys[again], digits, 28)


def test_p_draws_again_as_often_as_the_documents_say():
    once = _displaced_corners(torch.tensor(SQUARE), keys_of(MANY), draws=1)
    assert (~is_convex(once)).float().mean().item() == pytest.approx(0.0003, abs=0.0001)
    assert is_convex(_displaced_corners(torch.tensor(SQUARE), keys_of(MANY))).all()


# Ranges of the paper, read off distorted pictures


def blob(x, y, width=1.8):
    """(1, 28, 28): a Gaussian of ink at (x, y)."""
    points = torch.from_numpy(centres(DIGIT)).float() - torch.tensor([x, y])
    return torch.exp(-points.square().sum(1) / (2 * width**2)).view(1, DIGIT, DIGIT)


def middle_of_ink(made):
    """(B, 2) centre of mass, (x, y) from the canvas's centre."""
    flat = made.double().flatten(1)
    return (flat @ torch.from_numpy(centres(made.shape[-1]))) / flat.sum(1, keepdim=True)


def assert_uniform_between(values, low, high, slack=0.0):
    assert low - slack <= values.min() < low + 0.02 * (high - low)
    assert high - 0.02 * (high - low) < values.max() <= high + slack
    assert stats.kstest((values.numpy() - low) / (high - low), "uniform").pvalue > 1e-3


def test_r_turns_clockwise_by_an_angle_uniform_in_90_degrees_either_way():
    keys = keys_of(2000)
    x, y = middle_of_ink(
        distort("r", blob(6.0, 0.0).expand(2000, 1, -1, -1), keys, torch.zeros(1, 1, 28, 28))
    ).T
    angle = torch.rad2deg(torch.atan2(y, x))
    assert_uniform_between(angle, -90, 90, slack=0.1)
    torch.testing.assert_close(torch.hypot(x, y), torch.full_like(x, 6.0), rtol=0, atol=0.02)


def test_rts_draws_angle_scale_and_place_from_the_ranges_of_the_paper():
    keys, nothing = keys_of(2000), torch.zeros(1, 1, 28, 28)
    middle = distort("rts", blob(0.0, 0.0).expand(2000, 1, -1, -1), keys, nothing)
    aside = distort("rts", blob(6.0, 0.0).expand(2000, 1, -1, -1), keys, nothing)
    scale = (middle.double().sum(dim=(1, 2, 3)) / blob(0.0, 0.0).sum()).sqrt()
    shift = middle_of_ink(middle)
    x, y = (middle_of_ink(aside) - shift).T
    angle = torch.rad2deg(torch.atan2(y, x))
    place = shift / ((42 - DIGIT * scale) / 2)[:, None]
    assert_uniform_between(angle, -45, 45, slack=0.1)
    assert_uniform_between(scale, 0.7, 1.2, slack=0.002)
    assert_uniform_between(place[:, 0], -1, 1, slack=0.01)
    assert_uniform_between(place[:, 1], -1, 1, slack=0.01)
    torch.testing.assert_close(torch.hypot(x, y), 6 * scale, rtol=0.02, atol=0)
    drawn = np.corrcoef(torch.stack([angle, scale, *place.T]).numpy())[np.triu_indices(4, 1)]
    assert np.abs(drawn).max() < 4.5 / math.sqrt(len(keys))


def test_rts_loses_no_ink_of_a_digit_at_the_edge_of_the_canvas():
    candidates = keys_of(MANY)
    angle, _, *place = (uniform(candidates, 4) - 0.5).abs().unbind(1)
    keys = candidates[
        (angle + place[0] + place[1]).topk(32).indices
    ]  # turned far and put far into a corner
    box = torch.zeros(1, 1, DIGIT, DIGIT)
    box[:, :, 4:24, 4:24] = 1
    made = distort("rts", box.expand(32, -1, -1, -1), keys, box)
    for one, key in zip(made, keys):
        # The turned box reaches 20 sqrt(2) / 2 = 14.1 px, the image 14 px: of the outermost pixels a trace may be lost.
        whole = turned_scaled_shifted(box[0, 0].double().numpy(), *rts_numbers(key, 42), 42 + 20)
        assert one.sum().item() == pytest.approx(whole.sum(), rel=5e-4)


def source_points(name, keys):
    """For each canvas pixel the source point it reads (B, N, 2) and whether that lies inside the image (B, N)."""
    x, y = (
        torch.from_numpy(centres(DIGIT)[:, axis] / DIGIT + 0.5).float().view(1, 1, DIGIT, DIGIT)
        for axis in (0, 1)
    )
    black = torch.zeros(1, 1, DIGIT, DIGIT)
    read = [
        distort(name, image.expand(len(keys), -1, -1, -1), keys, black)
        for image in (x, y, torch.ones_like(x))
    ]
    points = torch.stack([(value - 0.5) * DIGIT for value in read[:2]], dim=-1).double()
    return points.flatten(1, 3).numpy(), (read[2] > 1 - 1e-6).flatten(1).numpy()


def test_p_scales_by_three_quarters_to_one_and_displaces_corners_by_5_px_in_the_root_mean_square():
    displaced = []
    for points, inside in zip(*source_points("p", keys_of(400))):
        (x, y), (u, v) = (
            points[inside].T,
            centres(DIGIT)[inside].T,
        )  # (x, y) of the digit lies at (u, v) of the canvas
        if len(x) < 40:
            continue
        zero, one = np.zeros_like(x), np.ones_like(x)
        rows = [
            [x, y, one, zero, zero, zero, -u * x, -u * y],
            [zero, zero, zero, x, y, one, -v * x, -v * y],
        ]
        solution = np.linalg.lstsq(
            np.concatenate([np.stack(row, axis=1) for row in rows]), np.append(u, v), rcond=None
        )[0]
        corners = homogeneous(np.array(SQUARE)) @ np.append(solution, 1).reshape(3, 3).T
        displaced.append(corners[:, :2] / corners[:, 2:])
    displaced = np.array(displaced)
    assert len(displaced) > 390
    scale = 0.875
    np.testing.assert_allclose(
        displaced.mean(axis=0), scale * np.array(SQUARE), atol=4.5 * 5 / math.sqrt(len(displaced))
    )
    deviation = math.sqrt(5**2 / 2 + 14**2 * 0.25**2 / 12)  # of the displacement and of the scale
    np.testing.assert_allclose(displaced.std(axis=0), deviation, rtol=0.15)
    assert displaced.std() == pytest.approx((deviation**2 + (14 * scale) ** 2) ** 0.5, rel=0.03)


def test_e_scales_by_three_quarters_to_one_and_displaces_control_points_with_a_deviation_of_one_and_a_half_px():
    points = source_points("e", keys_of(2000))[0].reshape(-1, DIGIT, DIGIT, 2)
    control = (
        DIGIT / 6
    )  # the inner four lie at +-14/3 px, a sixth of a pixel beyond a pixel's centre
    weight = control - 4.5
    near, far = np.array([9, 18]), np.array([8, 19])
    rows = (1 - weight) * points[:, near] + weight * points[:, far]
    at_control = (1 - weight) * rows[:, :, near] + weight * rows[:, :, far]
    inverse, inverse_squared = (
        math.log(4 / 3) / 0.25,
        4 / 3,
    )  # means of 1/s and 1/s^2, s uniform in 0.75 to 1
    deviation = math.sqrt(1.5**2 * inverse_squared + control**2 * (inverse_squared - inverse**2))
    places = np.array(
        [[[-control, -control], [control, -control]], [[-control, control], [control, control]]]
    )
    np.testing.assert_allclose(
        at_control.mean(axis=0), places * inverse, atol=4.5 * deviation / math.sqrt(2000)
    )
    np.testing.assert_allclose(at_control.std(axis=0), deviation, rtol=0.08)


# Translation and clutter


def test_t_moves_the_image_by_whole_pixels_and_changes_nothing(digits):
    images = 0.1 + 0.9 * torch.rand(64, 1, DIGIT, DIGIT, generator=torch.Generator().manual_seed(3))
    made = translate(images, keys_of(64), 60)
    for image, one in zip(images[:, 0], made[:, 0]):
        rows, columns = one.amax(1).nonzero()[:, 0], one.amax(0).nonzero()[:, 0]
        assert len(rows) == len(columns) == DIGIT
        assert torch.equal(one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], image)


def test_t_reaches_every_place_of_the_canvas_in_both_directions():
    corner = torch.zeros(1, 1, DIGIT, DIGIT)
    corner[..., 0, 0] = 1
    row, column = (
        translate(corner.expand(2000, -1, -1, -1), keys_of(2000), 60)[:, 0].nonzero()[:, 1:].T
    )
    assert row.unique().tolist() == column.unique().tolist() == list(range(33))
    assert stats.chisquare(torch.bincount(row).numpy()).pvalue > 1e-3
    assert abs(np.corrcoef(row.numpy(), column.numpy())[0, 1]) < 4.5 / math.sqrt(2000)


def test_tc_adds_ink_to_t_in_at_most_six_patches(digits):
    keys = keys_of(64)
    plain = distort("t", digits, keys, digits)
    cluttered = distort("tc", digits, keys, digits)
    assert (cluttered >= plain).all()
    changed = (cluttered > plain).sum(dim=(1, 2, 3))
    assert changed.max() <= 6 * 36
    assert changed.float().mean() > 30


def test_a_single_patch_of_a_white_pool_is_a_white_square_of_6_by_6_anywhere_on_the_canvas():
    white = torch.full((3, DIGIT, DIGIT), 255, dtype=torch.uint8)
    made = clutter(torch.zeros(2000, 1, DIGIT, DIGIT), keys_of(2000), 60, white, patches=1)[:, 0]
    assert set(made.unique().tolist()) == {0.0, 1.0}
    assert (made.sum(dim=(1, 2)) == 36).all()
    for across in (made.amax(1), made.amax(2)):
        first = across.argmax(dim=1)
        assert torch.equal(across.sum(dim=1), torch.full((2000,), 6.0))
        assert torch.equal(across.gather(1, first[:, None] + torch.arange(6)), torch.ones(2000, 6))
        assert first.unique().tolist() == list(range(55))


def test_patches_are_cut_from_every_place_of_every_digit_of_the_pool():
    pool = torch.arange(3 * DIGIT * DIGIT).view(
        3, DIGIT, DIGIT
    )  # stands for grey values, so that each names its pixel
    made = clutter(torch.zeros(4000, 1, DIGIT, DIGIT), keys_of(4000), 60, pool, patches=1)
    bottom_right = (made.flatten(1).amax(1) * 255).round().long()
    digit, row, column = (
        bottom_right // DIGIT**2,
        bottom_right // DIGIT % DIGIT,
        bottom_right % DIGIT,
    )
    assert digit.unique().tolist() == [0, 1, 2]
    assert row.unique().tolist() == column.unique().tolist() == list(range(5, DIGIT))


# Quadrilaterals


@pytest.mark.parametrize(
    ("corners", "convex"),
    [
        pytest.param([[0, 0], [1, 0], [1, 1], [0, 1]], True, id="square"),
        pytest.param([[0, 0], [4, 1], [3, 3], [-1, 2]], True, id="skewed"),
        pytest.param([[1, 0], [1, 1], [0, 1], [0, 0]], True, id="square from another corner"),
        pytest.param([[0, 0], [0, 1], [1, 1], [1, 0]], False, id="square, anticlockwise"),
        pytest.param([[0, 0], [1, 0], [0, 1], [1, 1]], False, id="bow-tie"),
        pytest.param([[0, 0], [1, 1], [1, 0], [0, 1]], False, id="bow-tie, the other way"),
        pytest.param([[0, 0], [4, 0], [1, 1], [0, 4]], False, id="concave arrow"),
        pytest.param([[0, 0], [1, 0], [2, 0], [0, 1]], False, id="three corners in line"),
        pytest.param([[0, 0], [0, 0], [0, 0], [0, 0]], False, id="a point"),
    ],
)
def test_is_convex_by_hand(corners, convex):
    assert is_convex(torch.tensor(corners, dtype=torch.float32)).item() is convex


def test_is_convex_takes_any_leading_dimensions():
    square = torch.tensor(SQUARE)
    many = torch.stack([square, square.flip(0)]).expand(5, 2, 4, 2)
    assert is_convex(many).tolist() == [[True, False]] * 5
