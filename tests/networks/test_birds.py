import pytest
import torch
from torch import nn

from spatial_transformer import Affine, Attention, Projective
from spatial_transformer.networks.backbones import BACKBONES, BackboneSpec
from spatial_transformer.networks.birds import BirdNetwork, tiles
from spatial_transformer.networks.rotated import Rotation


@pytest.fixture
def build(monkeypatch):
    """Return a function that builds a network on backbones of one convolution."""
    layers = lambda: nn.Sequential(nn.Conv2d(3, 4, 32, stride=32))  # noqa: E731
    monkeypatch.setitem(BACKBONES, "tiny", BackboneSpec(4, layers, dict, mean=0.5, std=0.25))

    def build_(size=64, transform=None, transformers=1, crop=32, **options):
        return BirdNetwork(size, 5, transform, transformers, crop, "tiny", "none", **options)

    return build_


@pytest.mark.parametrize(
    ("n", "places"),
    [
        (1, [(0, 0)]),
        (2, [(-0.5, 0), (0.5, 0)]),
        (4, [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]),
    ],
)
def test_tiles_cover_the_image(n, places):
    assert tiles(n, Attention(0.5)).tolist() == [list(place) for place in places]
    assert tiles(n, Attention()).tolist() == [[0.5, *place] for place in places]
    assert tiles(n, Affine()).tolist() == [[0.5, 0, x, 0, 0.5, y] for x, y in places]


@pytest.mark.parametrize("transform", [Attention(0.5), Attention(), Affine()], ids=str)
def test_four_crops_of_448_px_start_as_the_quarters(build, transform):
    x = torch.rand(2, 3, 448, 448)
    crops = build(448, transform, 4, crop=224).transformer(x).unflatten(1, (4, 3))
    quarters = x.unfold(2, 224, 224).unfold(3, 224, 224).flatten(2, 3).transpose(1, 2)
    torch.testing.assert_close(crops, quarters, atol=6e-5, rtol=0)


def test_localisation_sees_the_halved_image(build):
    localisation = build(448, Attention(0.5)).transformer.localisation
    x, seen = torch.rand(2, 3, 448, 448), []
    localisation.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    localisation(x)
    halved = x.unflatten(3, (224, 2)).unflatten(2, (224, 2)).mean((3, 5))
    torch.testing.assert_close(seen[0], halved)


def test_each_stream_sees_its_crop_and_the_classifier_all(build):
    network, x = build(transform=Attention(0.5), transformers=2).eval(), torch.rand(3, 3, 64, 64)
    first, second = network.transformer(x).split(3, dim=1)
    features = [
        network.streams[0].layers((first - 0.5) / 0.25).mean((2, 3)),
        network.streams[1].layers((second - 0.5) / 0.25).mean((2, 3)),
    ]
    expected = network.classifier(torch.cat(features, dim=1))
    torch.testing.assert_close(network(x), expected)


def test_the_cnn_sees_the_whole_image(build):
    network, x = build().eval(), torch.rand(2, 3, 64, 64)
    assert torch.equal(network(x), network.classifier(network.streams[0](x).mean((2, 3))))


def test_dropout_is_before_the_softmax_layer(build):
    assert build(dropout=0.3).classifier[0].p == 0.3


def test_outside_of_the_image_is_zero_for_the_backbone(build):
    network = build(transform=Attention(0.5))
    nn.init.constant_(network.transformer.localisation.head[-1].bias, 5.0)
    assert (network.transformer(torch.rand(1, 3, 64, 64)) == 0.5).all()


def test_every_parameter_has_a_gradient(build):
    network = build(transform=Attention(), transformers=2)
    nn.init.normal_(network.transformer.localisation.head[-1].weight, std=0.01)
    network(torch.rand(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transformers": 0}, "transformers must be at least 1, got 0"),
        ({"transform": None, "transformers": 2}, "must be 1 without a transform, got 2"),
        ({"crop": 65}, "crop must be from 1 to the image size, 64, got 65"),
        ({"crop": 0}, "crop must be from 1"),
        ({"transform": Projective()}, "attention or affine"),
        ({"transform": Rotation()}, "attention or affine"),  # two parameters, but not a place
        ({"size": 16, "crop": 16}, "too small for this backbone, 16 x 16 pixels"),
    ],
)
def test_invalid_arguments_are_refused(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**{"transform": Attention(0.5), **arguments})
