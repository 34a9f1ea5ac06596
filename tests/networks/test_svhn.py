import pytest
import torch
from torch import nn

from spatial_transformer import Affine, Regression, SpatialTransformer
from spatial_transformer.networks.svhn import SvhnNetwork, cnn, st_multi, st_single

NETWORKS = {
    "cnn": cnn,
    "st_single": lambda size, **options: st_single(size, Affine(), **options),
    "st_multi": lambda size, **options: st_multi(size, Affine(), **options),
}
every_network = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS.keys())


@pytest.mark.parametrize(("size", "millions"), [(64, 32.8), (128, 61.1)])
def test_parameters_of_the_cnn(size, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in cnn(size).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_layers_of_the_cnn():
    with torch.device("meta"):
        layers = [m for m in cnn(64).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    sizes = [48, 64, 128, 160, 192, 192, 192, 192, 3072, 3072, 3072, 5 * 11]
    assert [layer.weight.shape[0] for layer in layers] == sizes


def test_weights_are_initialised_as_by_he():
    network = st_multi(64, Affine(), width=0.1)
    for layer in (*network.features, *network.classifier):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            expected = (2 / layer.weight[0].numel()) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.2)
            assert not layer.bias.any()


@pytest.mark.parametrize(
    ("name", "maps"),
    [("cnn", []), ("st_single", [(3, 64)]), ("st_multi", [(3, 64), (48, 32), (64, 32), (128, 16)])],
)
def test_transformers_are_before_the_first_convolutions(name, maps):
    layers = list(NETWORKS[name](64).features)
    places = [n for n, layer in enumerate(layers) if isinstance(layer, SpatialTransformer)]
    assert [(layers[n + 1].in_channels, layers[n].output_size[0]) for n in places] == maps


@every_network
@pytest.mark.parametrize("size", [64, 128])
def test_every_position_has_logits_and_every_parameter_a_gradient(build, size):
    network = build(size, width=0.1)
    for module in network.modules():
        if isinstance(module, Regression):  # zero weights send no gradient to the layers before
            nn.init.normal_(module.weight, std=0.01)
    logits = network(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 5, 11)
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@every_network
def test_transformers_start_as_the_identity(build):
    network, plain = build(64, width=0.1).eval(), cnn(64, width=0.1).eval()
    weights = [value for key, value in network.state_dict().items() if "localisation" not in key]
    plain.load_state_dict(dict(zip(plain.state_dict(), weights, strict=True)))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), plain(x))


def test_dropout_follows_all_hidden_layers_but_the_first():
    network = st_multi(64, Affine(), width=0.05, dropout=0.3)
    assert sum(isinstance(module, nn.Dropout) for module in network.modules()) == 7 + 3
    kinds = [type(layer) for layer in network.features[1:5]]
    assert kinds == [nn.Conv2d, nn.MaxPool2d, nn.ReLU, SpatialTransformer]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 60}, "multiple of 16"), ({"size": 64, "width": 0}, "width must be")],
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SvhnNetwork(**arguments)
