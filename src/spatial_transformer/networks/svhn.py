"""The networks of Table 2, which read house numbers (section 4.2 and appendix A.5).

Layers:
    CNN: convolutions of 48, 64, 128, 160, 192, 192, 192 and 192 filters of 5x5 with padding 2, max
    pooling by 2 after every other one from the first on, three fully connected layers of 3,072
    units, and a softmax of 11 classes for each of five positions.
    ST-CNN Single: a spatial transformer on the input, and the CNN.
    ST-CNN Multi: the CNN with a spatial transformer before each of its first four convolutions.

Ours: He initialisation, and padding in the localisation network of ST-CNN Single.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..transformer import SpatialTransformer, Transform
from .localisation import FcLocalisation, Regression

FILTERS = (48, 64, 128, 160, 192, 192, 192, 192)
UNITS = (3072, 3072, 3072)
LOCALISATION = 32
"""Filters and units of each hidden layer of a localisation network."""


class SvhnNetwork(nn.Module):
    """The CNN. Subclasses have a spatial transformer before each of its first convolutions.

    Args:
        size: height and width of the image in pixels, a multiple of 16.
        transform: the family of transformations. The paper's is affine. None builds the CNN.
        width: factor of all filters and units, except the 32 units of the fully connected layers
            of localisation networks. The paper's is 1.
        dropout: dropout probability after every hidden layer but the first convolution. The
            paper's is 0.5.
        classes: classes of a position: ten digits, and none.
        positions: largest number of digits.

    Attributes:
        transformers: number of transformers. One has a :class:`SingleLocalisation`. Several have
            localisation networks of two fully connected layers of 32 units.
        features: transformers, convolutions and pooling, in order.
        classifier: the fully connected layers.
        positions: the softmax layers of all positions, as one.

    Raises:
        ValueError: the size cannot be halved four times, or the width is not positive.
    """

    transformers = 0

    def __init__(
        self,
        size: int,
        transform: Transform | None = None,
        width: float = 1.0,
        dropout: float = 0.5,
        classes: int = 11,
        positions: int = 5,
    ) -> None:
        super().__init__()
        if size < 16 or size % 16:
            raise ValueError(f"size must be a multiple of 16, got {size}.")
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}.")

        def scale(units: int) -> int:
            return max(1, round(width * units))

        channels = 3
        features: list[nn.Module] = []
        for n, filters in enumerate(map(scale, FILTERS)):
            if transform is not None and n < self.transformers:
                shape = (channels, size, size)
                localisation: nn.Module
                if self.transformers == 1:
                    localisation = SingleLocalisation(shape, transform, scale(LOCALISATION))
                else:
                    localisation = FcLocalisation(shape, transform, (LOCALISATION, LOCALISATION))
                features.append(SpatialTransformer(localisation, transform, (size, size)))
            features.append(nn.Conv2d(channels, filters, 5, padding=2))
            if n % 2 == 0:
                features.append(nn.MaxPool2d(2))  # before ReLU: the same, with fewer values
                size //= 2
            features.append(nn.ReLU())
            if n > 0:
                features.append(nn.Dropout(dropout))
            channels = filters
        inputs = channels * size * size
        classifier: list[nn.Module] = [nn.Flatten()]
        for units in map(scale, UNITS):
            classifier += [nn.Linear(inputs, units), nn.ReLU(), nn.Dropout(dropout)]
            inputs = units
        # PyTorch's initialisation shrinks the signal in each of eleven layers. He's keeps it.
        for layer in (*features, *classifier):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)
        self.positions = nn.Sequential(
            nn.Linear(inputs, positions * classes), nn.Unflatten(1, (positions, classes))
        )
        # Convolutions of many channels are faster in channels-last layout, above all in bfloat16.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, positions, classes)`` of images ``(B, 3, H, W)`` with mean 0."""
        logits: Tensor = self.positions(self.classifier(self.features(x)))
        return logits


class StSingle(SvhnNetwork):
    """ST-CNN Single: a spatial transformer on the input, and the CNN."""

    transformers = 1


class StMulti(SvhnNetwork):
    """ST-CNN Multi: the CNN with a transformer before each of its first four convolutions."""

    transformers = 4


cnn, st_single, st_multi = SvhnNetwork, StSingle, StMulti
"""The names of the networks in configurations and result files."""


class SingleLocalisation(nn.Sequential):
    """Localisation network of ST-CNN Single (A.5).

    Convolution 5x5, max pooling by 2, convolution 5x5, two fully connected layers of 32 units,
    regression.

    Args:
        in_shape: ``(C, H, W)`` of the image.
        transform: the family whose theta is regressed.
        filters: filters of both convolutions. The paper's is 32.
    """

    def __init__(self, in_shape: Sequence[int], transform: Transform, filters: int) -> None:
        in_channels, height, width = in_shape
        super().__init__(
            nn.Conv2d(in_channels, filters, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(filters, filters, 5, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(filters * (height // 2) * (width // 2), LOCALISATION),
            nn.ReLU(),
            nn.Linear(LOCALISATION, LOCALISATION),
            nn.ReLU(),
            Regression(LOCALISATION, transform),
        )
