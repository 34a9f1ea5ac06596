import torch

from spatial_transformer.geometry import THICKNESS, box_to_theta, project_volume, theta_to_box

WINDOWS = [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1 / 3, -2 / 3, 2 / 3], [0.25, 0.5, -0.25]]
BOXES = [[0.0, 0, 84, 84], [21, 21, 63, 63], [0, 56, 28, 84], [52.5, 21, 73.5, 42]]


def test_boxes_of_windows():
    windows, boxes = torch.tensor(WINDOWS), torch.tensor(BOXES)
    torch.testing.assert_close(theta_to_box(windows, 84), boxes, rtol=0, atol=1e-5)
    torch.testing.assert_close(box_to_theta(boxes, 84), windows, rtol=0, atol=1e-6)


def test_the_projection_of_an_extruded_digit_is_the_digit():
    digit, volume = torch.rand(2, 1, 5, 6), torch.zeros(2, 1, 40, 5, 6)
    volume[:, :, :THICKNESS] = digit[:, :, None]
    torch.testing.assert_close(project_volume(volume, 40), digit)
    volume[:, :, THICKNESS : 2 * THICKNESS] = digit[:, :, None]
    torch.testing.assert_close(project_volume(volume, 40), (2 * digit).clamp(max=1))
