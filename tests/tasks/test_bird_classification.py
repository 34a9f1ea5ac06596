"""Metrics per species, and the gradient of theta by SPSA."""

import pytest
import torch
from torch import nn

from spatial_transformer import Attention
from spatial_transformer.networks.backbones import Backbone, BackboneSpec
from spatial_transformer.networks.birds import BirdLocalisation, BirdNetwork, tiles
from spatial_transformer.tasks.bird_classification import BirdClassification
from spatial_transformer.transformer import SpatialTransformer
from spatial_transformer.utils.errors import UsageError


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1)


@pytest.fixture
def network():
    spec = BackboneSpec(4, 0.5, 0.25, nn.Identity, dict)

    def backbone():
        return Backbone(nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.BatchNorm2d(4)), spec)

    transform = Attention(0.5)
    localisation = BirdLocalisation(backbone(), transform, tiles(2, transform), seen=32)
    nn.init.normal_(localisation.head[-1].weight, std=0.1)
    transformer = SpatialTransformer(localisation, transform, (32, 32), parallel=2)
    return BirdNetwork([backbone(), backbone()], transformer, classes=3, dropout=0.0)


def test_accuracy_and_its_mean_over_species(network):
    task = BirdClassification(network, sgd)
    logged = {}
    task.log_dict = lambda figures, **_: logged.update(figures)
    labels, read = torch.tensor([0, 0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 0, 1])
    network.forward = lambda images: nn.functional.one_hot(read, 3).float()
    task.test_step((torch.zeros(7, 3, 32, 32), labels), 0)
    read = read[:0]
    task.test_step(
        (torch.zeros(0, 3, 32, 32), labels[:0]), 1
    )  # as a device has of a last batch that is too small for all
    task.on_test_epoch_end()
    assert float(logged["test/accuracy"]) == pytest.approx(100 * 4 / 7)
    assert float(logged["test/macro_accuracy"]) == pytest.approx(100 * (3 / 4 + 1 / 2 + 0) / 3)
    assert float(logged["test/error"]) == pytest.approx(100 * 3 / 7)


def test_a_single_species_is_refused(network):
    network.classes = 1
    with pytest.raises(UsageError, match="at least two species"):
        BirdClassification(network, sgd)


class Trainer:
    """At the first step, on one device."""

    global_step, global_rank, world_size = 0, 0, 1


def make_task(network, spsa_delta=None):
    task = BirdClassification(network, sgd, spsa_delta=spsa_delta)
    task._trainer, task._batch = Trainer(), (0, 0, 0)
    return task


class Fixed(nn.Module):
    """A localisation network whose theta is its only parameter."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta))

    def forward(self, x):
        return self.theta.expand(len(x), -1)


def test_spsa_is_an_unbiased_estimate_of_a_linear_slope(network):
    torch.manual_seed(0)
    network.transformer.localisation = Fixed([0.1, -0.2, 0.3, 0.0])
    task = make_task(network, 0.2)
    slope = torch.tensor([3.0, -1.0, 0.5, 0.0])
    modes = []
    network.forward = lambda images, theta: modes.append(network.training) or theta
    task.per_sample_loss = lambda logits, labels: logits @ slope + 7
    images = torch.zeros(20_000, 3, 1, 1)
    _, loss = task.compute_loss(images, torch.zeros(len(images)))
    assert loss.item() == pytest.approx(float(torch.tensor([0.1, -0.2, 0.3, 0.0]) @ slope + 7))
    loss.backward()
    torch.testing.assert_close(network.transformer.localisation.theta.grad, slope, atol=0.1, rtol=0)
    assert modes == [True, False, False], "the losses at a distance are without dropout"


def test_spsa_leaves_each_module_in_its_mode(network):
    frozen = network.streams[0].eval()
    make_task(network, 0.1).compute_loss(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))
    assert network.training
    assert not any(module.training for module in frozen.modules())
    assert all(module.training for module in network.streams[1].modules())


def test_spsa_leaves_the_gradient_of_the_streams_as_it_is(network):
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    gradients = []
    for spsa_delta in (None, 0.1):
        network.zero_grad()
        make_task(network, spsa_delta).compute_loss(images, labels)[1].backward()
        gradients.append([p.grad.clone() for p in network.streams.parameters()])
        assert all(
            p.grad.abs().sum() > 0 for p in network.transformer.localisation.head.parameters()
        )
    for sampler, spsa in zip(*gradients, strict=True):
        torch.testing.assert_close(spsa, sampler)


@pytest.mark.parametrize("delta", [0, -0.1, float("nan")])
def test_a_distance_that_is_not_positive_is_an_error(network, delta):
    with pytest.raises(UsageError, match=r"recipe.spsa_delta must be positive"):
        BirdClassification(network, sgd, spsa_delta=delta)
