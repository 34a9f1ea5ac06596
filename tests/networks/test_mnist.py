"""The MNIST networks of Table 1 and appendix A.1: budget, layers, start, gradients and errors."""

import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.networks.localisation import localisation_networks
from spatial_transformer.networks.mnist import (
    PARAM_BUDGET,
    MnistNetwork,
    fcn_classifier,
    largest_width,
)
from spatial_transformer.transformer import Affine, Projective, ThinPlateSpline

GOLDEN = json.loads((Path(__file__).parent / "mnist_networks.json").read_text())
SIZES = (28, 42, 60)
FAMILIES = {"affine": Affine, "projective": Projective, "tps": ThinPlateSpline}
TABLE_1 = {"fcn": partial(MnistNetwork, "fcn"), "cnn": partial(MnistNetwork, "cnn", pool=1)}
TABLE_1 |= {
    f"st_{arch}_{name}": lambda size, arch=arch, make=make, **options: MnistNetwork(
        arch, size, make(), **options
    )
    for arch in ("fcn", "cnn")
    for name, make in FAMILIES.items()
}
ADDITION = {
    f"{n}st_fcn_{name}": lambda size, n=n, make=make, **options: MnistNetwork(
        "fcn",
        size,
        make(),
        **{"transformers": n, "in_channels": 2, "classes": 19, "pool": 2} | options,
    )
    for n in (1, 2)
    for name, make in FAMILIES.items()
}
ADDITION |= {
    f"{arch}_of_2_channels": partial(MnistNetwork, arch, in_channels=2, classes=19, pool=1)
    for arch in ("fcn", "cnn")
}
NETWORKS = TABLE_1 | ADDITION
WITH_TRANSFORMER = [name for name in NETWORKS if "st_" in name]
every_network = pytest.mark.parametrize("name", NETWORKS)
every_transformer_network = pytest.mark.parametrize("name", WITH_TRANSFORMER)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_images(name, size, batch=4):
    return torch.rand(batch, 2 if name in ADDITION else 1, size, size)


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def width_of(network):
    """Return the width of the first layer of the classifier."""
    return next(layer.weight.shape[0] for layer in network.classifier if hasattr(layer, "weight"))


def build_on_meta(name, size, **options):
    with torch.device("meta"):
        return NETWORKS[name](size, **options)


# Budget and widths


@every_network
@pytest.mark.parametrize("size", SIZES)
def test_the_solved_width_is_the_largest_within_400k_parameters(name, size):
    if name.startswith("2st") and size == 60:
        pytest.skip("two fully connected localisation networks leave nothing of the budget")
    network = build_on_meta(name, size)
    assert 0.97 * 400_000 <= count_parameters(network) <= 1.001 * PARAM_BUDGET
    assert (
        count_parameters(build_on_meta(name, size, width=width_of(network) + 1))
        > 1.001 * PARAM_BUDGET
    )


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        (
            28,
            {
                "fcn": 349,
                "cnn": 89,
                "st_fcn_affine": 330,
                "st_fcn_tps": 330,
                "st_cnn_affine": 87,
                "st_cnn_tps": 87,
            },
        ),
        (
            42,
            {
                "fcn": 445,
                "cnn": 87,
                "st_fcn_affine": 400,
                "st_fcn_tps": 399,
                "st_cnn_affine": 87,
                "st_cnn_tps": 87,
            },
        ),
        (
            60,
            {
                "fcn": 323,
                "cnn": 80,
                "st_fcn_affine": 244,
                "st_fcn_tps": 243,
                "st_cnn_affine": 84,
                "st_cnn_tps": 84,
            },
        ),
    ],
)
def test_the_solved_widths_are_those_of_the_documented_table(size, widths):
    assert {name: width_of(build_on_meta(name, size)) for name in widths} == widths


def test_64_filters_at_28_px_are_209k_parameters():
    assert round(count_parameters(build_on_meta("cnn", 28, width=64)), -3) == 209_000


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 100])
def test_the_largest_width_within_a_budget_is_found(width):
    build = partial(fcn_classifier, 4, dropout=0.0, classes=3)
    budget = count_parameters(build(width))
    assert largest_width(build, budget) == largest_width(build, budget + 1) == width
    assert largest_width(build, 3) == 0


def test_a_transformer_that_exceeds_the_budget_is_an_error():
    with pytest.raises(ValueError, match="No width fits 400,000 parameters"):
        build_on_meta("st_fcn_affine", 128)


