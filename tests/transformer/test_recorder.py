"""Theta of all transformers of a network, recorded during its forward passes."""

import pytest
import torch
from torch import nn

from spatial_transformer import Affine, Attention, FcLocalisation, SpatialTransformer
from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.transformer import ThetaRecorder, find_transformers


def make_transformer(transform, seed):
    """Return a transformer whose theta depends on its input."""
    torch.manual_seed(seed)
    localisation = FcLocalisation((1, 12, 12), transform, hidden=(8,))
    nn.init.normal_(localisation[-1].weight, std=0.3)
    return SpatialTransformer(localisation, transform)


def test_the_latest_theta_of_each_transformer_in_a_row_is_recorded():
    first, second = make_transformer(Affine(), 0), make_transformer(Attention(), 1)
    network, images = nn.Sequential(first, nn.ReLU(), second), torch.rand(3, 1, 12, 12)
    with ThetaRecorder(network) as recorder:
        network(torch.rand(5, 1, 12, 12))
        network(images)
    crops, theta = first(images, return_theta=True)
    _, inner_theta = second(crops.relu(), return_theta=True)
    assert recorder.transformers == find_transformers(network) == [first, second]
    assert torch.equal(recorder.latest[first], theta)
    assert torch.equal(recorder.latest[second], inner_theta)


def test_parallel_transformers_are_recorded_together():
    network = MnistNetwork("fcn", 28, Affine(), transformers=3, width=8)
    with ThetaRecorder(network) as recorder:
        network(torch.rand(2, 1, 28, 28))
    assert {t: tuple(theta.shape) for t, theta in recorder.latest.items()} == {
        network.transformer: (2, 18)
    }


def test_nothing_is_recorded_once_it_is_closed_also_after_an_error():
    network, images = make_transformer(Affine(), 0), torch.rand(3, 1, 12, 12)
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        ThetaRecorder(network) as recorder,
    ):
        network(images[..., 1:])
    network(images)
    assert recorder.latest == {}


def test_a_network_without_transformers_has_no_thetas():
    network = nn.Linear(2, 2)
    with ThetaRecorder(network) as recorder:
        network(torch.rand(1, 2))
    assert recorder.transformers == []
    assert recorder.latest == {}
