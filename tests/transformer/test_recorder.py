"""Theta of all transformers of a network, recorded during its forward passes."""

import pytest
import torch
from families import trained
from torch import nn

from spatial_transformer import Affine, Attention
from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.transformer import ThetaRecorder, find_transformers


def test_the_latest_theta_of_each_transformer_in_a_row_is_recorded():
    images = torch.rand(3, 1, 12, 12)
    first, second = trained(Affine(), images), trained(Attention(), images)
    network = nn.Sequential(first, nn.ReLU(), second)
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
    images = torch.rand(3, 1, 12, 12)
    network = trained(Affine(), images)
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
