import math

import pytest
import torch
from torch import nn

from spatial_transformer.networks.p4 import P4Cnn, P4Conv2d
from spatial_transformer.networks.rotated import (
    CanonicalCnn,
    RotatedStCnn,
    Rotation,
    rotated_cnn,
)
from spatial_transformer.transformer import Affine, sample

NETWORKS = {
    "cnn": rotated_cnn,
    "st_rotation": lambda **options: RotatedStCnn(Rotation(), **options),
    "st_affine": lambda **options: RotatedStCnn(Affine(), **options),
    "canonical": CanonicalCnn,
    "p4": P4Cnn,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_same_budget_and_all_parameters_train(name):
    network = NETWORKS[name]()
    assert 20_000 < sum(p.numel() for p in network.parameters()) < 26_000
    logits = network(torch.rand(3, 1, 28, 28))
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_an_empty_batch_gives_no_logits(name):  # of a device without samples in the last batch
    assert NETWORKS[name]().eval()(torch.empty(0, 1, 28, 28)).shape == (0, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_in_the_classifier(name):
    modules = NETWORKS[name](dropout=0.3).modules()
    probabilities = [module.p for module in modules if isinstance(module, nn.Dropout)]
    assert set(probabilities) == {0.3}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_network_takes_any_batch(name):
    network, x = NETWORKS[name]().eval(), torch.rand(5, 1, 28, 28)
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (x[:3],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-4)


def test_p4_convolution_is_equivariant():
    first, second = P4Conv2d(1, 3, 3, is_first=True), P4Conv2d(3, 2, 3)
    x = torch.randn(2, 1, 9, 9)

    def features(image):
        return second(first(image)).unflatten(1, (2, 4))

    expected = features(x).rot90(1, (3, 4)).roll(1, 2)
    torch.testing.assert_close(features(x.rot90(1, (2, 3))), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(features(x).roll(1, 2), features(x), atol=0.1)


def test_p4_logits_are_invariant_to_quarter_turns():
    network = P4Cnn().eval()
    x = torch.rand(3, 1, 28, 28)
    assert network(x).std(dim=0).max() > 1e-3
    torch.testing.assert_close(network(x.rot90(1, (2, 3))), network(x), rtol=0, atol=1e-5)


def test_canonical_image_does_not_depend_on_a_quarter_turn():
    network = CanonicalCnn(angles=8).eval()
    x = torch.rand(3, 1, 28, 28)
    x[:, :, :, :14] *= 0.2
    torch.testing.assert_close(network(x.rot90(1, (2, 3))), network(x), rtol=0, atol=1e-4)


def test_classifier_sees_the_rotation_of_lowest_energy():
    network, x, seen = CanonicalCnn(angles=8).eval(), torch.rand(1, 1, 28, 28), []
    network.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(x)
    rotated = sample(x.expand(8, -1, -1, -1), network.grids)
    lowest = network.energy(rotated)[:, 0].argmin()
    torch.testing.assert_close(seen[0][0], rotated[lowest], rtol=0, atol=1e-5)


def test_energy_network_gets_a_gradient_through_the_choice():
    network = CanonicalCnn()
    network(torch.rand(4, 1, 28, 28)).square().sum().backward()
    assert network.energy[-1].weight.grad.abs().sum() > 0


def test_rotation_ignores_the_length_of_theta():
    transform = Rotation()
    angle = math.radians(30)
    theta = torch.tensor([[math.cos(angle), math.sin(angle)]])
    c, s = theta[0]
    expected = Affine().grid(torch.stack([c, -s, c * 0, s, c, c * 0])[None], (5, 6))
    torch.testing.assert_close(transform.grid(3 * theta, (5, 6)), expected)
    identity = nn.functional.affine_grid(torch.eye(2, 3)[None], (1, 1, 5, 6), align_corners=False)
    torch.testing.assert_close(transform.grid(transform.identity()[None], (5, 6)), identity)
    assert transform.grid(torch.zeros(1, 2), (5, 6)).isfinite().all()
