"""The MNIST networks of Table 1 and appendix A.1: FCN and CNN, with or without transformers.

Layers (A.4):
    FCN: two fully connected layers, classifier.
    CNN: convolution 9x9, max pooling by 2, convolution 7x7, max pooling by 2, classifier.
    ST-FCN and ST-CNN: one spatial transformer on the input, average pooling by 2 for the larger
    images of RTS and TC, and the FCN or CNN.

The paper gives all networks of an experiment about 400k parameters, localisation network included.
Its widths disagree with this budget: 64 filters give 209k parameters at 28 px. Ours: the width is
solved from the budget unless it is given.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer import SpatialTransformer, Transform
from .localisation import ConvLocalisation, FcLocalisation, JoinedLocalisation
from .one_channel_conv import OneChannelConv2d

PARAM_BUDGET = 400_000
"""Approximate number of parameters of every network."""
DIGIT_SIZE = 28
"""Height and width of an undistorted digit in pixels."""


class TransformedClassifier(nn.Module):
    """A spatial transformer on the image, average pooling, and a classifier of the result.

    Attributes:
        transformer: the :class:`SpatialTransformer`, or None.
        pool: the pooling.
        classifier: from the transformed and pooled image to the logits.
    """

    transformer: SpatialTransformer | None
    pool = 1
    classifier: nn.Module

    def forward(self, x: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return the logits ``(B, classes)`` of images ``(B, C, H, W)`` in [0, 1].

        ``theta``, ``(B, n * n_params)``, replaces that of the localisation network.
        """
        if self.transformer is not None:
            x = self.transformer(x, theta=theta)
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
        logits: Tensor = self.classifier(x)
        return logits


class MnistNetwork(TransformedClassifier):
    """An FCN or a CNN, with or without parallel spatial transformers on its input.

    Args:
        arch: "fcn" or "cnn". It also selects the localisation network.
        size: height and width of the image in pixels. A transformer's output has the same size.
        transform: the family of transformations. None builds the classifier alone.
        transformers: number of parallel transformers, each with its own localisation network. All
            of them read all channels. None is one transformer whose localisation network is not
            in a :class:`.localisation.JoinedLocalisation`.
        in_channels: channels of the image.
        classes: number of classes.
        width: units of both hidden layers of an FCN, filters of both convolutions of a CNN. None
            solves it from :data:`PARAM_BUDGET`.
        pool: average pooling before the classifier. None is 2 for images larger than a digit (RTS,
            T and TC) and 1 for others. The paper mentions pooling only after transformers.
        dropout: dropout probability before all layers of an FCN but the first, and before the last
            layer of a CNN. The paper's is 0.
        localisation: replaces the paper's localisation network.

    Raises:
        ValueError: an argument is out of range, the image is too small, or no width fits.
    """

    def __init__(
        self,
        arch: str,
        size: int,
        transform: Transform | None = None,
        transformers: int | None = None,
        in_channels: int = 1,
        classes: int = 10,
        width: int | None = None,
        pool: int | None = None,
        dropout: float = 0.0,
        localisation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if arch not in ("fcn", "cnn"):
            raise ValueError(f"arch must be 'fcn' or 'cnn', got {arch!r}.")
        self.pool = (2 if size > DIGIT_SIZE else 1) if pool is None else pool
        if not 1 <= self.pool <= size:
            raise ValueError(f"pool must be from 1 to the size of the image, {size}, got {pool}.")
        self.transformer = None
        if transform is not None:
            kind = FcLocalisation if arch == "fcn" else ConvLocalisation
            n = 1 if transformers is None else transformers
            if localisation is None:
                networks = [kind((in_channels, size, size), transform) for _ in range(n)]
                localisation = networks[0] if transformers is None else JoinedLocalisation(networks)
            self.transformer = SpatialTransformer(localisation, transform, (size, size), parallel=n)
            in_channels *= n

        def build_classifier(width: int) -> nn.Module:
            build = fcn_classifier if arch == "fcn" else cnn_classifier
            return build(size // self.pool, width, dropout, classes, in_channels)

        if width is None:
            # A thousandth over the budget counts as on it.
            budget = PARAM_BUDGET * 1001 // 1000 - _count_parameters(self)
            width = largest_width(build_classifier, budget)
            if width == 0:
                raise ValueError(f"No width fits {PARAM_BUDGET:,} parameters. Set a width.")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        self.classifier = build_classifier(width)


def fcn_classifier(
    size: int, width: int, dropout: float, classes: int, in_channels: int = 1
) -> nn.Sequential:
    """Build the FCN: two fully connected layers of ``width`` units, and the logits."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_channels * size * size, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, classes),
    )


def cnn_classifier(
    size: int, width: int, dropout: float, classes: int, in_channels: int = 1
) -> nn.Sequential:
    """Build the CNN: 9x9 and 7x7 convolutions of ``width`` filters, and the logits.

    Raises:
        ValueError: the image is smaller than 21 x 21 pixels.
    """
    # Pooling rounds up where rounding down would drop a column of the first map, or all of the
    # second: RTS after a transformer, pooled to 21 px, leaves maps of 13 and 1.
    first = size - 8
    second = (first + 1) // 2 - 6
    if second < 1:
        raise ValueError(f"The CNN needs images of at least 21 x 21 pixels, got {size}.")
    # ReLU commutes with max pooling. After it, there are a quarter of the values.
    return nn.Sequential(
        OneChannelConv2d(width, 9) if in_channels == 1 else nn.Conv2d(in_channels, width, 9),
        nn.MaxPool2d(2, ceil_mode=first % 2 == 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 7),
        nn.MaxPool2d(2, ceil_mode=second == 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(width * max(second // 2, 1) ** 2, classes),
    )


def largest_width(build: Callable[[int], nn.Module], budget: int) -> int:
    """Return the largest width of a network with at most ``budget`` parameters, or 0."""
    with torch.device("meta"):  # a layer of that width has at least as many parameters
        return bisect(range(1, budget + 1), budget, key=lambda n: _count_parameters(build(n)))


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
