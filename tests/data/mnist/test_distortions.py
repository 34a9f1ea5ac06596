"""Distortions of MNIST, compared with slow references that have the ranges of the paper."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from spatial_transformer.data.mnist.distortions import (
    DIGIT,
    DISTORTIONS,
    displace_corners,
    is_convex,
)
from spatial_transformer.utils.random import integers, normal, sample_keys, uniform

ROUNDING = (
    5e-6  # a float32 coordinate of 20 px is exact to 2e-6 px, and a digit's slope is at most 1
)
SQUARE = [[-14.0, -14.0], [14.0, -14.0], [14.0, 14.0], [-14.0, 14.0]]  # corners, clockwise

each_distortion = pytest.mark.parametrize("name", DISTORTIONS)


def make_keys(n, seed=1, epoch=0):
    return sample_keys(seed, epoch, torch.arange(n))


def to_uint8(digits):
    return (digits[:, 0] * 255).round().to(torch.uint8)


def distort(name, images, keys, digits, canvas=None):
    canvas = canvas or DISTORTIONS[name].canvas
    return DISTORTIONS[name].apply(images, keys, canvas, to_uint8(digits).to(images.device))


# Every distortion


@each_distortion
def test_samples_do_not_depend_on_batch_and_order(name, digits):
    keys = make_keys(64)
    together = distort(name, digits, keys, digits)
    assert torch.equal(together, distort(name, digits, keys, digits))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    apart = torch.cat([distort(name, digits[part], keys[part], digits) for part in order.split(7)])
    tolerance = 0 if name in ("t", "tc") else ROUNDING
    torch.testing.assert_close(apart, together[order], rtol=0, atol=tolerance)


@each_distortion
@pytest.mark.parametrize("canvas", ["smallest", "paper", "larger"])
def test_images_have_the_canvas_and_stay_in_range(name, canvas, digits):
    distortion = DISTORTIONS[name]
    larger = distortion.canvas + 13
    size = {"smallest": distortion.min_canvas, "paper": distortion.canvas, "larger": larger}[canvas]
    images = torch.cat([digits.repeat(8, 1, 1, 1), torch.ones(512, 1, DIGIT, DIGIT)])
    original = images.clone()
    made = distort(name, images, make_keys(1024), digits, size)
    assert torch.equal(images, original)
    assert made.shape == (1024, 1, size, size)
    assert made.dtype == torch.float32
    assert made.isfinite().all()
    assert made.min() >= 0
    assert made.max() <= 1 + 1e-6
    assert (made.amax(dim=(1, 2, 3)) > 0.5).float().mean() > 0.99  # P squeezes few to a line
    assert distort(name, images[:0], make_keys(0), digits, size).shape == (0, 1, size, size)


def test_canvases_are_those_of_the_paper():
    canvases = {name: distortion.canvas for name, distortion in DISTORTIONS.items()}
    assert canvases == {"r": 28, "rts": 42, "p": 28, "e": 28, "t": 60, "tc": 60}


# Slow references: one sample at a time, points in pixels from the centre, y down


def draw(numbers, key, n, *more, stream=0):
    return numbers(key.view(1), n, *more, stream=stream)[0].double().numpy()


def centres(canvas):
    """Return pixel centres (x, y), ``(canvas * canvas, 2)``."""
    y, x = np.mgrid[:canvas, :canvas] - (canvas - 1) / 2
    return np.stack([x.ravel(), y.ravel()], axis=1)


def sample_at(image, points, canvas):
    x, y = points.T + (DIGIT - 1) / 2
    values = map_coordinates(image, [y, x], order=1, mode="grid-constant", cval=0)
    return values.reshape(canvas, canvas)


def transform_image(image, degrees, scale, shift, canvas):
    angle = np.radians(degrees)
    forward = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return sample_at(image, (centres(canvas) - shift) @ np.linalg.inv(forward).T, canvas)


def slow_r(image, key, canvas, source):
    return transform_image(image, -90 + 180 * draw(uniform, key, 1)[0], 1, np.zeros(2), canvas)


def rts_numbers(key, canvas):
    angle, scale, x, y = draw(uniform, key, 4)
    scale = 0.7 + 0.5 * scale
    room = canvas - DIGIT * scale
    return -45 + 90 * angle, scale, (np.array([x, y]) - 0.5) * room


def slow_rts(image, key, canvas, source):
    return transform_image(image, *rts_numbers(key, canvas), canvas)


def has_right_turns_only(corners):
    sides = [corners[(k + 1) % 4] - corners[k] for k in range(4)]
    return all(a[0] * b[1] - a[1] * b[0] > 0 for a, b in zip(sides, sides[1:] + sides[:1]))


def p_corners(key):
    """Return the displaced corners, and how many draws were rejected."""
    scaled = np.array(SQUARE) * (0.75 + 0.25 * draw(uniform, key, 1)[0])
    candidates = scaled + 5 / np.sqrt(2) * draw(normal, key, 32, stream=1).reshape(4, 4, 2)
    first = next(k for k, corners in enumerate(candidates) if has_right_turns_only(corners))
    return candidates[first], first


def homography(source, target):
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    solution = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    return np.append(solution, 1).reshape(3, 3)


def homogeneous(points):
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def slow_p(image, key, canvas, source):
    corners, _ = p_corners(key)
    matrix = homography(corners, SQUARE)
    points = homogeneous(centres(canvas)) @ matrix.T
    side = np.sign((homogeneous(corners) @ matrix.T)[:, 2])
    assert abs(side.sum()) == 4, "all corners are in front of the viewer"
    points[points[:, 2] * side[0] <= 0] = [1e3, 1e3, 1]
    return sample_at(image, points[:, :2] / points[:, 2:], canvas)


def slow_e(image, key, canvas, source):
    scale = 0.75 + 0.25 * draw(uniform, key, 1)[0]
    axis = np.linspace(-canvas / 2, canvas / 2, 4)
    control = np.array([(x, y) for y in axis for x in axis])
    moved = control + 1.5 * draw(normal, key, 32, stream=1).reshape(2, 16).T
    spline = RBFInterpolator(control, moved, kernel="thin_plate_spline")
    return sample_at(image, spline(centres(canvas)) / scale, canvas)


def slow_t(image, key, canvas, source):
    row, column = draw(integers, key, 2, canvas - DIGIT + 1).astype(int)
    made = np.zeros((canvas, canvas))
    made[row : row + DIGIT, column : column + DIGIT] = image
    return made


def slow_tc(image, key, canvas, source):
    made = slow_t(image, key, canvas, source)
    chosen = draw(integers, key, 6, len(source), stream=1).astype(int)
    cuts = draw(integers, key, 12, DIGIT - 6 + 1, stream=2).astype(int).reshape(6, 2)
    corners = draw(integers, key, 12, canvas - 6 + 1, stream=3).astype(int).reshape(6, 2)
    for digit, (row, column), (to_row, to_column) in zip(chosen, cuts, corners):
        patch = source[digit].numpy()[row : row + 6, column : column + 6] / 255
        below = made[to_row : to_row + 6, to_column : to_column + 6]
        below[:] = np.maximum(below, patch)
    return made


SLOW = {"r": slow_r, "rts": slow_rts, "p": slow_p, "e": slow_e, "t": slow_t, "tc": slow_tc}


def assert_agrees_with_reference(name, images, keys, digits, canvas):
    made = distort(name, images, keys, digits, canvas)[:, 0].numpy()
    source = to_uint8(digits)
    pairs = zip(images[:, 0].double().numpy(), keys)
    expected = np.stack([SLOW[name](image, key, canvas, source) for image, key in pairs])
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-4)


@each_distortion
def test_distortion_agrees_with_its_reference(name, digits):
    for canvas in (DISTORTIONS[name].canvas, 47):
        keys = make_keys(24, seed=5, epoch=3)
        assert_agrees_with_reference(name, digits[:24], keys, digits, canvas)
    full = 0.1 + 0.9 * torch.rand(12, 1, DIGIT, DIGIT, generator=torch.Generator().manual_seed(2))
    canvas = DISTORTIONS[name].canvas
    assert_agrees_with_reference(name, full, make_keys(12, seed=6), digits, canvas)


def test_p_draws_corners_again_that_are_not_convex(digits):
    keys = make_keys(50_000)
    square = torch.tensor(SQUARE)
    is_rejected = ~is_convex(displace_corners(square, keys, draws=1))
    assert is_rejected.float().mean().item() == pytest.approx(0.0003, abs=0.0001)
    assert is_convex(displace_corners(square, keys)).all()
    keys = keys[is_rejected]
    assert all(p_corners(key)[1] > 0 for key in keys)
    assert_agrees_with_reference("p", digits[: len(keys)], keys, digits, 28)


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        pytest.param([[0, 0], [1, 0], [1, 1], [0, 1]], True, id="square"),
        pytest.param([[0, 0], [4, 1], [3, 3], [-1, 2]], True, id="skewed"),
        pytest.param([[1, 0], [1, 1], [0, 1], [0, 0]], True, id="square from another corner"),
        pytest.param([[0, 0], [0, 1], [1, 1], [1, 0]], False, id="anticlockwise"),
        pytest.param([[0, 0], [1, 0], [0, 1], [1, 1]], False, id="bow-tie"),
        pytest.param([[0, 0], [1, 1], [1, 0], [0, 1]], False, id="other bow-tie"),
        pytest.param([[0, 0], [4, 0], [1, 1], [0, 4]], False, id="arrow"),
        pytest.param([[0, 0], [1, 0], [2, 0], [0, 1]], False, id="three corners in line"),
        pytest.param([[0, 0], [0, 0], [0, 0], [0, 0]], False, id="point"),
    ],
)
def test_is_convex(corners, expected):
    many = torch.tensor(corners, dtype=torch.float32).expand(5, 2, 4, 2)
    assert is_convex(many).tolist() == [[expected] * 2] * 5
