"""The networks of MNIST addition: budget, what transformers read and give, gradients and refusals."""

from functools import partial

import pytest
import torch

from spatial_transformer.networks.addition import cnn, fcn, st_fcn
from spatial_transformer.networks.localisation import localisation_networks
from spatial_transformer.networks.mnist import BUDGET
from spatial_transformer.transformer import Affine, Projective, ThinPlateSpline

FAMILIES = {"affine": Affine, "projective": Projective, "tps": ThinPlateSpline}
NETWORKS = {
    "fcn": fcn,
    "fcn pooled": partial(fcn, pool=2),
    "cnn": cnn,
    **{
        f"{n}st_fcn_{name}": lambda size, n=n, make=make, **options: st_fcn(size, make(), n, **options)
        for n in (1, 2)
        for name, make in FAMILIES.items()
    },
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())
def test_every_network_has_the_same_budget_and_19_classes(build):
    network = build(42)
    assert 0.98 * BUDGET <= sum(p.numel() for p in network.parameters()) <= 1.001 * BUDGET
    assert network(torch.rand(3, 2, 42, 42)).shape == (3, 19)


def test_two_transformers_give_both_channels_twice():
    network = st_fcn(42, Affine(), 2)
    x = torch.rand(3, 2, 42, 42)
    torch.testing.assert_close(network.transformer(x), torch.cat([x, x], dim=1), rtol=0, atol=1e-5)  # the identity
    shift = torch.eye(2, 3).flatten().repeat(3, 2)
    shift[:, 8] = 2 / 42  # the second reads one pixel to the right
    out = network.transformer(x, theta=shift)
    torch.testing.assert_close(out[:, :2], x, rtol=0, atol=1e-5)
    torch.testing.assert_close(out[:, 2:, :, :-1], x[..., 1:], rtol=0, atol=1e-5)  # both channels alike


def test_each_transformer_has_a_localisation_network_of_its_own_and_all_learn():
    network = st_fcn(42, Affine(), 2)
    (joined,) = localisation_networks(network)
    first, second = joined.networks
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    for weights in (layer.weight for layer in (first[-1], second[-1])):
        torch.nn.init.normal_(weights, std=0.01)  # at zero nothing comes through to the layers before
    network(torch.rand(8, 2, 42, 42)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"transformers": 0}, "from 1 to 16"), ({"pool": 43}, "pool must be from 1"), ({"width": 0}, "width must be")],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        st_fcn(42, Affine(), **options)
