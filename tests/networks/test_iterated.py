import pytest
import torch
from torch import nn

from spatial_transformer.networks.iterated import IteratedLocalisation, IteratedMnistNetwork
from spatial_transformer.networks.localisation import FcLocalisation
from spatial_transformer.networks.mnist import MnistNetwork
from spatial_transformer.transformer import Affine, Attention, Projective, ThinPlateSpline, sample


def with_random_weights(localisation):
    torch.manual_seed(1)
    nn.init.normal_(localisation[-1].weight, std=0.2)
    return localisation


@pytest.mark.parametrize("make", [Affine, Attention, Projective])
def test_passes_equal_repeated_warps(make):
    transform = make()
    localisation = with_random_weights(FcLocalisation((1, 64, 64), transform))
    axis = torch.linspace(-1, 1, 64)
    blob = torch.exp(-8 * (axis[:, None] ** 2 + (axis - 0.1) ** 2))  # smooth: repeated sampling
    x = blob.expand(3, 1, 64, 64) * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)
    warped = x
    for passes in (1, 2, 3):
        theta = IteratedLocalisation(localisation, transform, passes)(x)
        warped = sample(warped, transform.grid(localisation(warped), (64, 64)))
        once = sample(x, transform.grid(theta, (64, 64)))
        assert not torch.allclose(once, x, atol=0.05)
        torch.testing.assert_close(once, warped, rtol=0, atol=0.01 * passes)


@pytest.mark.parametrize("arch", ["fcn", "cnn"])
def test_network_of_one_pass_is_the_network_of_the_table(arch):
    torch.manual_seed(1)
    expected = MnistNetwork(arch, 42, Affine())
    torch.manual_seed(1)
    network = IteratedMnistNetwork(arch, 42, Affine(), passes=1)
    x = torch.rand(2, 1, 42, 42)
    assert torch.equal(network(x), expected(x))
    more = IteratedMnistNetwork(arch, 42, Affine(), passes=3)
    counts = [sum(p.numel() for p in n.parameters()) for n in (expected, more)]
    assert counts[0] == counts[1]


def test_every_pass_contributes_to_the_gradient():
    localisation = with_random_weights(FcLocalisation((1, 28, 28), Affine()))
    x = torch.rand(2, 1, 28, 28)
    gradients = []
    for passes in (1, 2):
        (gradient,) = torch.autograd.grad(
            IteratedLocalisation(localisation, Affine(), passes)(x).sum(), localisation[-1].bias
        )
        gradients.append(gradient)
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("transform", "passes", "message"),
    [(Affine(), 0, "passes must be at least 1"), (ThinPlateSpline(), 2, "compose")],
)
def test_iterated_localisation_refuses(transform, passes, message):
    with pytest.raises(ValueError, match=message):
        IteratedLocalisation(nn.Identity(), transform, passes)
