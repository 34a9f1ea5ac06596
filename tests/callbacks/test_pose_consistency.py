"""How far digits are from their usual pose, in manual cases."""

from types import SimpleNamespace

import pytest
import torch

from spatial_transformer.callbacks.pose_consistency import (
    PoseConsistency,
    digit_pose,
    distances_to_usual_pose,
    to_digit_coordinates,
)
from spatial_transformer.data.mnist.distortions import r_pose, rts_pose
from spatial_transformer.transformer import Affine
from spatial_transformer.utils.random import sample_keys

SIZE = 42


def two_digits(n):
    return torch.stack(
        [rts_pose(sample_keys(seed, 0, torch.arange(n)), SIZE) for seed in (1, 2)], dim=1
    )


def straightening(pose):
    """Return affine thetas ``(B, 6)`` whose crops are the upright digits, 28 px wide."""
    back = torch.linalg.inv(pose[:, :, :2])
    # From the output's [-1, 1] to the digit's pixels, then to the image's [-1, 1].
    matrix = back * (14 / (SIZE / 2))
    return torch.cat([matrix, -(back @ pose[:, :, 2:]) / (SIZE / 2)], dim=2).flatten(1)


def test_a_straightened_digit_has_one_pose():
    poses = two_digits(200)
    for channel in (0, 1):
        distances = distances_to_usual_pose(Affine(), straightening(poses[:, channel]), poses, SIZE)
        assert distances[:, channel].max() < 1e-3
        assert distances[:, 1 - channel].median() > 3


def test_a_digit_moved_by_three_pixels_has_that_distance():
    poses = torch.eye(2, 3).repeat(5, 1, 1, 1)
    poses[2, 0, 0, 2] = 3.0
    distances = distances_to_usual_pose(Affine(), Affine().identity().expand(5, -1), poses, SIZE)
    assert distances[:, 0].tolist() == [0.0, 0.0, 3.0, 0.0, 0.0]


def test_images_of_one_digit_have_no_first_digit():
    data = SimpleNamespace(poses=lambda split, index: two_digits(5)[:, :1], input_size=SIZE)
    logged = {}
    trainer = SimpleNamespace(datamodule=data)
    module = SimpleNamespace(log_dict=lambda values, sync_dist: logged.update(values))
    thetas = Affine().identity().expand(5, 1, -1)
    PoseConsistency().measure(trainer, module, SimpleNamespace(transform=Affine()), thetas)
    assert logged.keys() == {"test/pose_input_1", "test/pose_1_1"}


@pytest.mark.parametrize("pose", [r_pose, rts_pose])
def test_digit_pose_is_the_distortion_until_it_is_undone(pose):
    poses = pose(sample_keys(1, 0, torch.arange(200)), SIZE)

    def in_output(theta):
        in_digit = to_digit_coordinates(Affine(), theta, poses[:, None], SIZE)
        return digit_pose(in_digit)[:, 0].split((1, 1, 2), dim=1)

    degrees, size, centre = in_output(Affine().identity().expand(200, -1))
    angle = torch.atan2(poses[:, 1, 0], poses[:, 0, 0]).rad2deg()
    torch.testing.assert_close(degrees[:, 0], angle, atol=1e-3, rtol=0)
    assert degrees.abs().max() > 40
    scale = 1 / torch.linalg.det(poses[..., :2]).sqrt()  # of the digit in the image
    torch.testing.assert_close(size[:, 0], (scale * 2 / SIZE).log(), atol=1e-4, rtol=0)
    at = -torch.linalg.inv(poses[..., :2]) @ poses[..., 2:]
    torch.testing.assert_close(centre, at[..., 0] * 2 / SIZE, atol=1e-4, rtol=0)
    degrees, size, centre = in_output(straightening(poses))
    assert degrees.abs().max() < 1e-3
    torch.testing.assert_close(size.exp(), torch.full_like(size, 1 / 14))
    assert centre.abs().max() < 1e-4
