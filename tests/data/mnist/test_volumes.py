"""Volumes: the projection against a slow one, rotations, what an untilted digit is, where digits are, keys, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.data.mnist.distortions import rotate
from spatial_transformer.data.mnist.volumes import (
    CUBE,
    MAX_TILT,
    Mnist3dData,
    extrude,
    rotation,
    rotations,
)
from spatial_transformer.geometry import THICKNESS, project_volume
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.random import sample_keys, uniform

KEYS = sample_keys(1, 0, torch.arange(50))
INDEX = torch.arange(12)


@pytest.fixture
def drawn(drawn_mnist):
    """Makes data of drawn digits in the place of MNIST."""

    def make(**settings):
        data = Mnist3dData(root="drawn", **settings)
        data.setup()
        return data

    return make


def upright(n):
    return torch.eye(3).expand(n, 3, 3)


def test_the_projection_is_the_sum_over_depth():
    volumes = torch.rand(2, 1, 5, 4, 3) / 3
    projected = project_volume(volumes, depth=10)
    for b in range(2):
        for y in range(4):
            for x in range(3):
                total = sum(volumes[b, 0, z, y, x].item() for z in range(5))
                # Five layers stand for a depth of ten, and a digit as thick as it is counts as one.
                assert projected[b, 0, y, x].item() == pytest.approx(
                    min(1, total * 2 / THICKNESS), rel=1e-5
                )


def test_an_untilted_digit_is_extruded_and_projects_to_what_it_was(digits):
    cubes = extrude(digits[:10], upright(10))
    middle, edge = CUBE // 2, (CUBE - 28) // 2
    layers = cubes[:, 0].amax(dim=(2, 3))
    assert (layers > 0).sum(dim=1).tolist() == [THICKNESS] * 10
    inner = slice(edge, edge + 28)
    assert torch.allclose(cubes[:, :, middle, inner, inner], digits[:10], atol=1e-5)
    assert torch.allclose(project_volume(cubes, CUBE)[..., inner, inner], digits[:10], atol=1e-5)


def test_a_turn_about_the_depth_axis_is_the_rotation_of_the_plane(digits):
    images, keys = digits[:10], KEYS[:10]
    angle = torch.deg2rad(180 * (uniform(keys, 1)[:, 0] - 0.5))  # as R draws it
    zero = torch.zeros(10)
    cubes = extrude(images, rotation(angle, zero, zero), side=28)
    assert angle.abs().max() > 1
    assert torch.allclose(project_volume(cubes, 28), rotate(images, keys, 28), atol=1e-4)
    assert torch.allclose(cubes[:, :, 14], rotate(images, keys, 28), atol=1e-4)


def test_a_tilt_of_a_right_angle_shows_the_edge(digits):
    quarter, zero = torch.full((1,), math.pi / 2), torch.zeros(1)
    cube = extrude(digits[3:4], rotation(zero, quarter, zero))[0, 0]
    rows = cube.amax(dim=(0, 2)) > 0.5
    assert rows.sum() == THICKNESS, "tilted about the x axis, its thickness is its height"
    assert cube.sum() == pytest.approx(THICKNESS * digits[3].sum().item(), rel=0.02)


def test_rotations_are_rotations_within_the_protocol():
    turns = rotations(sample_keys(2, 0, torch.arange(20_000)))
    assert torch.allclose(turns @ turns.mT, torch.eye(3).expand_as(turns), atol=1e-5)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(len(turns)), atol=1e-5)
    depth = turns[:, 2, 2]  # of the normal
    cos = math.cos(math.radians(MAX_TILT))
    assert depth.min() > cos - 1e-4
    assert depth.mean().item() == pytest.approx((1 + cos) / 2, abs=0.01), "uniform on the cap"
    assert turns[:, :2, 2].mean(dim=0).abs().max() < 0.02, "to all sides alike"


def test_no_turn_brings_a_digit_out_of_its_cube_or_the_volume(drawn):
    full = F.pad(
        torch.ones(50, 1, 26, 26), [1] * 4
    )  # only the corners of an image, always black, may be cut
    cubes = extrude(full, rotations(KEYS))
    assert cubes[..., 0, :].max() == cubes[..., :, 0].max() == cubes[:, :, 0].max() == 0
    volumes, labels = drawn().samples("val", INDEX)
    assert volumes.shape == (12, 1, 60, 60, 60)
    assert labels.tolist() == [n % 10 for n in range(12)]
    data = drawn()
    inside = data._distort("val", INDEX, data._keys("val", INDEX)).flatten(1).sum(dim=1)
    expected = THICKNESS * (data._digits("val", INDEX)).flatten(1).sum(dim=1)
    assert torch.allclose(inside, expected, rtol=0.1)


def test_a_sample_is_the_same_in_any_batch_and_new_in_each_epoch(drawn):
    data = drawn(canvas=44)
    volumes, _ = data.samples("train", INDEX, 3)
    alone, _ = data.samples("train", INDEX[5:6], 3)
    assert torch.equal(volumes[5:6], alone)
    assert not torch.equal(volumes, data.samples("train", INDEX, 4)[0])
    assert torch.equal(data.samples("test", INDEX, 3)[0], data.samples("test", INDEX, 4)[0])


def test_three_views_are_shown_side_by_side():
    data = Mnist3dData(canvas=40)
    volume = torch.zeros(1, 40, 40, 40)
    volume[0, 5:13, 10, 30] = 1  # a rod along the depth
    front, side, middle = data.to_display(volume).split(40, dim=2)
    assert front[0, 10, 30] == 1
    assert front.sum() == 1
    assert (side[0, 10] > 0).nonzero()[:, 0].tolist() == list(range(5, 13))
    assert middle.sum() == 0


def test_a_volume_that_holds_no_turned_digit_is_refused():
    with pytest.raises(UsageError, match=r"data\.canvas must be at least 40, .* got 39"):
        Mnist3dData(canvas=39)