@every_network
@pytest.mark.parametrize("size", [28, 42])
def test_names_and_shapes_of_the_weights_are_those_of_earlier_versions(name, size):
    network = build_on_meta(name, size)
    shapes = "\n".join(f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    digest = hashlib.sha256(shapes.encode()).hexdigest()[:16]
    assert [count_parameters(network), digest] == GOLDEN[f"{name} {size}"]


# Layers


@every_network
@pytest.mark.parametrize("size", SIZES)
def test_images_have_one_logit_per_class_and_every_parameter_learns(name, size):
    network = NETWORKS[name](size, width=16)
    for localisation in localisation_networks(network):
        for layer in localisation.modules():
            if hasattr(
                layer, "start"
            ):  # with zero weights the layers before it have no gradient yet
                torch.nn.init.normal_(layer.weight, std=0.05)
    logits = network(make_images(name, size))
    assert logits.shape == (4, 19 if name in ADDITION else 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert not [
        key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]


@pytest.mark.parametrize("name", ["fcn", "cnn"])
def test_a_network_without_a_transformer_is_its_classifier(name):
    network, images = NETWORKS[name](28, width=4, classes=7), make_images(name, 28)
    assert network.transformer is None
    assert torch.equal(network(images), network.classifier(images))
    assert network(images).shape == (4, 7)


@pytest.mark.parametrize(("size", "pool"), [(28, 1), (42, 2), (60, 2)])
def test_images_larger_than_a_digit_are_pooled_by_default(size, pool):
    assert MnistNetwork("fcn", size, width=4).pool == pool


@every_network
def test_the_pooling_may_be_another(name):
    network = NETWORKS[name](84, width=4, pool=3)
    assert network.pool == 3
    assert network(make_images(name, 84, 2)).shape[0] == 2


def test_the_pooled_cnn_of_42_px_ends_in_one_pixel():
    features = MnistNetwork("cnn", 42, Affine(), width=4).classifier[:-3](torch.rand(4, 1, 21, 21))
    assert features.shape == (4, 4, 1, 1)


@pytest.mark.parametrize("size", range(21, 31))
def test_the_cnn_accepts_every_size_from_21_px_on(size):
    assert MnistNetwork("cnn", size, pool=1, width=4)(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize(("arch", "places"), [("fcn", 2), ("cnn", 1)])
def test_dropout_is_in_the_classifier_after_its_first_layer_and_in_training_only(arch, places):
    network, images = (
        MnistNetwork(arch, 28, Affine(), width=8, dropout=0.5),
        torch.rand(4, 1, 28, 28),
    )
    assert [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)] == [
        0.5
    ] * places
    assert not any(isinstance(module, torch.nn.Dropout) for module in network.transformer.modules())
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


# Transformers


@every_transformer_network
@pytest.mark.parametrize("size", SIZES)
def test_a_transformer_starts_at_the_identity(name, size):
    network, images = NETWORKS[name](size, width=4), make_images(name, size)
    crops, theta = network.transformer(images, return_theta=True)
    n = network.transformer.parallel
    assert crops.shape == (4, n * images.shape[1], size, size)
    identity = network.transformer.transform.identity()
    assert torch.equal(theta.view(4, n, -1), identity.expand(4, n, -1))
    seen = F.avg_pool2d(images, network.pool).repeat(1, n, 1, 1)
    torch.testing.assert_close(network(images), network.classifier(seen), rtol=0, atol=1e-5)


def test_parallel_transformers_warp_all_channels_and_theta_may_be_given():
    network, images = NETWORKS["2st_fcn_affine"](42, width=4), torch.rand(3, 2, 42, 42)
    shift = torch.eye(2, 3).flatten().repeat(3, 2)
    shift[:, 8] = 2 / 42  # the second reads one pixel to the right
    crops = network.transformer(images, theta=shift)
    torch.testing.assert_close(crops[:, :2], images, rtol=0, atol=1e-5)
    torch.testing.assert_close(crops[:, 2:, :, :-1], images[..., 1:], rtol=0, atol=1e-5)
    pooled = F.avg_pool2d(crops, 2)
    assert torch.equal(network(images, theta=shift), network.classifier(pooled))


def test_parallel_transformers_have_their_own_localisation_networks():
    (joined,) = localisation_networks(NETWORKS["2st_fcn_affine"](42, width=4))
    first, second = joined.networks
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


@every_transformer_network
def test_the_last_layer_of_localisation_learns_from_the_first_step_on(name):
    network = NETWORKS[name](28, width=16)
    F.cross_entropy(network(make_images(name, 28)), torch.arange(4)).backward()
    assert all(p.grad is not None for p in network.parameters())
    last = [layer for layer in network.transformer.modules() if hasattr(layer, "start")]
    assert all(p.grad.abs().sum() > 0 for layer in last for p in layer.parameters())


# Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arch": "mlp"}, r"arch must be 'fcn' or 'cnn', got 'mlp'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": -3}, "width must be at least 1, got -3"),
        ({"pool": 43}, "pool must be from 1 to the size of the image, 42, got 43"),
        ({"pool": 0}, "pool must be from 1"),
        ({"transformers": 0}, "transformers must be from 1 to 16, got 0"),
        ({"transformers": 10**9}, "transformers must be from 1 to 16"),
        ({"arch": "cnn", "size": 20, "transform": None}, "at least 21 x 21 pixels, got 20"),
        ({"arch": "cnn", "size": 40}, "at least 21 x 21 pixels, got 20"),
        ({"arch": "cnn", "size": 27}, r"at least 28 x 28, got \(27, 27\)"),
    ],
)
def test_what_cannot_be_built_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        MnistNetwork(**{"arch": "fcn", "size": 42, "transform": Affine(), **settings})
