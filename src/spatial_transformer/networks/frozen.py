"""A spatial transformer in front of a frozen, trained classifier. Ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..transformer import SpatialTransformer, Transform
from ..utils.serialization import load_tensors
from .backbones import load_backbone
from .birds import BirdLocalisation, BirdNetwork
from .localisation import FcLocalisation
from .mnist import DIGIT_SIZE, MnistNetwork, TransformedClassifier


class Frozen(nn.Module):
    """A trained module whose weights do not change and which stays in evaluation mode.

    Gradients pass through it to its input. So it can train a spatial transformer in front of it:

    >>> transform = Affine()
    >>> localisation = ConvLocalisation((1, 28, 28), transform)
    >>> model = nn.Sequential(SpatialTransformer(localisation, transform), Frozen(classifier))

    Args:
        module: the trained module. It is changed in place: its parameters need no gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Set the mode of this module. The trained module keeps evaluation mode."""
        super().train(mode)
        self.module.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the trained module."""
        return self.module(*args, **kwargs)


class FrozenMnistNetwork(TransformedClassifier):
    """A spatial transformer, and an FCN that was trained on upright digits.

    Args:
        size: height and width of the image in pixels. The classifier reads 28 x 28.
        transform: family of transformations.
        weights: packed file or checkpoint of the FCN. "none" keeps random weights, to be replaced
            by those of a trained network. None trains an FCN from random weights.

    Raises:
        ValueError: the file cannot be read, or is not of such an FCN.
    """

    def __init__(self, size: int, transform: Transform, weights: str | None = None) -> None:
        super().__init__()
        localisation = FcLocalisation((1, size, size), transform)
        self.transformer = SpatialTransformer(localisation, transform, (DIGIT_SIZE, DIGIT_SIZE))
        self.classifier: nn.Module = MnistNetwork("fcn", DIGIT_SIZE)
        if weights is not None:
            if weights != "none":
                _load(self.classifier, Path(weights), "of an FCN for 28 x 28 digits")
            self.classifier = Frozen(self.classifier)


class FrozenBirdNetwork(TransformedClassifier):
    """A spatial transformer, and a CNN for birds that was trained on upright photographs.

    Args:
        size: height and width of the image in pixels.
        classes: number of classes.
        transform: family of transformations.
        weights: packed file or checkpoint of a run of ``experiment=birds_cnn``, for the CNN. The
            localisation network starts from weights of ImageNet. "imagenet" starts both from them.
            "none" keeps random weights, to be replaced by those of a trained network.
        frozen: the weights of the CNN stay. False trains it, too.
        backbone: of the CNN and of the localisation network, see :mod:`.backbones`.
        dropout: dropout probability of a CNN that is not frozen.

    Attributes:
        classes: as given.

    Raises:
        ValueError: the file cannot be read or is not of such a CNN, or an untrained one is frozen.
        UsageError: the backbone or its weights cannot be loaded.
    """

    def __init__(
        self,
        size: int,
        classes: int,
        transform: Transform,
        weights: str,
        frozen: bool = True,
        backbone: str = "efficientnet_lite0",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if frozen and weights == "imagenet":
            raise ValueError("weights must be a file of a trained CNN unless frozen is false.")
        self.classes = classes
        is_file = weights not in ("imagenet", "none")
        start = "none" if is_file else weights
        classifier = BirdNetwork(size, classes, backbone=backbone, weights=start, dropout=dropout)
        if is_file:
            _load(classifier, Path(weights), f"of experiment=birds_cnn with {classes} species")
        self.classifier = Frozen(classifier) if frozen else classifier
        features = load_backbone(backbone, "imagenet" if is_file else weights)
        localisation = BirdLocalisation(features, transform, transform.identity()[None], size)
        self.transformer = SpatialTransformer(localisation, transform, fill=features.mean)
        self.to(memory_format=torch.channels_last)  # faster convolutions


def _load(network: nn.Module, file: Path, kind: str) -> None:
    """Load the weights of a run. ``kind`` says of which network they must be."""
    try:
        weights = {
            name.removeprefix("network."): tensor
            for name, tensor in load_tensors(file)["state_dict"].items()
            if name.startswith("network.")
        }
        network.load_state_dict(weights)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"weights must be a file {kind}: {error}") from error
