import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spatial_transformer import Regression
from spatial_transformer.networks.mnist import MnistNetwork, fcn_classifier, largest_width
from spatial_transformer.transformer import Affine, Projective, ThinPlateSpline

EARLIER = json.loads((Path(__file__).parent / "mnist_networks.json").read_text())
SIZES = (28, 42, 60)
TWO_CHANNELS = {"in_channels": 2, "classes": 19}
NETWORKS = {
    "fcn": {"arch": "fcn"},
    "cnn": {"arch": "cnn", "pool": 1},
    "fcn_of_2_channels": {"arch": "fcn", "pool": 1, **TWO_CHANNELS},
    "cnn_of_2_channels": {"arch": "cnn", "pool": 1, **TWO_CHANNELS},
}
for name, transform in {"affine": Affine, "projective": Projective, "tps": ThinPlateSpline}.items():
    for arch in ("fcn", "cnn"):
        NETWORKS[f"st_{arch}_{name}"] = {"arch": arch, "transform": transform()}
    for n in (1, 2):
        parallel = {"arch": "fcn", "transform": transform(), "transformers": n, "pool": 2}
        NETWORKS[f"{n}st_fcn_{name}"] = parallel | TWO_CHANNELS
every_network = pytest.mark.parametrize("name", NETWORKS)
every_st_network = pytest.mark.parametrize("name", [name for name in NETWORKS if "st_" in name])
every_size = pytest.mark.parametrize("size", SIZES)


def build(name, size, **options):
    return MnistNetwork(size=size, **NETWORKS[name] | options)


def build_on_meta(name, size, **options):
    with torch.device("meta"):
        return build(name, size, **options)


def random_images(name, size):
    return torch.rand(4, NETWORKS[name].get("in_channels", 1), size, size)


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def first_width(network):
    """Return the width of the first layer of the classifier."""
    return next(layer.weight.shape[0] for layer in network.classifier if hasattr(layer, "weight"))


# Parameters


@every_network
@every_size
def test_solved_width_is_the_largest_within_the_budget(name, size):
    if name.startswith("2st") and size == 60:
        pytest.skip("two fully connected localisation networks exhaust the budget")
    network = build_on_meta(name, size)
    assert 388_000 <= count_parameters(network) <= 400_400
    wider = build_on_meta(name, size, width=first_width(network) + 1)
    assert count_parameters(wider) > 400_400


@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 5, 7, 8, 100])
def test_largest_width(width):
    build = partial(fcn_classifier, 4, dropout=0.0, classes=3)
    budget = count_parameters(build(width)) if width else 3
    assert largest_width(build, budget) == largest_width(build, budget + 1) == width


@every_network
@pytest.mark.parametrize("size", [28, 42])
def test_weights_are_those_of_earlier_versions(name, size):
    network = build_on_meta(name, size)
    shapes = "\n".join(f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    digest = hashlib.sha256(shapes.encode()).hexdigest()[:16]
    assert [count_parameters(network), digest] == EARLIER[f"{name} {size}"]


# Layers


@every_network
@every_size
def test_every_class_has_a_logit_and_every_parameter_a_gradient(name, size):
    network = build(name, size, width=16)
    for module in network.modules():
        if isinstance(module, Regression):  # zero weights send no gradient to the layers before
            nn.init.normal_(module.weight, std=0.05)
    logits = network(random_images(name, size))
    assert logits.shape == (4, NETWORKS[name].get("classes", 10))
    F.cross_entropy(logits, torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(
    ("size", "pool", "expected"), [(28, None, 1), (42, None, 2), (60, None, 2), (84, 3, 3)]
)
def test_pooling(size, pool, expected):
    network, images = MnistNetwork("fcn", size, width=4, pool=pool), torch.rand(2, 1, size, size)
    assert network.pool == expected
    assert torch.equal(network(images), network.classifier(F.avg_pool2d(images, expected)))


def test_the_pooled_cnn_of_42_px_ends_in_one_pixel():
    features = MnistNetwork("cnn", 42, Affine(), width=4).classifier[:-3](torch.rand(4, 1, 21, 21))
    assert features.shape == (4, 4, 1, 1)


@pytest.mark.parametrize("size", range(21, 31))
def test_the_cnn_takes_every_size_from_21_px(size):
    assert MnistNetwork("cnn", size, pool=1, width=4)(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize(("arch", "count"), [("fcn", 2), ("cnn", 1)])
def test_dropout_is_in_the_classifier(arch, count):
    network = MnistNetwork(arch, 28, Affine(), width=8, dropout=0.5)
    dropouts = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.5] * count
    assert not any(isinstance(module, nn.Dropout) for module in network.transformer.modules())


# Transformers


@every_st_network
@every_size
def test_transformers_start_as_the_identity(name, size):
    network, images = build(name, size, width=4), random_images(name, size)
    n = network.transformer.parallel
    seen = F.avg_pool2d(images, network.pool).repeat(1, n, 1, 1)
    torch.testing.assert_close(network(images), network.classifier(seen), rtol=0, atol=1e-5)


def test_parallel_transformers_warp_all_channels_by_given_thetas():
    network, images = build("2st_fcn_affine", 42, width=4), torch.rand(3, 2, 42, 42)
    theta = torch.eye(2, 3).flatten().repeat(3, 2)
    theta[:, 8] = 2 / 42  # the second reads one pixel to the right
    crops = network.transformer(images, theta=theta)
    torch.testing.assert_close(crops[:, :2], images, rtol=0, atol=1e-5)
    torch.testing.assert_close(crops[:, 2:, :, :-1], images[..., 1:], rtol=0, atol=1e-5)
    assert torch.equal(network(images, theta), network.classifier(F.avg_pool2d(crops, 2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "mlp"}, r"arch must be 'fcn' or 'cnn', got 'mlp'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": -3}, "width must be at least 1, got -3"),
        ({"pool": 43}, "pool must be from 1 to the size of the image, 42, got 43"),
        ({"pool": 0}, "pool must be from 1"),
        ({"transformers": 0}, "must be at least 1, got 0"),
        ({"size": 128}, "No width fits 400,000 parameters"),
        ({"arch": "cnn", "size": 20, "transform": None}, "at least 21 x 21 pixels, got 20"),
        ({"arch": "cnn", "size": 40}, "at least 21 x 21 pixels, got 20"),
        ({"arch": "cnn", "size": 27}, r"at least 28 x 28, got \(27, 27\)"),
    ],
)
def test_invalid_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MnistNetwork(**{"arch": "fcn", "size": 42, "transform": Affine(), **settings})
