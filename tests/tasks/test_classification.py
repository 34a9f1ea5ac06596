"""The classification task: scores and parameter groups."""

import pytest
import torch
from torch import nn

from spatial_transformer import Affine, FcLocalisation, SpatialTransformer
from spatial_transformer.errors import UsageError
from spatial_transformer.networks.mnist import fcn, st_fcn
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.tasks.number_reading import NumberReading


def test_the_error_is_the_share_of_wrong_predictions_in_percent():
    torch.manual_seed(0)
    scored, wrong, seen = task(nn.Identity()), 0, 0
    for size in (7, 30, 1):  # batches of different sizes count by their samples
        logits, labels = torch.randn(size, 10), torch.randint(10, (size,))
        scored.test_step((logits, labels), 0)
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            wrong += row.index(max(row)) != label
            seen += 1
    assert scored.test_scores.compute()["test/error"].item() == pytest.approx(100 * wrong / seen, abs=1e-4)


def task(network, factor=1.0, optimizer=torch.optim.SGD, scheduler=None):
    def make(groups):
        return optimizer(groups, lr=0.01)

    return Classification(network, make, scheduler, localisation_lr_factor=factor)


def test_the_localisation_network_has_a_named_group_with_its_own_rate():
    network = st_fcn(28, Affine(), width=8)
    optimizer = task(network, factor=0.1).configure_optimizers()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"network": 0.01, "localisation": pytest.approx(0.001)}
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in network.parameters()}
    localisation = {id(p) for p in network.transformer.localisation.parameters()}
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == localisation


def test_a_network_without_transformer_has_one_group():
    assert [group["name"] for group in task(fcn(28, width=8)).parameter_groups()] == ["network"]


@pytest.mark.parametrize("kind", [Classification, NumberReading])
def test_labels_are_smoothed_in_training_alone(kind):
    smoothed, plain = kind(nn.Identity(), torch.optim.SGD, label_smoothing=0.2), kind(nn.Identity(), torch.optim.SGD)
    positions = () if kind is Classification else (3,)
    logits, labels = torch.randn(4, *positions, 11), torch.randint(11, (4, *positions))
    uniform = -logits.log_softmax(-1).mean(-1)
    expected = plain.losses(logits, labels) * 0.8 + 0.2 * (uniform.sum(-1) if positions else uniform)
    torch.testing.assert_close(smoothed.train().losses(logits, labels), expected)
    assert torch.equal(smoothed.eval().losses(logits, labels), plain.losses(logits, labels))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_is_no_share_is_refused(share):
    with pytest.raises(UsageError, match="label_smoothing="):
        Classification(nn.Identity(), torch.optim.SGD, label_smoothing=share)


def test_theta_is_noisy_in_training_alone_and_its_network_learns_through_it():
    torch.manual_seed(0)
    network = st_fcn(28, Affine(), width=8)
    images, labels = torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
    seen = []
    network.transformer.register_forward_hook(lambda module, given, kwargs, out: seen.append(kwargs["theta"]), with_kwargs=True)
    noisy = Classification(network, torch.optim.SGD, theta_noise=0.3).train()
    _, loss = noisy.logits_and_loss(images, labels)
    loss.backward()
    assert network.transformer.localisation[-1].weight.grad.abs().sum() > 0
    off = seen[0] - Affine().identity()  # where a localisation network starts
    assert off.std().item() == pytest.approx(0.3, rel=0.2)
    noisy.eval().validation_step((images, labels), 0)
    assert seen[1] is None


OF_ITS_OWN = nn.Sequential()
OF_ITS_OWN.add_module("transformer", SpatialTransformer(FcLocalisation((1, 28, 28), Affine()), Affine()))
OF_ITS_OWN.extend([nn.Flatten(), nn.Linear(784, 10)])


@pytest.mark.parametrize("network", [fcn(28, width=8), nn.Linear(4, 10), OF_ITS_OWN])
def test_without_a_transformer_that_takes_theta_there_is_no_noise(network):
    inputs = torch.rand(8, 1, 28, 28) if hasattr(network, "transformer") else torch.rand(8, 4)
    noisy = Classification(network, torch.optim.SGD, theta_noise=0.3)
    assert torch.equal(noisy.logits_and_loss(inputs, torch.zeros(8, dtype=torch.long))[0], network(inputs))


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_a_noise_that_is_no_deviation_is_refused(noise):
    with pytest.raises(UsageError, match="theta_noise="):
        Classification(nn.Identity(), torch.optim.SGD, theta_noise=noise)


def test_a_negative_factor_is_refused():
    with pytest.raises(UsageError, match=r"localisation_lr_factor=-0\.5"):
        task(fcn(28, width=8), factor=-0.5)
