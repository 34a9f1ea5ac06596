import torch

from spatial_transformer.geometry import box_to_theta, theta_to_box

WINDOWS = [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1 / 3, -2 / 3, 2 / 3], [0.25, 0.5, -0.25]]
BOXES = [[0.0, 0, 84, 84], [21, 21, 63, 63], [0, 56, 28, 84], [52.5, 21, 73.5, 42]]


def test_boxes_of_windows():
    windows, boxes = torch.tensor(WINDOWS), torch.tensor(BOXES)
    torch.testing.assert_close(theta_to_box(windows, 84), boxes, rtol=0, atol=1e-5)
    torch.testing.assert_close(box_to_theta(boxes, 84), windows, rtol=0, atol=1e-6)
