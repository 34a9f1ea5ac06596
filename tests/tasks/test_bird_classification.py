from functools import partial

import pytest
import torch
from torch import nn

from spatial_transformer import Attention
from spatial_transformer.networks.backbones import BACKBONES, BackboneSpec
from spatial_transformer.networks.birds import BirdNetwork
from spatial_transformer.tasks.bird_classification import BirdClassification
from spatial_transformer.tasks.spsa import evaluation_mode, spsa_surrogate

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture
def network(monkeypatch):
    def layers():
        return nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.BatchNorm2d(4))

    monkeypatch.setitem(BACKBONES, "tiny", BackboneSpec(4, layers, dict, mean=0.5, std=0.25))
    network = BirdNetwork(32, 3, Attention(0.5), 2, 32, "tiny", "none", dropout=0.0)
    nn.init.normal_(network.transformer.localisation.head[-1].weight, std=0.1)
    return network


def test_accuracy_and_its_mean_over_species(network, monkeypatch):
    task, logged = BirdClassification(network, SGD), {}
    monkeypatch.setattr(task, "log", lambda name, value: logged.update({name: value}))
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update(values))
    labels, read = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 0, 1])
    task.network = nn.Identity()
    task.test_step((nn.functional.one_hot(read, 3).float(), labels), 0)
    task.test_step((torch.zeros(0, 3), labels[:0]), 1)  # a device without samples in the last batch
    task.on_test_epoch_end()
    assert float(logged["test/accuracy"]) == pytest.approx(100 * 4 / 7)
    assert float(logged["test/macro_accuracy"]) == pytest.approx(100 * (3 / 4 + 1 / 2 + 0) / 3)
    assert float(logged["test/error"]) == pytest.approx(100 * 3 / 7)


def test_spsa_is_an_unbiased_estimate_of_a_linear_slope():
    slope = torch.tensor([3.0, -1.0, 0.5, 0.0])
    theta = torch.tensor([0.1, -0.2, 0.3, 0.0], requires_grad=True)
    thetas, uniform = theta.expand(20_000, -1), torch.rand(20_000, 4)
    surrogate = spsa_surrogate(lambda theta: theta @ slope + 7, thetas, 0.2, uniform)
    assert surrogate.item() == 0
    surrogate.backward()
    torch.testing.assert_close(theta.grad, slope, atol=0.1, rtol=0)


def test_evaluation_mode_restores_the_mode_of_each_module(network):
    frozen = network.streams[0].eval()
    with evaluation_mode(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert not any(module.training for module in frozen.modules())
    assert all(module.training for module in network.streams[1].modules())


def test_spsa_trains_localisation_and_leaves_the_streams_unchanged(network, monkeypatch):
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    gradients = []
    for delta in (None, 0.1):
        task = BirdClassification(network, SGD, spsa_delta=delta)
        monkeypatch.setattr(task, "training_sample_keys", torch.arange)
        network.zero_grad()
        task.compute_loss(images, labels)[1].backward()
        gradients.append([p.grad.clone() for p in network.streams.parameters()])
        head = network.transformer.localisation.head
        assert all(p.grad.abs().sum() > 0 for p in head.parameters())
    torch.testing.assert_close(*gradients)
