"""The networks of Table 2, which read whole house numbers (section 4.2, appendix A.5).

A CNN with eleven hidden layers and a softmax for each of five digits. ST-CNN Single has a spatial
transformer on its input, ST-CNN Multi one before each of its first four convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..transformer import SpatialTransformer, Transform
from .localisation import FcLocalisation, Regression

CONVOLUTIONS = (48, 64, 128, 160, 192, 192, 192, 192)
"""Filters of the convolutions, 5x5 with padding 2."""
POOLED = (True, False, True, False, True, False, True, False)
"""Whether max pooling by 2 follows each convolution."""
UNITS = (3072, 3072, 3072)
"""Units of the fully connected layers."""
LOCALISATION = 32
"""Filters and units of each hidden layer of a localisation network."""
CHANNELS = 3


class SvhnNetwork(nn.Module):
    """Convolutions, fully connected layers and one softmax layer for each position of a number.

    Attributes:
        features: transformers, convolutions and pooling, in order.
        classifier: the fully connected layers.
        positions: the softmax layers of all positions, as one.
    """

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Module,
        units: int,
        positions: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.positions = nn.Sequential(
            nn.Linear(units, positions * classes),
            nn.Unflatten(1, (positions, classes)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, positions, classes)`` of images ``(B, 3, H, W)`` with mean 0."""
        return self.positions(self.classifier(self.features(x)))


def cnn(
    size: int,
    width: float = 1.0,
    dropout: float = 0.5,
    classes: int = 11,
    positions: int = 5,
) -> SvhnNetwork:
    """Build the CNN without a spatial transformer.

    Args:
        size: height and width of the image in pixels, a multiple of 16.
        width: factor of all filters and units, except the 32 units of the fully connected layers
            of localisation networks. The paper's is 1.
        dropout: dropout probability after every hidden layer but the first convolution. The
            paper's is 0.5.
        classes: classes of a position: ten digits, and none.
        positions: largest number of digits.

    Raises:
        ValueError: the size cannot be halved four times, or the width is not positive.
    """
    return _network(size, None, (), width, dropout, classes, positions)


def st_single(
    size: int,
    transform: Transform,
    width: float = 1.0,
    dropout: float = 0.5,
    classes: int = 11,
    positions: int = 5,
) -> SvhnNetwork:
    """Build ST-CNN Single: a spatial transformer on the input, and the CNN.

    Args:
        size, width, dropout, classes, positions: as for :func:`cnn`.
        transform: the family of transformations. The paper's is affine.
    """
    return _network(size, transform, (0,), width, dropout, classes, positions)


def st_multi(
    size: int,
    transform: Transform,
    width: float = 1.0,
    dropout: float = 0.5,
    classes: int = 11,
    positions: int = 5,
) -> SvhnNetwork:
    """Build ST-CNN Multi: the CNN with a transformer before each of its first four convolutions.

    Their localisation networks have two fully connected layers of 32 units.

    Args:
        size, transform, width, dropout, classes, positions: as for :func:`st_single`.
    """
    return _network(size, transform, (0, 1, 2, 3), width, dropout, classes, positions)


def _network(
    size: int,
    transform: Transform | None,
    transformed: Sequence[int],
    width: float,
    dropout: float,
    classes: int,
    positions: int,
) -> SvhnNetwork:
    """Build a network with a transformer before each convolution that ``transformed`` names."""
    halvings = sum(POOLED)
    if size < 1 << halvings or size % (1 << halvings):
        raise ValueError(f"size must be a multiple of {1 << halvings}, got {size}.")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}.")
    channels, side = CHANNELS, size
    layers: list[nn.Module] = []
    for n, (filters, pooled) in enumerate(zip(CONVOLUTIONS, POOLED, strict=True)):
        if transform is not None and n in transformed:
            shape = (channels, side, side)
            single = len(transformed) == 1
            localisation = (
                SingleLocalisation(shape, transform, max(1, round(width * LOCALISATION)))
                if single
                else FcLocalisation(shape, transform, (LOCALISATION, LOCALISATION))
            )
            layers.append(SpatialTransformer(localisation, transform, (side, side)))
        out = max(1, round(width * filters))
        layers += [nn.Conv2d(channels, out, 5, padding=2), nn.ReLU()]
        if pooled:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        if n > 0:
            layers.append(nn.Dropout(dropout))
        channels = out
    inputs = channels * side * side
    head: list[nn.Module] = [nn.Flatten()]
    for units in (max(1, round(width * units)) for units in UNITS):
        head += [nn.Linear(inputs, units), nn.ReLU(), nn.Dropout(dropout)]
        inputs = units
    # PyTorch's initialisation shrinks the signal in each of eleven layers. He's keeps it (ours).
    for layer in (*layers, *head):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    network = SvhnNetwork(nn.Sequential(*layers), nn.Sequential(*head), inputs, positions, classes)
    # Convolutions of many channels are faster in channels-last layout, on a CPU in bfloat16 by far.
    return network.to(memory_format=torch.channels_last)


class SingleLocalisation(nn.Sequential):
    """Localisation network of ST-CNN Single (A.5).

    Convolution 5x5, max pooling by 2, convolution 5x5, two fully connected layers, regression. The
    convolutions are padded like those of the CNN, as the paper does not say.

    Args:
        in_shape: ``(C, H, W)`` of the image.
        transform: the family whose theta is regressed.
        filters: filters of both convolutions.
        start: as for :class:`.localisation.Regression`.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        transform: Transform,
        filters: int = LOCALISATION,
        start: Tensor | None = None,
    ) -> None:
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
            Regression(LOCALISATION, transform, start),
        )
