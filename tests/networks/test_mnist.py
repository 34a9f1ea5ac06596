"""The networks of Table 1: parameter budget, widths, start, gradients and refusals."""

import pytest
import torch
import torch.nn.functional as F

from spatial_transformer.networks.mnist import BUDGET, cnn, fcn, st_cnn, st_fcn
from spatial_transformer.transformer import Affine, Projective, ThinPlateSpline

SIZES = (28, 42, 60)
FAMILIES = {"affine": Affine, "projective": Projective, "tps": ThinPlateSpline}
NETWORKS = {
    "fcn": fcn,
    "cnn": cnn,
    **{f"st_fcn_{name}": lambda size, make=make, **options: st_fcn(size, make(), **options) for name, make in FAMILIES.items()},
    **{f"st_cnn_{name}": lambda size, make=make, **options: st_cnn(size, make(), **options) for name, make in FAMILIES.items()},
}
every_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())
every_transformer_network = pytest.mark.parametrize("build", list(NETWORKS.values())[2:], ids=list(NETWORKS)[2:])
every_size = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def images(size, batch=4):
    return torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0))


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def width(network):
    """Units or filters of the first layer of the classifier."""
    return next(layer.weight.shape[0] for layer in network.classifier if hasattr(layer, "weight"))


# Budget and widths


@every_network
@every_size
def test_the_solved_width_is_the_largest_within_the_budget(build, size):
    network = build(size)
    assert parameters(network) <= 1.001 * BUDGET
    assert parameters(build(size, width=width(network) + 1)) > 1.001 * BUDGET


@every_network
@every_size
def test_every_network_has_about_400k_parameters(build, size):
    assert 0.98 * 400_000 <= parameters(build(size)) <= 1.001 * 400_000


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        (28, {"fcn": 349, "cnn": 89, "st_fcn_affine": 330, "st_fcn_tps": 330, "st_cnn_affine": 87, "st_cnn_tps": 87}),
        (42, {"fcn": 445, "cnn": 87, "st_fcn_affine": 400, "st_fcn_tps": 399, "st_cnn_affine": 87, "st_cnn_tps": 87}),
        (60, {"fcn": 323, "cnn": 80, "st_fcn_affine": 244, "st_fcn_tps": 243, "st_cnn_affine": 84, "st_cnn_tps": 84}),
    ],
)
def test_the_solved_widths_are_those_of_the_documented_table(size, widths):
    assert {name: width(NETWORKS[name](size)) for name in widths} == widths


@every_network
def test_a_given_width_is_kept(build):
    assert width(build(28, width=64)) == 64


def test_64_filters_at_28_px_are_209k_parameters():
    assert round(parameters(cnn(28, width=64)), -3) == 209_000


@every_network
def test_another_budget_gives_another_width(build):
    network = build(28, budget=100_000)
    assert parameters(network) <= 100_000 < parameters(build(28, budget=100_000, width=width(network) + 1))


@pytest.mark.parametrize(
    "build", [lambda: fcn(28, budget=500), lambda: st_fcn(128, Affine())], ids=["fcn_of_500", "st_fcn_at_128_px"]
)
def test_a_budget_that_no_width_can_meet_is_refused(build):
    with pytest.raises(ValueError, match="budget"):
        build()


# Layers


@every_network
@every_size
def test_images_give_one_logit_for_each_class(build, size):
    assert build(size, width=4)(images(size)).shape == (4, 10)


@every_network
def test_the_number_of_classes_may_be_another(build):
    assert build(28, width=4, classes=19)(images(28)).shape == (4, 19)


@pytest.mark.parametrize("build", [fcn, cnn])
def test_a_network_without_a_transformer_is_its_classifier(build):
    network = build(28, width=4)
    assert network.transformer is None
    assert torch.equal(network(images(28)), network.classifier(images(28)))


