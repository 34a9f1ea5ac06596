"""The networks of Table 2."""

import pytest
import torch
from torch import nn

from spatial_transformer import Affine, SpatialTransformer
from spatial_transformer.networks.svhn import cnn, st_multi, st_single

NETWORKS = {"cnn": cnn, "st_single": lambda *args, **more: st_single(args[0], Affine(), **more)}
NETWORKS["st_multi"] = lambda *args, **more: st_multi(args[0], Affine(), **more)
every_network = pytest.mark.parametrize("name", NETWORKS)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("size", "millions"), [(64, 32.8), (128, 61.1)])
def test_the_cnn_has_the_papers_number_of_parameters(size, millions):
    with torch.device("meta"):
        assert parameters(cnn(size)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_cnn_has_eleven_hidden_layers_and_five_softmaxes():
    with torch.device("meta"):
        network = cnn(64)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [
        layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for layer in layers
    ] == [
        *(48, 64, 128, 160, 192, 192, 192, 192),
        *(3072, 3072, 3072),
        5 * 11,
    ]


@every_network
@pytest.mark.parametrize("size", [64, 128])
def test_every_position_gets_logits_and_every_parameter_a_gradient(name, size):
    torch.manual_seed(0)
    network = NETWORKS[name](size, width=0.1)
    x = torch.randn(2, 3, size, size)
    for (
        module
    ) in network.modules():  # a regression that starts at zero weights sends nothing back behind it
        if isinstance(module, SpatialTransformer):
            nn.init.normal_(module.localisation[-1].weight, std=0.01)
    logits = network(x)
    assert logits.shape == (2, 5, 11)
    logits.square().sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize(
    ("name", "maps"),
    [("cnn", []), ("st_single", [(3, 64)]), ("st_multi", [(3, 64), (48, 32), (64, 32), (128, 16)])],
)
def test_transformers_are_before_the_convolutions_that_the_paper_names(name, maps):
    network = NETWORKS[name](64)
    layers = list(network.features)
    places = [n for n, layer in enumerate(layers) if isinstance(layer, SpatialTransformer)]
    assert [(layers[n + 1].in_channels, layers[n].output_size[0]) for n in places] == maps


@every_network
def test_a_transformer_that_starts_at_the_identity_changes_nothing(name):
    torch.manual_seed(0)
    network = NETWORKS[name](64, width=0.1).eval()
    plain = cnn(64, width=0.1).eval()
    weights = [value for key, value in network.state_dict().items() if "localisation" not in key]
    plain.load_state_dict(dict(zip(plain.state_dict(), weights, strict=True)))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x), plain(x))


def test_dropout_is_everywhere_but_behind_the_first_convolution_and_in_localisation():
    network = st_multi(64, Affine(), width=0.05, dropout=0.3)
    assert sum(isinstance(m, nn.Dropout) for m in network.modules()) == 7 + 3
    layers = list(network.features)
    first = next(n for n, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
    assert [type(layer) for layer in layers[first + 1 : first + 4]] == [
        nn.ReLU,
        nn.MaxPool2d,
        SpatialTransformer,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 60}, "multiple of 16"), ({"size": 64, "width": 0}, "width must be")],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cnn(**arguments)


@pytest.mark.slow
@every_network
def test_sixteen_samples_are_learnt_by_heart(name):
    torch.manual_seed(0)
    network = NETWORKS[name](64, width=0.25, dropout=0.0)
    x, labels = torch.randn(16, 3, 64, 64), torch.randint(11, (16, 5))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x).mT, labels).backward()
        optimizer.step()
    assert torch.equal(network(x).argmax(dim=2), labels)
