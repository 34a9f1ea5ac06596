"""Co-localisation (appendix A.2 of the paper): a transformer that learns windows without labels, and the encoder of crops.

Convention
    A window is theta of :class:`~spatial_transformer.transformer.Attention`: (s, t_x, t_y), half its side and its centre in
    units of half the image's side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer import Attention, SpatialTransformer
from .localisation import Regression
from .mnist import DIGIT, cnn_layers

ENCODER_WIDTH = 32
"""Filters of the encoder's convolutions; the paper has 32 to 64."""
_UNITS = 8


class DigitEncoder(nn.Module):
    """The CNN of Table 1 as a frozen encoder: its activations behind both poolings, and its logits, in one vector.

    Attributes
        layers: the CNN's.
        norm: root mean square of the length of its embeddings of undistorted digits.
    """

    def __init__(self, width: int = ENCODER_WIDTH) -> None:
        super().__init__()
        self.layers = cnn_layers(DIGIT, width, dropout=0.0, classes=10)
        self.norm: Tensor
        self.register_buffer("norm", torch.ones(()))
        self.requires_grad_(False)

    def forward(self, crops: Tensor) -> Tensor:
        """``(B, 1, 28, 28)`` in [0, 1] -> ``(B, D)``."""
        activations = []
        for layer in self.layers:
            crops = layer(crops)
            if isinstance(layer, nn.MaxPool2d):
                activations.append(crops.flatten(1))
        return torch.cat([*activations, crops], dim=1)

    def scaled(self, crops: Tensor, each: bool) -> Tensor:
        """Embeddings of length 1: each of them, or those of whole digits in the mean."""
        embeddings = self(crops)
        return F.normalize(embeddings) if each else embeddings / self.norm


class Windows(nn.Module):
    """Keeps windows reasonable, and lets them go from wide ones, which locate, to ones that fit.

    A window is never smaller than its crop, so that no pixel is read more than once; and at most a quarter of its side is
    outside the image. Its scale is fixed, at ``widest``, while ``freedom`` is 0, and learned when that is 1.

    Args:
        least: the smallest scale, in (0, 1).
        widest: the scale to start from.
        near: the scale that a free window has where the regression says 0.
        rate: how fast the scale follows the regression.

    Attributes
        freedom: from 0 to 1.
    """

    def __init__(self, least: float, widest: float, near: float, rate: float) -> None:
        super().__init__()
        for name, scale in (("widest", widest), ("near", near)):
            if not least < scale < 1:
                raise ValueError(
                    f"{name} must be between {least:.2f}, where a window is as small as its crop, and 1, got {scale}"
                )
        self.least, self.rate = least, rate
        self.wide, self.fitting = (math.log((scale - least) / (1 - scale)) for scale in (widest, near))
        self.freedom: Tensor
        self.register_buffer("freedom", torch.zeros(()))

    def forward(self, regressed: Tensor) -> Tensor:
        """``(B, 3)`` of any size -> windows ``(B, 3)``."""
        scale = self.wide + self.freedom * (self.fitting - self.wide + self.rate * regressed[:, :1])
        scale = self.least + (1 - self.least) * torch.sigmoid(scale)
        return torch.cat([scale, (1 - scale / 2) * torch.tanh(regressed[:, 1:])], dim=1)


class Colocalisation(nn.Module):
    """A transformer from an image to a crop of 28 x 28, and the encoder of crops.

    Attributes
        transformer: the :class:`SpatialTransformer`; its localisation network ends in ``windows``.
        windows: the :class:`Windows`.
        encoder: the :class:`DigitEncoder`, frozen.
    """

    def __init__(self, localisation: nn.Sequential, windows: Windows, transform: Attention) -> None:
        super().__init__()
        self.windows = windows
        self.transformer = SpatialTransformer(localisation.append(windows), transform, (DIGIT, DIGIT))
        self.encoder = DigitEncoder()

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 1, H, W)`` images in [0, 1] -> windows ``(B, 3)``."""
        return self.transformer.localisation(images)


def colocalisation(
    size: int,
    transform: Attention,
    classes: int = 10,
    widest: float = 0.7,
    near: float = 0.36,
    rate: float = 0.3,
) -> Colocalisation:
    """The network of A.2: convolution 9x9 of 8 filters, stride 4, max pooling by 2, three fully connected layers, 8, 8 and 3.

    Args:
        size: height and width of the image in pixels.
        transform: attention, with a scale of its own.
        classes: not used: nothing is classified.
        widest, near, rate: as for :class:`Windows`.

    Raises:
        ValueError: another transform, or an image that no window fits in.
    """
    if not isinstance(transform, Attention) or transform.scale is not None:
        raise ValueError(
            f"co-localisation reads theta as a box, which only attention's is, got {transform}. Way out: transform=attention"
        )
    features = ((size - 9) // 4 + 1) // 2
    if size <= DIGIT:
        raise ValueError(f"an image of {size} px has no window larger than a digit's {DIGIT} px")
    localisation = nn.Sequential(
        nn.Conv2d(1, _UNITS, 9, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(_UNITS * features**2, _UNITS),
        nn.ReLU(),
        nn.Linear(_UNITS, _UNITS),
        nn.ReLU(),
        Regression(_UNITS, transform, start=torch.zeros(3)),
    )
    return Colocalisation(localisation, Windows(DIGIT / size, widest, near, rate), transform)
