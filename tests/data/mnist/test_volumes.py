"""Digits in volumes: extrusion, rotations, locations, projections."""

import math

import pytest
import torch
import torch.nn.functional as F
from samples import set_up

from spatial_transformer.data.mnist.distortions import rotate
from spatial_transformer.data.mnist.volumes import (
    CUBE,
    MAX_TILT,
    Mnist3dData,
    draw_rotations,
    extrude,
    rotation_matrices,
)
from spatial_transformer.geometry import THICKNESS, project_volume
from spatial_transformer.utils.random import sample_keys, uniform

INDEX = torch.arange(12)


def keys(n, seed=1):
    return sample_keys(seed, 0, torch.arange(n))


def test_projection_is_the_sum_over_depth():
    layers = 2 * torch.rand(2, 1, 5, 4, 3)  # about half of the sums are above 1
    # Five layers stand for a depth of ten, and a digit of full thickness counts as one.
    expected = (layers.sum(dim=2) * 2 / THICKNESS).clamp(max=1)
    torch.testing.assert_close(project_volume(layers, depth=10), expected)


def test_untilted_digit_projects_to_itself(digits):
    cubes = extrude(digits[:10], torch.eye(3).expand(10, 3, 3))
    layers = cubes[:, 0].amax(dim=(2, 3))
    assert (layers > 0).sum(dim=1).tolist() == [THICKNESS] * 10
    inner = slice((CUBE - 28) // 2, (CUBE - 28) // 2 + 28)
    assert torch.allclose(cubes[:, :, CUBE // 2, inner, inner], digits[:10], atol=1e-5)
    assert torch.allclose(project_volume(cubes, CUBE)[..., inner, inner], digits[:10], atol=1e-5)


def test_rotation_about_the_depth_axis_is_that_of_the_plane(digits):
    images = digits[:10]
    angle = torch.deg2rad(180 * (uniform(keys(10), 1)[:, 0] - 0.5))  # as R draws it
    assert angle.abs().max() > 1
    zero = torch.zeros(10)
    cubes = extrude(images, rotation_matrices(angle, zero, zero), side=28)
    for plane in (project_volume(cubes, 28), cubes[:, :, 14]):
        assert torch.allclose(plane, rotate(images, keys(10), 28), atol=1e-4)


def test_tilt_by_a_right_angle_shows_the_edge(digits):
    quarter, zero = torch.full((1,), math.pi / 2), torch.zeros(1)
    cube = extrude(digits[3:4], rotation_matrices(zero, quarter, zero))[0, 0]
    assert (cube.amax(dim=(0, 2)) > 0.5).sum() == THICKNESS, "its thickness is its height"
    assert cube.sum() == pytest.approx(THICKNESS * digits[3].sum().item(), rel=0.02)


def test_rotations_are_uniform_on_the_cap():
    rotations = draw_rotations(keys(20_000, seed=2))
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3).expand_as(rotations), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(20_000), atol=1e-5)
    normal = rotations[:, :, 2]
    cos = math.cos(math.radians(MAX_TILT))
    assert normal[:, 2].min() > cos - 1e-4
    assert normal[:, 2].mean().item() == pytest.approx((1 + cos) / 2, abs=0.01)
    assert normal[:, :2].mean(dim=0).abs().max() < 0.02


def test_rotated_digits_stay_in_their_cube():
    full = F.pad(torch.ones(50, 1, 26, 26), [1] * 4)  # only black corners may be cut
    cubes = extrude(full, draw_rotations(keys(50)))
    assert cubes[..., 0, :].max() == cubes[..., :, 0].max() == cubes[:, :, 0].max() == 0


def test_volumes_hold_whole_digits(drawn_mnist, digits):
    made, labels = set_up(Mnist3dData()).samples("val", INDEX)
    assert made.shape == (12, 1, 60, 60, 60)
    assert labels.tolist() == [n % 10 for n in range(12)]
    expected = THICKNESS * digits[labels].flatten(1).sum(dim=1)
    assert torch.allclose(made.flatten(1).sum(dim=1), expected, rtol=0.1)


def test_three_views_are_displayed():
    volume = torch.zeros(1, 40, 40, 40)
    volume[0, 5:13, 10, 30] = 1  # a rod along the depth
    front, side, middle = Mnist3dData(canvas=40).to_display(volume).split(40, dim=2)
    assert front[0, 10, 30] == front.sum() == 1
    assert (side[0, 10] > 0).nonzero()[:, 0].tolist() == list(range(5, 13))
    assert middle.sum() == 0
