"""Localisation networks: where they start, what they are made of, precision and refusals."""

import itertools

import pytest
import torch
from families import every_family
from torch import nn

from spatial_transformer import (
    Affine,
    Affine3d,
    Attention,
    ConvLocalisation,
    FcLocalisation,
    Regression,
    ThinPlateSpline,
)

both_networks = pytest.mark.parametrize("network", [FcLocalisation, ConvLocalisation])
TILES = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def perturbed(network):
    """Regression weights away from their zero start, without which no layer below has a gradient."""
    with torch.no_grad():
        network[-1].weight.normal_(std=0.05)
    return network


# Start


@every_family
def test_regression_starts_at_the_identity_for_any_feature(make):
    transform = make()
    assert torch.equal(Regression(7, transform)(random(3, 7)), transform.identity().expand(3, -1))


@every_family
@both_networks
def test_localisation_starts_at_the_identity_for_any_input(network, make):
    transform = make()
    theta = network((2, 28, 30), transform)(random(3, 2, 28, 30))
    assert torch.equal(theta, transform.identity().expand(3, -1))


@both_networks
def test_localisation_starts_at_the_thetas_that_are_given(network):
    theta = network((1, 28, 28), Attention(scale=0.5), start=TILES)(random(3, 1, 28, 28))
    assert torch.equal(theta, TILES.flatten().expand(3, -1))


def test_a_start_may_be_a_list_or_in_another_precision():
    for start in (TILES.tolist(), TILES.double()):
        assert torch.equal(Regression(4, Attention(scale=0.5), start).bias, TILES.flatten())


def test_the_start_is_copied():
    start = TILES.clone()
    regression = Regression(4, Attention(scale=0.5), start)
    start.zero_()
    assert torch.equal(regression.bias, TILES.flatten())


def test_regression_is_linear_once_trained():
    regression, features = Regression(4, Affine()), random(3, 4)
    nn.init.normal_(regression.weight)
    torch.testing.assert_close(
        regression(features), features @ regression.weight.T + regression.bias
    )


# Layers


def linear_sizes(network):
    return [
        (layer.in_features, layer.out_features) for layer in network if isinstance(layer, nn.Linear)
    ]


def test_fully_connected_localisation_is_three_layers_of_32_by_default():
    network = FcLocalisation((2, 6, 7), Affine())
    assert linear_sizes(network) == [(84, 32), (32, 32), (32, 32), (32, 6)]
    assert sum(isinstance(layer, nn.ReLU) for layer in network) == 3


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_fully_connected_localisation_has_the_hidden_layers_that_are_given(hidden):
    network = FcLocalisation((2, 6, 7), Affine(), hidden)
    widths = [84, *hidden, 6]
    assert linear_sizes(network) == list(itertools.pairwise(widths))


def test_fully_connected_localisation_reads_volumes():
    assert FcLocalisation((1, 3, 4, 5), Affine3d())(random(2, 1, 3, 4, 5)).shape == (2, 12)


@pytest.mark.parametrize("channels", [20, 8])
def test_convolutional_localisation_has_the_layers_of_the_paper(channels):
    network = ConvLocalisation((3, 60, 42), Affine(), channels)
    kinds = [type(layer) for layer in network if not isinstance(layer, nn.ReLU)]
    assert kinds == [
        nn.AvgPool2d,
        nn.Conv2d,
        nn.MaxPool2d,
        nn.Conv2d,
        nn.Flatten,
        nn.Linear,
        Regression,
    ]
    assert [
        (c.in_channels, c.out_channels, c.kernel_size) for c in network if isinstance(c, nn.Conv2d)
    ] == [
        (3, channels, (5, 5)),
        (channels, channels, (5, 5)),
    ]
    assert linear_sizes(network) == [(channels * 9 * 4, channels), (channels, 6)]


@pytest.mark.parametrize("size", [(28, 28), (29, 31), (42, 42), (60, 60), (64, 28)], ids=str)
def test_convolutional_localisation_takes_any_size_from_28_on(size):
    assert ConvLocalisation((1, *size), ThinPlateSpline())(random(2, 1, *size)).shape == (2, 32)


@both_networks
def test_every_parameter_learns(network):
    network = perturbed(network((1, 28, 28), Affine()))
    network(random(4, 1, 28, 28)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_the_regression_weight_has_a_gradient_at_its_zero_start():
    regression = Regression(5, Affine())
    regression(random(2, 5)).square().sum().backward()
    assert regression.weight.grad.abs().sum() > 0
    assert regression.bias.grad.abs().sum() > 0


# Precision


@both_networks
def test_theta_is_float32_under_autocast(network):
    network = network((1, 28, 28), Affine())
    with torch.autocast("cpu", torch.bfloat16):
        assert network(random(2, 1, 28, 28)).dtype == torch.float32


def test_regression_is_not_rounded_under_autocast():
    regression, features = Regression(4, Affine()), random(3, 4)
    nn.init.normal_(regression.weight)
    expected = regression(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(regression(features), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_regression_of_half_precision_weights_gives_float32(dtype):
    regression = Regression(4, Affine()).to(dtype)
    theta = regression(random(3, 4).to(dtype))
    assert theta.dtype == torch.float32
    assert torch.equal(theta, Affine().identity().expand(3, -1))


def test_a_float64_network_gives_a_float64_theta():
    network = FcLocalisation((1, 4, 5), Affine()).double()
    assert network(random(2, 1, 4, 5, dtype=torch.float64)).dtype == torch.float64


# Refusals


@pytest.mark.parametrize("start", [torch.zeros(5), torch.zeros(2, 7), torch.zeros(6, 1)])
def test_a_start_of_another_shape_is_refused(start):
    with pytest.raises(ValueError, match=r"start must be \(n, 6\) for Affine\(\), got \("):
        Regression(4, Affine(), start)


@pytest.mark.parametrize("size", [(27, 28), (28, 27), (5, 5)], ids=str)
def test_a_map_too_small_for_the_convolutions_is_refused(size):
    with pytest.raises(
        ValueError, match=rf"needs a feature map of at least 28 x 28, got \({size[0]}, {size[1]}\)"
    ):
        ConvLocalisation((1, *size), Affine())
