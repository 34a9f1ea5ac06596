from collections import OrderedDict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spatial_transformer import Affine, FcLocalisation, SpatialTransformer
from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.networks.svhn import st_multi
from spatial_transformer.tasks.classification import Classification
from spatial_transformer.tasks.number_reading import NumberReading
from spatial_transformer.utils.errors import UsageError
from spatial_transformer.utils.random import mix_integers

SGD = partial(torch.optim.SGD, lr=0.01)


def st_fcn():
    return MnistNetwork("fcn", 28, Affine(), width=8)


def test_error_is_the_percentage_of_wrong_predictions():
    task, wrong = Classification(nn.Identity(), SGD), []
    for size in (7, 30, 1):  # samples count equally, also those of smaller batches
        logits, labels = torch.randn(size, 10), torch.randint(10, (size,))
        task.test_step((logits, labels), 0)
        wrong += (logits.argmax(dim=1) != labels).tolist()
    error = task.test_scores.compute()["test/error"].item()
    assert error == pytest.approx(100 * sum(wrong) / len(wrong), abs=1e-4)


def test_localisation_has_its_own_learning_rate():
    network = st_fcn()
    task = Classification(network, SGD, localisation_lr_factor=0.1)
    groups = task.configure_optimizers().param_groups
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"network": 0.01, "localisation": pytest.approx(0.001)}
    classifier, localisation = ({id(p) for p in group["params"]} for group in groups)
    assert classifier == {id(p) for p in network.classifier.parameters()}
    assert localisation == {id(p) for p in network.transformer.parameters()}


def test_a_network_without_a_transformer_has_one_parameter_group():
    (group,) = Classification(MnistNetwork("fcn", 28, width=8), SGD).parameter_groups()
    assert group["name"] == "network"


@pytest.mark.parametrize(("kind", "shape"), [(Classification, (4,)), (NumberReading, (4, 3))])
def test_labels_are_smoothed_in_training_only(kind, shape):
    smoothed, plain = kind(nn.Identity(), SGD, label_smoothing=0.2), kind(nn.Identity(), SGD)
    logits, labels = torch.randn(*shape, 11), torch.randint(11, shape)
    loss = plain.per_sample_loss(logits, labels)
    uniform = -logits.log_softmax(-1).mean(-1).view(4, -1).sum(1)
    torch.testing.assert_close(smoothed.per_sample_loss(logits, labels), 0.8 * loss + 0.2 * uniform)
    assert torch.equal(smoothed.eval().per_sample_loss(logits, labels), loss)


# Random numbers of a step


def start_step(task, step=0, rank=0, devices=1):
    """Bring a task to the start of a training step on one of several devices."""
    task._trainer = SimpleNamespace(global_step=step, global_rank=rank, world_size=devices)
    task.on_fit_start()
    task.on_train_batch_start(None, 0)


def noisy_thetas(network, images, **place):
    """Return the thetas that the network gets in training, and the loss."""
    task, thetas = Classification(network, SGD, theta_noise=0.3), []
    torch.manual_seed(1)
    start_step(task, **place)
    hook = network.register_forward_pre_hook(lambda module, args: thetas.append(args[1]))
    _, loss = task.compute_loss(images, torch.zeros(len(images), dtype=torch.long))
    hook.remove()
    return thetas[0], loss


def test_theta_is_noisy_and_learned_in_training():
    network = st_fcn()
    theta, loss = noisy_thetas(network, torch.rand(64, 1, 28, 28))
    loss.backward()
    assert network.transformer.localisation[-1].weight.grad.abs().sum() > 0
    noise = theta - Affine().identity()  # where a localisation network starts
    assert noise.std().item() == pytest.approx(0.3, rel=0.2)


def test_theta_is_exact_in_validation():
    network, batch = st_fcn(), (torch.rand(4, 1, 28, 28), torch.randint(10, (4,)))
    task = Classification(network, SGD, theta_noise=0.3).eval()
    assert torch.equal(task.validation_step(batch, 0), network(batch[0]))


def test_noise_depends_on_step_and_sample_only():
    network, images = st_fcn(), torch.rand(6, 1, 28, 28)
    theta, _ = noisy_thetas(network, images, step=5)
    for rank in (0, 1):
        half, _ = noisy_thetas(network, images[rank::2], step=5, rank=rank, devices=2)
        assert torch.equal(half, theta[rank::2])
    other, _ = noisy_thetas(network, images, step=6)
    assert (other != theta).all()


@pytest.mark.parametrize(
    "network", [MnistNetwork("fcn", 28, width=8), nn.Flatten()], ids=["ours", "torch"]
)
def test_a_network_without_a_transformer_trains_without_noise(network):
    images, labels = torch.rand(8, 1, 28, 28), torch.zeros(8, dtype=torch.long)
    logits, _ = Classification(network, SGD, theta_noise=0.3).compute_loss(images, labels)
    assert torch.equal(logits, network(images))


def own_network():
    transformer = SpatialTransformer(FcLocalisation((1, 28, 28), Affine()), Affine())
    layers = {"transformer": transformer, "flatten": nn.Flatten(), "linear": nn.Linear(784, 10)}
    return nn.Sequential(OrderedDict(layers))


@pytest.mark.parametrize(
    "build", [own_network, lambda: st_multi(16, Affine(), width=0.01)], ids=["own", "several"]
)
def test_noise_is_refused_for_networks_that_do_not_take_theta(build):
    with pytest.raises(UsageError, match=r"recipe\.theta_noise needs a network with one"):
        Classification(build(), SGD, theta_noise=0.3)


@pytest.mark.parametrize(
    ("values", "seed"),
    [
        ((1, 2, 3), 529344067295497451),
        ((0, 0, 0, 0), -3226225171056353554),
        ((2**32 - 1, 150_000, 3, 1), 8659121836606849759),
    ],
)
def test_seeds_are_those_of_earlier_versions(values, seed):
    assert mix_integers(*values) == seed


def test_dropout_is_repeatable_and_differs_between_steps_and_devices():
    def draw(step, rank):
        torch.manual_seed(1)
        start_step(Classification(nn.Identity(), SGD), step, rank, devices=2)
        return torch.rand(()).item()

    draws = [draw(step, rank) for step in (3, 4) for rank in (0, 1)]
    assert draws == [draw(step, rank) for step in (3, 4) for rank in (0, 1)]
    assert len(set(draws)) == 4
