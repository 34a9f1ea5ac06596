import pytest
import torch

from spatial_transformer.geometry import box_to_theta
from spatial_transformer.networks.colocalisation import Colocalisation, WindowParametrisation
from spatial_transformer.transformer import Affine, Attention


def test_a_crop_shows_the_box_of_its_window():
    images = torch.rand(1, 1, 84, 84)
    window = box_to_theta(torch.tensor([[20.0, 30, 48, 58]]), 84)
    crop = Colocalisation(84, Attention()).transformer(images, theta=window)[0]
    torch.testing.assert_close(crop, images[0, :, 30:58, 20:48], rtol=0, atol=1e-5)


@pytest.fixture
def windows():
    return WindowParametrisation(least=1 / 3, widest=0.7, near=0.36, rate=0.3)


def test_the_scale_is_fixed_at_first_and_then_free(windows):
    regressed = torch.tensor([[0.0, 0, 0], [4, 0, 0], [-50, 0, 0], [50, 0, 0]])
    assert windows(regressed)[:, 0].tolist() == pytest.approx([0.7] * 4)
    windows.freedom.fill_(1)
    start, larger, smallest, largest = windows(regressed)[:, 0].tolist()
    assert start == pytest.approx(0.36)
    assert larger > start
    assert smallest == pytest.approx(1 / 3, abs=1e-4)  # that of the crop
    assert largest == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("freedom", [0, 0.5, 1])
def test_at_most_a_quarter_of_a_window_is_outside(windows, freedom):
    windows.freedom.fill_(freedom)
    scale, x, y = windows(torch.randn(500, 3) * 20).unbind(1)
    outside = (torch.maximum(x.abs(), y.abs()) + scale - 1) / (2 * scale)
    assert outside.max().item() == pytest.approx(1 / 4)


def test_an_embedding_has_both_poolings_and_the_logits():
    encoder, crops = Colocalisation(84, Attention()).encoder, torch.rand(3, 1, 28, 28)
    first, second = encoder.layers[:3](crops), encoder.layers[:6](crops)
    expected = torch.cat([first.flatten(1), second.flatten(1), encoder.layers(crops)], dim=1)
    assert torch.equal(encoder(crops), expected)
    assert torch.allclose(encoder.scaled(crops, each=True).norm(dim=1), torch.ones(3))
    encoder.norm.fill_(2)
    assert torch.equal(encoder.scaled(crops, each=False), expected / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transform": Affine()}, "transform=attention"),
        ({"transform": Attention(0.5)}, "transform=attention"),
        ({"size": 28}, "28 pixels, got 28"),
        ({"widest": 1.5}, "widest"),
        ({"near": 0.3}, "near"),
    ],
)
def test_invalid_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Colocalisation(**{"size": 84, "transform": Attention(), **settings})
