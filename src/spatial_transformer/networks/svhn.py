"""The networks of Table 2, which read whole house numbers (section 4.2, appendix A.5).

A CNN with eleven hidden layers and a softmax for each of five digits; the same behind one spatial transformer (Single); and
with one before each of its first four convolutions (Multi).
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
"""Whether max pooling by 2 follows a convolution."""
UNITS = (3072, 3072, 3072)
"""Units of the fully connected layers."""
LOCALISATION = 32
"""Filters and units of each hidden layer of a localisation network."""
CHANNELS = 3


class SvhnNetwork(nn.Module):
    """Convolutions, fully connected layers and one softmax layer for each position of a number.

    Attributes
        features: transformers, convolutions and pooling, in order.
        classifier: the fully connected layers.
        positions: the softmax layers of all positions, as one.
    """

    def __init__(self, features: nn.Module, classifier: nn.Module, units: int, positions: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.positions = nn.Sequential(nn.Linear(units, positions * classes), nn.Unflatten(1, (positions, classes)))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` images with mean 0 -> ``(B, positions, classes)`` logits."""
        return self.positions(self.classifier(self.features(x)))


def cnn(size: int, width: float = 1.0, dropout: float = 0.5, classes: int = 11, positions: int = 5) -> SvhnNetwork:
    """CNN, without a spatial transformer.

    Args:
        size: height and width of the image in pixels, a multiple of 16.
        width: factor of all filters and units, but for the 32 units of a localisation network's fully connected layers; 1 is
            the paper's.
        dropout: share that training drops behind every hidden layer but the first convolution; the paper's is 0.5.
        classes: of a position: ten digits, and none.
        positions: the most digits that a number may have.

    Raises:
        ValueError: a size that cannot be pooled four times, or a width that is not positive.
    """
    return _network(size, None, (), width, dropout, classes, positions)


def st_single(
    size: int, transform: Transform, width: float = 1.0, dropout: float = 0.5, classes: int = 11, positions: int = 5
) -> SvhnNetwork:
    """ST-CNN Single: a spatial transformer on the input, with a convolutional localisation network, then the CNN.

    Args: as for :func:`cnn`; ``transform`` is the family of transformations, affine in the paper.
    """
    return _network(size, transform, (0,), width, dropout, classes, positions)


def st_multi(
    size: int, transform: Transform, width: float = 1.0, dropout: float = 0.5, classes: int = 11, positions: int = 5
) -> SvhnNetwork:
    """ST-CNN Multi: a spatial transformer before each of the first four convolutions, localised by two layers of 32 units.

    Args: as for :func:`st_single`.
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
    """Builds a network with a transformer before each convolution that ``transformed`` names."""
    halvings = sum(POOLED)
    if size < 1 << halvings or size % (1 << halvings):
        raise ValueError(f"the networks of A.5 halve the image {halvings} times: size must be a multiple of 16, got {size}")
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
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
    # PyTorch's own start shrinks the signal in each of eleven layers; He's keeps it (ours, the paper does not say).
    for layer in (*layers, *head):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    network = SvhnNetwork(nn.Sequential(*layers), nn.Sequential(*head), inputs, positions, classes)
    # Channels last: convolutions of many channels are faster so, on a CPU in bfloat16 by far.
    return network.to(memory_format=torch.channels_last)


class SingleLocalisation(nn.Sequential):
    """Localisation network of ST-CNN Single (A.5).

    Convolution 5x5, max pooling by 2, convolution 5x5, two fully connected layers, regression. The paper does not say whether
    the convolutions are padded; as those of the CNN are, these are.

    Args:
        in_shape: ``(C, H, W)`` of the image.
        transform: the family whose theta is regressed.
        filters: of both convolutions.
        start: as for :class:`~spatial_transformer.transformer.Regression`.
    """

    def __init__(
        self, in_shape: Sequence[int], transform: Transform, filters: int = LOCALISATION, start: Tensor | None = None
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
