"""Scores by species, and the warm-up of what is new."""

import pytest
import torch
from torch import nn

from spatial_transformer import Attention
from spatial_transformer.errors import UsageError
from spatial_transformer.networks.backbones import Backbone, Kind
from spatial_transformer.networks.birds import BirdLocalisation, BirdNetwork, tiles
from spatial_transformer.tasks.bird_classification import BirdClassification
from spatial_transformer.transformer import SpatialTransformer


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1)


@pytest.fixture
def network():
    kind = Kind(4, 0.5, 0.25, nn.Identity, dict)

    def backbone():
        return Backbone(nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.BatchNorm2d(4)), kind)

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
    task.test_step((torch.zeros(0, 3, 32, 32), labels[:0]), 1)  # as a device has of a last batch that is too small for all
    task.on_test_epoch_end()
    assert float(logged["test/accuracy"]) == pytest.approx(100 * 4 / 7)
    assert float(logged["test/macro_accuracy"]) == pytest.approx(100 * (3 / 4 + 1 / 2 + 0) / 3)
    assert float(logged["test/error"]) == pytest.approx(100 * 3 / 7)


@pytest.mark.parametrize("frozen_steps", [0, 1])
def test_backbones_stay_as_they_are_while_frozen(network, frozen_steps):
    task = BirdClassification(network, sgd, frozen_steps=frozen_steps)
    task._seed = 1
    task._trainer = Trainer()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    task.on_train_batch_start(None, 0)
    optimizer = sgd(task.parameter_groups())
    network(torch.rand(6, 3, 32, 32)).square().sum().backward()
    task.on_before_optimizer_step(optimizer)
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    of_backbones = {name for name in changed if name.startswith("streams") or ".backbone." in name}
    assert bool(of_backbones) is (frozen_steps == 0)
    assert {"classifier.1.weight", "transformer.localisation.head.3.weight"} <= changed


def test_a_negative_warm_up_is_refused(network):
    with pytest.raises(UsageError, match=r"recipe.frozen_steps=-1"):
        BirdClassification(network, sgd, frozen_steps=-1)


def test_a_single_species_is_refused(network):
    network.classes = 1
    with pytest.raises(UsageError, match="nothing to tell apart"):
        BirdClassification(network, sgd)


class Trainer:
    """At the first step, on one device."""

    global_step, global_rank, world_size = 0, 0, 1


def with_differences(network, theta_step):
    task = BirdClassification(network, sgd, theta_step=theta_step)
    task._trainer, task._batch = Trainer(), (0, 0, 0)
    return task


class Fixed(nn.Module):
    """A localisation network whose theta is its only parameter."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta))

    def forward(self, x):
        return self.theta.expand(len(x), -1)


def test_differences_of_the_loss_have_its_slope_for_their_mean(network):
    torch.manual_seed(0)
    network.transformer.localisation = Fixed([0.1, -0.2, 0.3, 0.0])
    task = with_differences(network, 0.2)
    slope = torch.tensor([3.0, -1.0, 0.5, 0.0])
    modes = []
    network.forward = lambda images, theta: modes.append(network.training) or theta
    task.losses = lambda logits, labels: logits @ slope + 7
    images = torch.zeros(20_000, 3, 1, 1)
    _, loss = task.logits_and_loss(images, torch.zeros(len(images)))
    assert float(loss) == pytest.approx(float(torch.tensor([0.1, -0.2, 0.3, 0.0]) @ slope + 7))
    loss.backward()
    torch.testing.assert_close(network.transformer.localisation.theta.grad, slope, atol=0.1, rtol=0)
    assert modes == [True, False, False], "both sides without dropout"
    assert network.training


def test_with_differences_streams_learn_as_they_did(network):
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    gradients = []
    for theta_step in (None, 0.1):
        network.zero_grad()
        with_differences(network, theta_step).logits_and_loss(images, labels)[1].backward()
        gradients.append([p.grad.clone() for p in network.streams.parameters()])
        assert all(p.grad.abs().sum() > 0 for p in network.transformer.localisation.head.parameters())
    for plain, differences in zip(*gradients, strict=True):
        torch.testing.assert_close(differences, plain)


def test_a_theta_step_of_nothing_is_refused(network):
    with pytest.raises(UsageError, match=r"recipe.theta_step=0"):
        BirdClassification(network, sgd, theta_step=0)
