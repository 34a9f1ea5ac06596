"""The network of co-localisation: a transformer without labels, and an encoder of crops (A.2).

Layers:
    Localisation: convolution of 8 filters 9x9 with stride 4, max pooling by 2, fully connected
    layers of 8, 8 and 3 units. The transformer crops by attention to 28 x 28.
    Encoder: the CNN of Table 1, frozen. Its embedding joins three activations.

Ours: :class:`WindowParametrisation`.

Convention:
    A window is theta of :class:`~spatial_transformer.transformer.Attention`: (s, t_x, t_y),
    half its side and its centre in units of half the side of the image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer import Attention, SpatialTransformer
from .localisation import Regression
from .mnist import DIGIT_SIZE, cnn_classifier

ENCODER_WIDTH = 32
"""Filters of the convolutions of the encoder. The paper has 32 to 64."""
_UNITS = 8


class DigitEncoder(nn.Module):
    """The CNN of Table 1 as a frozen encoder: activations after both poolings, and logits.

    Attributes:
        layers: of the CNN.
        norm: root mean square of the length of its embeddings of undistorted digits.
    """

    norm: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = cnn_classifier(DIGIT_SIZE, ENCODER_WIDTH, dropout=0.0, classes=10)
        self.register_buffer("norm", torch.ones(()))
        self.requires_grad_(False)

    def forward(self, crops: Tensor) -> Tensor:
        """Return the embeddings ``(B, D)`` of crops ``(B, 1, 28, 28)`` in [0, 1]."""
        activations = []
        for layer in self.layers:
            crops = layer(crops)
            if isinstance(layer, nn.ReLU):
                activations.append(crops.flatten(1))
        return torch.cat([*activations, crops], dim=1)

    def scaled(self, crops: Tensor, each: bool) -> Tensor:
        """Return embeddings of length 1: each of them, or on average those of whole digits."""
        embeddings: Tensor = self(crops)
        return F.normalize(embeddings) if each else embeddings / self.norm


class WindowParametrisation(nn.Module):
    """Bound windows, and anneal their scale from wide (to locate) to tight (to fit).

    A window is never smaller than its crop, so that no pixel is read more than once. At most a
    quarter of its side is outside of the image. Its scale is fixed at ``widest`` while ``freedom``
    is 0, and learned when that is 1.

    Args:
        least: the smallest scale, in (0, 1).
        widest: the scale to start from.
        near: the scale of a free window if the regression is 0.
        rate: how fast the scale follows the regression.

    Attributes:
        freedom: from 0 to 1.

    Raises:
        ValueError: a scale is out of range.
    """

    freedom: Tensor

    def __init__(self, least: float, widest: float, near: float, rate: float) -> None:
        super().__init__()
        for name, scale in (("widest", widest), ("near", near)):
            if not least < scale < 1:
                raise ValueError(
                    f"{name} must be between {least:.2f}, the size of a crop, and 1, got {scale}."
                )
        self.least, self.rate = least, rate
        scales = (widest, near)
        self.wide, self.fitting = (math.log((scale - least) / (1 - scale)) for scale in scales)
        self.register_buffer("freedom", torch.zeros(()))

    def forward(self, regressed: Tensor) -> Tensor:
        """Map any numbers ``(B, 3)`` to windows ``(B, 3)``."""
        scale = self.wide + self.freedom * (self.fitting - self.wide + self.rate * regressed[:, :1])
        scale = self.least + (1 - self.least) * torch.sigmoid(scale)
        return torch.cat([scale, (1 - scale / 2) * torch.tanh(regressed[:, 1:])], dim=1)


class Colocalisation(nn.Module):
    """A transformer from an image to a crop of 28 x 28, and the encoder of crops.

    Args:
        size: height and width of the image in pixels.
        transform: attention with a free scale.
        widest, near, rate: as for :class:`WindowParametrisation`.

    Attributes:
        transformer: the :class:`SpatialTransformer`. Its localisation network ends in ``windows``.
        windows: the :class:`WindowParametrisation`.
        encoder: the :class:`DigitEncoder`.

    Raises:
        ValueError: the transform is another one, the image is too small, or a scale out of range.
    """

    def __init__(
        self,
        size: int,
        transform: Attention,
        widest: float = 0.7,
        near: float = 0.36,
        rate: float = 0.3,
    ) -> None:
        super().__init__()
        if not isinstance(transform, Attention) or transform.scale is not None:
            raise ValueError(
                f"Co-localisation needs transform=attention with a free scale, got {transform}."
            )
        if size <= DIGIT_SIZE:
            raise ValueError(f"size must be larger than {DIGIT_SIZE} pixels, got {size}.")
        self.windows = WindowParametrisation(DIGIT_SIZE / size, widest, near, rate)
        features = ((size - 9) // 4 + 1) // 2
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
            self.windows,
        )
        self.transformer = SpatialTransformer(localisation, transform, (DIGIT_SIZE, DIGIT_SIZE))
        self.encoder = DigitEncoder()

    def forward(self, images: Tensor) -> Tensor:
        """Return the windows ``(B, 3)`` of images ``(B, 1, H, W)`` in [0, 1]."""
        windows: Tensor = self.transformer.localisation(images)
        return windows


colocalisation = Colocalisation
"""The name of the network in configurations and result files."""
