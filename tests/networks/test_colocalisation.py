"""Windows and boxes, what windows may be, the encoder's embedding, and refusals."""

import pytest
import torch

from spatial_transformer.geometry import box_to_theta, theta_to_box
from spatial_transformer.networks.colocalisation import WindowParametrisation, colocalisation
from spatial_transformer.transformer import Affine, Attention


def test_boxes_of_windows_worked_out_by_hand():
    windows = torch.tensor(
        [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1 / 3, -2 / 3, 2 / 3], [0.25, 0.5, -0.25]]
    )
    boxes = torch.tensor(
        [[0.0, 0, 84, 84], [21, 21, 63, 63], [0, 56, 28, 84], [52.5, 21, 73.5, 42]]
    )
    assert torch.allclose(theta_to_box(windows, 84), boxes, atol=1e-5)
    assert torch.allclose(box_to_theta(boxes, 84), windows, atol=1e-6)


def test_a_crop_shows_what_is_in_the_box_of_its_window():
    network = colocalisation(84, Attention())
    images = torch.rand(1, 1, 84, 84)
    window = box_to_theta(torch.tensor([[20.0, 30, 48, 58]]), 84)
    crop = network.transformer(images, theta=window)[0]
    torch.testing.assert_close(crop, images[0, :, 30:58, 20:48], rtol=0, atol=1e-5)


def test_windows_start_wide_and_come_to_be_free():
    windows = WindowParametrisation(least=1 / 3, widest=0.7, near=0.36, rate=0.3)
    regressed = torch.tensor([[0.0, 0, 0], [4, 0, 0], [-50, 0, 0], [50, 0, 0]])
    assert windows(regressed)[:, 0].tolist() == pytest.approx([0.7] * 4), (
        "the scale is fixed at first"
    )
    windows.freedom.fill_(1)
    scale = windows(regressed)[:, 0]
    assert scale[0] == pytest.approx(0.36)
    assert scale[1] > scale[0]
    assert scale[2] == pytest.approx(1 / 3, abs=1e-4), "never smaller than the crop"
    assert scale[3] == pytest.approx(1, abs=1e-4)


def test_at_most_a_quarter_of_a_window_is_outside():
    windows = WindowParametrisation(least=1 / 3, widest=0.7, near=0.36, rate=0.3)
    for freedom in (0, 0.5, 1):
        windows.freedom.fill_(freedom)
        scale, x, y = windows(torch.randn(500, 3) * 20).unbind(1)
        assert (torch.maximum(x.abs(), y.abs()) + scale - 1 <= scale / 2 + 1e-6).all()


def test_an_embedding_holds_both_poolings_and_the_logits():
    encoder = colocalisation(84, Attention()).encoder
    crops = torch.rand(3, 1, 28, 28)
    embedding = encoder(crops)
    first, second = encoder.layers[:3](crops), encoder.layers[:6](crops)
    assert torch.equal(
        embedding, torch.cat([first.flatten(1), second.flatten(1), encoder.layers(crops)], dim=1)
    )
    assert torch.allclose(encoder.scaled(crops, each=True).norm(dim=1), torch.ones(3))
    encoder.norm.fill_(2)
    assert torch.equal(encoder.scaled(crops, each=False), embedding / 2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"transform": Affine()}, "transform=attention"),
        ({"transform": Attention(0.5)}, "transform=attention"),
        ({"size": 28}, "28 pixels, got 28"),
        ({"widest": 1.5}, "widest"),
        ({"near": 0.3}, "near"),
    ],
)
def test_what_does_not_fit_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        colocalisation(**{"size": 84, "transform": Attention(), **settings})