@every_network
@pytest.mark.parametrize(("size", "pool"), [(28, 1), (42, 2), (60, 2)])
def test_canvases_larger_than_a_digit_are_pooled_before_all_classifiers_but_cnn(build, size, pool):
    assert build(size, width=4).pool == (1 if build is cnn else pool)


@every_network
def test_the_pooling_may_be_another(build):
    network = build(84, width=4, pool=3)
    assert network.pool == 3
    assert network(images(84, 2)).shape == (2, 10)


@every_transformer_network
@every_size
def test_the_output_of_the_transformer_has_the_size_of_the_image(build, size):
    assert build(size, width=4).transformer(images(size)).shape == (4, 1, size, size)


def test_the_pooled_cnn_of_42_px_ends_in_one_pixel():
    features = st_cnn(42, Affine(), width=4).classifier[:-3](images(21))
    assert features.shape == (4, 4, 1, 1)


@pytest.mark.parametrize("size", range(21, 31))
def test_the_cnn_takes_every_size_from_21_px_on(size):
    assert cnn(size, pool=1, width=4)(images(size)).shape == (4, 10)


@pytest.mark.parametrize(("network", "places"), [(fcn(28, width=8, dropout=0.5), 2), (cnn(28, width=4, dropout=0.5), 1)])
def test_dropout_is_behind_the_first_layer_and_in_training_only(network, places):
    assert [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)] == [0.5] * places
    x = images(28)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_localisation_networks_drop_nothing():
    network = st_cnn(28, Affine(), width=4, dropout=0.5)
    assert not any(isinstance(module, torch.nn.Dropout) for module in network.transformer.modules())


# Start and gradients


@every_transformer_network
@every_size
def test_theta_is_the_identity_at_the_start(build, size):
    transformer = build(size, width=4).transformer
    _, theta = transformer(images(size), return_theta=True)
    assert torch.equal(theta, transformer.transform.identity().expand(4, -1))


@every_transformer_network
@every_size
def test_at_the_start_the_logits_are_those_of_the_classifier_on_the_image_itself(build, size):
    network = build(size, width=4)
    x = images(size)
    seen = F.avg_pool2d(x, 2) if size > 28 else x
    torch.testing.assert_close(network(x), network.classifier(seen), rtol=0, atol=1e-5)


@every_network
@every_size
def test_every_parameter_learns(build, size):
    network = build(size, width=16)
    if network.transformer is not None:  # its regression starts at zero weights, and nothing below has a gradient yet
        torch.nn.init.normal_(network.transformer.localisation[-1].weight, std=0.05)
    F.cross_entropy(network(images(size)), torch.arange(4)).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@every_transformer_network
def test_at_the_very_start_the_regression_already_learns(build):
    network = build(28, width=16)
    F.cross_entropy(network(images(28)), torch.arange(4)).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert all(p.grad.abs().sum() > 0 for p in network.transformer.localisation[-1].parameters())


def test_a_few_steps_lower_the_loss():
    network, x, labels = st_cnn(28, Affine(), width=8), images(28), torch.arange(4)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(network(x), labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]


# Refusals


@pytest.mark.parametrize("size", [1, 8, 16, 20])
def test_an_image_too_small_for_the_cnn_is_refused(size):
    with pytest.raises(ValueError, match=rf"needs images of at least 21 x 21 px, got {size}"):
        cnn(size)


@pytest.mark.parametrize("size", [5, 27])
def test_an_image_too_small_for_the_convolutional_localisation_is_refused(size):
    with pytest.raises(ValueError, match=rf"at least 28 x 28, got \({size}, {size}\)"):
        st_cnn(size, Affine())


def test_an_image_too_small_for_the_cnn_once_pooled_is_refused():
    with pytest.raises(ValueError, match="needs images of at least 21 x 21 px, got 20"):
        st_cnn(40, Affine())


@every_network
@pytest.mark.parametrize("wrong", [0, -3])
def test_a_width_below_one_is_refused(build, wrong):
    with pytest.raises(ValueError, match=f"width must be at least 1, got {wrong}"):
        build(28, width=wrong)
