import itertools
import math

import pytest
import torch
from families import every_family
from torch import nn

from spatial_transformer import (
    Affine,
    Attention,
    ConvLocalisation,
    FcLocalisation,
    Regression,
    SpatialTransformer,
    ThinPlateSpline,
)
from spatial_transformer.geometry import theta_to_box
from spatial_transformer.networks.localisation import InkLocalisation, MomentLocalisation
from spatial_transformer.networks.mnist import MnistNetwork

both_networks = pytest.mark.parametrize("network", [FcLocalisation, ConvLocalisation])
TILES = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])


def linear_sizes(network):
    return [(m.in_features, m.out_features) for m in network if isinstance(m, nn.Linear)]


# Start


@every_family
@both_networks
def test_localisation_starts_at_the_identity(network, make):
    transform = make()
    theta = network((2, 28, 30), transform)(torch.randn(3, 2, 28, 30))
    assert torch.equal(theta, transform.identity().expand(3, -1))


@both_networks
def test_localisation_starts_at_given_thetas(network):
    theta = network((1, 28, 28), Attention(scale=0.5), start=TILES)(torch.randn(3, 1, 28, 28))
    assert torch.equal(theta, TILES.flatten().expand(3, -1))


@pytest.mark.parametrize("start", [torch.zeros(5), torch.zeros(2, 7), torch.zeros(6, 1)])
def test_start_of_another_shape_is_refused(start):
    with pytest.raises(ValueError, match=r"start must be \(n, 6\) for Affine\(\), got \("):
        Regression(4, Affine(), start)


# Layers


@pytest.mark.parametrize("hidden", [None, (), (5,), (5, 4)])
def test_fc_localisation_layers(hidden):
    options = {} if hidden is None else {"hidden": hidden}
    network = FcLocalisation((2, 6, 7), Affine(), **options)
    units = [84, *((32, 32, 32) if hidden is None else hidden), 6]
    assert linear_sizes(network) == list(itertools.pairwise(units))
    assert sum(isinstance(layer, nn.ReLU) for layer in network) == len(units) - 2


@pytest.mark.parametrize("channels", [20, 8])
def test_conv_localisation_layers(channels):
    network = ConvLocalisation((3, 60, 42), Affine(), channels)
    kinds = [type(layer).__name__ for layer in network if not isinstance(layer, nn.ReLU)]
    assert kinds == [
        "AvgPool2d",
        "Conv2d",
        "MaxPool2d",
        "Conv2d",
        "Flatten",
        "Linear",
        "Regression",
    ]
    shapes = [layer.weight.shape for layer in network if isinstance(layer, nn.Conv2d)]
    assert shapes == [(channels, 3, 5, 5), (channels, channels, 5, 5)]
    assert linear_sizes(network) == [(channels * 9 * 4, channels), (channels, 6)]


@pytest.mark.parametrize("size", [(28, 28), (29, 31), (42, 42), (60, 60), (64, 28)], ids=str)
def test_conv_localisation_takes_sizes_from_28(size):
    network = ConvLocalisation((1, *size), ThinPlateSpline())
    assert network(torch.randn(2, 1, *size)).shape == (2, 32)


@pytest.mark.parametrize("size", [(27, 28), (28, 27), (5, 5)], ids=str)
def test_conv_localisation_refuses_smaller_sizes(size):
    message = rf"needs a feature map of at least 28 x 28, got \({size[0]}, {size[1]}\)"
    with pytest.raises(ValueError, match=message):
        ConvLocalisation((1, *size), Affine())


