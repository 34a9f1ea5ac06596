"""A spatial transformer in front of a trained classifier whose weights stay. Ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..transformer import SpatialTransformer, Transform
from ..utils.serialization import load_tensors
from .localisation import FcLocalisation
from .mnist import DIGIT_SIZE, MnistNetwork


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


class FrozenMnistNetwork(nn.Module):
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
                _load(self.classifier, Path(weights))
            self.classifier = Frozen(self.classifier)

    def forward(self, x: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return the logits ``(B, 10)`` of images ``(B, 1, H, H)`` in [0, 1].

        ``theta``, ``(B, n_params)``, replaces that of the localisation network.
        """
        logits: Tensor = self.classifier(self.transformer(x, theta=theta))
        return logits


def _load(network: nn.Module, file: Path) -> None:
    saved = load_tensors(file)
    try:
        weights = {
            name.removeprefix("network."): tensor
            for name, tensor in saved["state_dict"].items()
            if name.startswith("network.")
        }
        network.load_state_dict(weights)
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"weights must be a file of an FCN for 28 x 28 digits: {error}") from error
