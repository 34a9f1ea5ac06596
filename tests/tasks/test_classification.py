"""The classification task: scores and parameter groups."""

import pytest
import torch
from torch import nn

from spatial_transformer import Affine, FcLocalisation, SpatialTransformer
from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.networks.svhn import st_multi
from spatial_transformer.tasks.classification import Classification, mix_integers
from spatial_transformer.tasks.number_reading import NumberReading
from spatial_transformer.utils.errors import UsageError


def test_the_error_is_the_share_of_wrong_predictions_in_percent():
    torch.manual_seed(0)
    scored, wrong, seen = task(nn.Identity()), 0, 0
    for size in (7, 30, 1):  # batches of different sizes count by their samples
        logits, labels = torch.randn(size, 10), torch.randint(10, (size,))
        scored.test_step((logits, labels), 0)
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            wrong += row.index(max(row)) != label
            seen += 1
    assert scored.test_scores.compute()["test/error"].item() == pytest.approx(
        100 * wrong / seen, abs=1e-4
    )


def task(network, factor=1.0, optimizer=torch.optim.SGD, scheduler=None):
    def make(groups):
        return optimizer(groups, lr=0.01)

    return Classification(network, make, scheduler, localisation_lr_factor=factor)


def test_the_localisation_network_has_a_named_group_with_its_own_rate():
    network = MnistNetwork("fcn", 28, Affine(), width=8)
    optimizer = task(network, factor=0.1).configure_optimizers()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"network": 0.01, "localisation": pytest.approx(0.001)}
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert grouped == {id(p) for p in network.parameters()}
    localisation = {id(p) for p in network.transformer.localisation.parameters()}
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == localisation


def test_a_network_without_transformer_has_one_group():
    assert [
        group["name"] for group in task(MnistNetwork("fcn", 28, width=8)).parameter_groups()
    ] == ["network"]


@pytest.mark.parametrize("kind", [Classification, NumberReading])
def test_labels_are_smoothed_in_training_alone(kind):
    smoothed, plain = (
        kind(nn.Identity(), torch.optim.SGD, label_smoothing=0.2),
        kind(nn.Identity(), torch.optim.SGD),
    )
    positions = () if kind is Classification else (3,)
    logits, labels = torch.randn(4, *positions, 11), torch.randint(11, (4, *positions))
    uniform = -logits.log_softmax(-1).mean(-1)
    expected = plain.per_sample_loss(logits, labels) * 0.8 + 0.2 * (
        uniform.sum(-1) if positions else uniform
    )
    torch.testing.assert_close(smoothed.train().per_sample_loss(logits, labels), expected)
    assert torch.equal(
        smoothed.eval().per_sample_loss(logits, labels), plain.per_sample_loss(logits, labels)
    )


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_is_no_share_is_refused(share):
    with pytest.raises(UsageError, match=r"label_smoothing must be in \[0, 1\), got"):
        Classification(nn.Identity(), torch.optim.SGD, label_smoothing=share)


class Trainer:
    """At a step of a run on some devices."""

    def __init__(self, global_step=0, global_rank=0, world_size=1):
        self.global_step, self.global_rank, self.world_size = global_step, global_rank, world_size


def noisy_task(network, noise=0.3, **place):
    noisy = Classification(network, torch.optim.SGD, theta_noise=noise).train()
    noisy._trainer, noisy._seed = Trainer(**place), 1
    noisy.on_train_batch_start(None, 0)
    return noisy


def thetas_of(noisy, images, labels):
    """Return the thetas that a network is given in training, and the loss."""
    seen = []
    hook = noisy.network.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    _, loss = noisy.compute_loss(images, labels)
    hook.remove()
    return seen[0], loss


def test_theta_is_noisy_in_training_alone_and_the_network_learns_through_it():
    torch.manual_seed(0)
    network = MnistNetwork("fcn", 28, Affine(), width=8)
    images, labels = torch.rand(64, 1, 28, 28), torch.randint(10, (64,))
    noisy = noisy_task(network)
    theta, loss = thetas_of(noisy, images, labels)
    loss.backward()
    assert network.transformer.localisation[-1].weight.grad.abs().sum() > 0
    off = theta - Affine().identity()  # where a localisation network starts
    assert off.std().item() == pytest.approx(0.3, rel=0.2)
    logits = noisy.eval().validation_step((images, labels), 0)
    assert torch.equal(logits, network(images))


def test_noise_on_theta_depends_on_the_step_and_the_sample_but_not_on_the_number_of_devices():
    network = MnistNetwork("fcn", 28, Affine(), width=8)
    images, labels = torch.rand(6, 1, 28, 28), torch.randint(10, (6,))
    alone, _ = thetas_of(noisy_task(network, global_step=5), images, labels)
    for rank in (0, 1):
        share = slice(rank, None, 2)
        half, _ = thetas_of(
            noisy_task(network, global_step=5, global_rank=rank, world_size=2),
            images[share],
            labels[share],
        )
        assert torch.equal(half, alone[share])
    other_step, _ = thetas_of(noisy_task(network, global_step=6), images, labels)
    assert (other_step != alone).all()


@pytest.mark.parametrize(
    "network", [MnistNetwork("fcn", 28, width=8), nn.Flatten()], ids=["of_the_package", "of_torch"]
)
def test_a_network_without_a_transformer_trains_without_noise(network):
    images = torch.rand(8, 1, 28, 28)
    noisy = Classification(network, torch.optim.SGD, theta_noise=0.3)
    assert torch.equal(
        noisy.compute_loss(images, torch.zeros(8, dtype=torch.long))[0], network(images)
    )


def own_network():
    network = nn.Sequential()
    network.add_module(
        "transformer", SpatialTransformer(FcLocalisation((1, 28, 28), Affine()), Affine())
    )
    return network.extend([nn.Flatten(), nn.Linear(784, 10)])


@pytest.mark.parametrize(
    "build", [own_network, lambda: st_multi(16, Affine(), width=0.01)], ids=["own", "several"]
)
def test_noise_is_an_error_for_a_network_that_has_transformers_and_does_not_take_theta(build):
    with pytest.raises(
        UsageError, match=r"recipe.theta_noise needs a network with one `transformer`"
    ):
        Classification(build(), torch.optim.SGD, theta_noise=0.3)


@pytest.mark.parametrize(
    ("values", "seed"),
    [
        ((1, 2, 3), 529344067295497451),
        ((0, 0, 0, 0), -3226225171056353554),
        ((2**32 - 1, 150_000, 3, 1), 8659121836606849759),
    ],
)
def test_seeds_of_a_step_are_those_of_earlier_versions(values, seed):
    assert mix_integers(*values) == seed
    torch.default_generator.manual_seed(seed)


def test_dropout_of_a_step_is_repeated_and_differs_between_steps_and_devices():
    network = MnistNetwork("fcn", 28, width=8)
    draws = set()
    for step in (3, 4):
        for rank in (0, 1):
            numbers = []
            for _ in range(2):
                noisy_task(network, global_step=step, global_rank=rank, world_size=2)
                numbers.append(torch.rand(()).item())
            assert numbers[0] == numbers[1]
            draws.add(numbers[0])
    assert len(draws) == 4


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_a_noise_that_is_no_deviation_is_refused(noise):
    with pytest.raises(UsageError, match="theta_noise must be at least 0, got"):
        Classification(nn.Identity(), torch.optim.SGD, theta_noise=noise)


def test_a_negative_factor_is_refused():
    with pytest.raises(UsageError, match=r"localisation_lr_factor must be at least 0, got -0\.5"):
        task(MnistNetwork("fcn", 28, width=8), factor=-0.5)