@both_networks
def test_every_parameter_has_a_gradient(network):
    network = network((1, 28, 28), Affine())
    nn.init.normal_(network[-1].weight, std=0.05)
    network(torch.randn(4, 1, 28, 28)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


# Precision


def test_regression_is_not_rounded_under_autocast():
    regression, features = Regression(4, Affine()), torch.randn(3, 4)
    nn.init.normal_(regression.weight)
    expected = features @ regression.weight.T + regression.bias
    with torch.autocast("cpu", torch.bfloat16):
        theta = regression(features)
    assert theta.dtype == torch.float32
    torch.testing.assert_close(theta, expected)


@pytest.mark.parametrize(
    ("weights", "theta"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_precision_of_theta(weights, theta):
    regression = Regression(4, Affine()).to(weights)
    assert regression(torch.randn(3, 4, dtype=weights)).dtype == theta


# Baselines without weights


def ellipse(angle, centre, radii, size=42):
    """Return a filled ellipse ``(1, 1, size, size)``, its longer axis at ``angle`` from upright."""
    axis = (2 * torch.arange(size) + 1) / size - 1
    y, x = torch.meshgrid(axis - centre[1], axis - centre[0], indexing="ij")
    across = x * math.cos(angle) + y * math.sin(angle)
    along = y * math.cos(angle) - x * math.sin(angle)
    inside = (across / radii[0]) ** 2 + (along / radii[1]) ** 2 < 1
    return inside.float()[None, None]


@pytest.mark.parametrize("angle", [-1.2, -0.4, 0.0, 0.9])
def test_moments_bring_an_ellipse_to_a_standard_pose(angle):
    image = ellipse(angle, centre=(0.2, -0.3), radii=(0.15, 0.45))
    network = MomentLocalisation(radius=0.4)
    theta = network(image)
    scale = math.hypot(0.15, 0.45) / 2 / 0.4  # the variance along a radius r is r^2 / 4
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    assert theta[0].tolist() == pytest.approx([cos, -sin, 0.2, sin, cos, -0.3], abs=0.02)
    upright = SpatialTransformer(network, Affine())(image)
    again = network(upright)[0].tolist()
    assert again == pytest.approx(Affine().identity().tolist(), abs=0.03)


def test_moments_of_a_blank_image_are_finite():
    network = SpatialTransformer(MomentLocalisation(), Affine())
    assert torch.equal(network(torch.zeros(2, 1, 28, 28)), torch.zeros(2, 1, 28, 28))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 31), (40, 40)])
def test_ink_window_is_centred_on_the_densest_patch(row, column):
    image = torch.rand(2, 1, 60, 60) / 10
    image[:, :, row : row + 20, column : column + 20] += 0.5
    boxes = theta_to_box(InkLocalisation()(image), 60)
    expected = [column - 4, row - 4, column + 24, row + 24]
    assert boxes.flatten().tolist() == pytest.approx(expected * 2, abs=1e-3)


def test_ink_window_is_centred_on_a_narrow_digit():
    image = torch.zeros(1, 1, 60, 60)
    image[:, :, 20:40, 30:34] = 1.0
    boxes = theta_to_box(InkLocalisation()(image), 60)
    assert boxes[0].tolist() == pytest.approx([18, 16, 46, 44], abs=1e-3)


@pytest.mark.parametrize("network", [MomentLocalisation(), InkLocalisation()])
def test_a_localisation_without_weights_is_not_rounded_by_autocast(network):
    image = torch.zeros(1, 1, 60, 60)
    image[:, :, 21:38, 30:33] = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        theta = network(image)
    assert torch.equal(theta, network(image))


@pytest.mark.parametrize("network", [MomentLocalisation(), InkLocalisation()])
def test_a_localisation_without_weights_leaves_the_budget_to_the_classifier(network):
    transform = Affine() if isinstance(network, MomentLocalisation) else Attention()
    whole = MnistNetwork("fcn", 42, transform, localisation=network)
    plain = MnistNetwork("fcn", 42)
    assert [p.shape for p in whole.parameters()] == [p.shape for p in plain.parameters()]
    for samples in (3, 0):  # none on a device without samples in the last batch
        assert whole(torch.rand(samples, 1, 42, 42)).shape == (samples, 10)
