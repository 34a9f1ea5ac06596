"""Logits, thetas and crops from one forward pass."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import trained
from torch import nn

from spatial_transformer import Affine, Attention
from spatial_transformer.inference import infer
from spatial_transformer.networks.mnist import MnistNetwork


@pytest.fixture
def images():
    return torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def test_transformers_in_a_row(images):
    first = trained(Affine(), images, (8, 9))
    second = trained(Attention(), first(images), (5, 5))
    logits, thetas, crops = infer(nn.Sequential(first, nn.ReLU(), second, nn.Flatten()), images)
    crop, theta = first(images, return_theta=True)
    inner_crop, inner_theta = second(crop.relu(), return_theta=True)
    expected = [inner_crop.flatten(1), theta, inner_theta, crop, inner_crop]
    for output, reference in zip([logits, *thetas, *crops], expected, strict=True):
        assert torch.equal(output, reference)
    assert theta.std(dim=0).min() > 0


class ThetaHead(nn.Module):
    """A network that uses theta itself, and warps by it twice."""

    def __init__(self, by_position):
        super().__init__()
        self.transformer = trained(Affine(), torch.rand(1, 1, 12, 12))
        self.by_position = by_position

    def forward(self, x):
        if self.by_position:
            crop, theta = self.transformer(x, True)
            again = self.transformer(crop, False, theta)
        else:
            crop, theta = self.transformer(x, return_theta=True)
            again = self.transformer(crop, theta=theta)
        return torch.cat([again.flatten(1), theta], dim=1)


@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize("batch", [2, 3])  # two crops would unpack as a crop and a theta
def test_a_network_may_use_theta_itself(images, batch, by_position):
    network, images = ThetaHead(by_position), images[:batch]
    logits, thetas, crops = infer(network, images)
    crop, theta = network.transformer(images, return_theta=True)
    assert torch.equal(logits, network(images))
    assert torch.equal(thetas[0], theta)
    assert torch.equal(thetas[1], theta)
    assert torch.equal(crops[0], crop)
    assert torch.equal(crops[1], network.transformer(crop, theta=theta))


def test_parallel_transformers():
    network = MnistNetwork("fcn", 28, Affine(), transformers=3, in_channels=2, classes=19, width=8)
    logits, thetas, crops = infer(network, torch.rand(2, 2, 28, 28))
    assert logits.shape == (2, 19)
    assert [tuple(theta.shape) for theta in thetas] == [(2, 3, 6)]
    assert [tuple(crop.shape) for crop in crops] == [(2, 6, 28, 28)]


def test_other_hooks_see_the_crop(images):
    transformer = trained(Affine(), images)
    seen = []
    hook = transformer.register_forward_hook(lambda module, args, output: seen.append(output))
    _, _, (crop,) = infer(transformer, images)
    assert torch.equal(seen[0], crop)
    hook.remove()


def test_no_hook_remains_after_an_error(images):
    transformer = trained(Affine(), images)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        infer(transformer, images[..., 1:])
    assert isinstance(transformer(images), torch.Tensor)
    assert len(infer(transformer, images).crops) == 1


def test_threads_are_independent(images):
    network = trained(Affine(), images)
    expected = [network(images[n : n + 1], return_theta=True) for n in range(3)]
    with ThreadPoolExecutor(max_workers=3) as threads:
        found = list(threads.map(lambda n: infer(network, images[n % 3 : n % 3 + 1]), range(60)))
    for n, outputs in enumerate(found):
        assert len(outputs.thetas) == len(outputs.crops) == 1
        torch.testing.assert_close((outputs.crops[0], outputs.thetas[0]), expected[n % 3])
