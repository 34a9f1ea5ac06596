"""The eight networks of Table 1: FCN, CNN, and each behind a spatial transformer (section 4.1, appendix A.4).

All networks of an experiment have about the same number of parameters, 400k, the localisation network counted. The paper's
widths and its budget disagree (64 filters give 209k parameters at 28 px), so the width is solved from the budget
unless it is given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer import SpatialTransformer, Transform
from .convolution import OneChannelConv2d
from .localisation import ConvLocalisation, FcLocalisation

BUDGET = 400_000
"""Parameters of every network of Table 1, about."""
DIGIT = 28
"""Height and width of an undistorted digit in pixels."""


class MnistNetwork(nn.Module):
    """A classifier, with or without a spatial transformer on its input.

    Attributes
        transformer: the :class:`SpatialTransformer`, or None.
        pool: average pooling before the classifier.
        classifier: from the (transformed) image to the logits.
    """

    def __init__(self, classifier: nn.Module, transformer: SpatialTransformer | None = None, pool: int = 1) -> None:
        super().__init__()
        self.transformer = transformer
        self.pool = pool
        self.classifier = classifier

    def forward(self, x: Tensor, theta: Tensor | None = None) -> Tensor:
        """``(B, C, H, W)`` images in [0, 1] -> ``(B, classes)`` logits; of what is read at ``theta`` where it is given."""
        if self.transformer is not None:
            x = self.transformer(x, theta=theta)
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
        return self.classifier(x)


def fcn(
    size: int,
    width: int | None = None,
    pool: int | None = None,
    dropout: float = 0.0,
    classes: int = 10,
    budget: int = BUDGET,
) -> MnistNetwork:
    """FCN: two fully connected layers and the classifier.

    Args:
        size: height and width of the image in pixels.
        width: units of both hidden layers; None solves it from the budget.
        pool: average pooling of the image; None is by 2 where the canvas is larger than a digit (RTS and TC), else none.
            The paper speaks of it behind the transformers only (docs/distorted-mnist.md).
        dropout: share of the inputs of the layers behind the first that training drops; the paper's is 0.
        classes: number of classes.
        budget: number of parameters that the solved width may have.
    """
    return _of_image(fcn_layers, size, width, pooling(pool, size), dropout, classes, budget)


def cnn(
    size: int,
    width: int | None = None,
    pool: int = 1,
    dropout: float = 0.0,
    classes: int = 10,
    budget: int = BUDGET,
) -> MnistNetwork:
    """CNN: convolution 9x9, max pooling, convolution 7x7, max pooling, classifier.

    Args:
        size: height and width of the image in pixels, 21 at least once pooled.
        width: filters of both convolutions; None solves it from the budget.
        pool: average pooling of the image; none unless told, unlike FCN's (docs/distorted-mnist.md).
        dropout: share of the inputs of the layers behind the first that training drops; the paper's is 0.
        classes: number of classes.
        budget: number of parameters that the solved width may have.
    """
    return _of_image(cnn_layers, size, width, pooling(pool, size), dropout, classes, budget)


def st_fcn(
    size: int,
    transform: Transform,
    width: int | None = None,
    pool: int | None = None,
    dropout: float = 0.0,
    classes: int = 10,
    budget: int = BUDGET,
) -> MnistNetwork:
    """ST-FCN: a spatial transformer on the input, with a fully connected localisation network, then FCN.

    Args:
        size: height and width of the image in pixels; the transformer's output has the same.
        transform: the family of transformations.
        width: units of both hidden layers of the FCN; None solves it from the budget.
        pool: average pooling after the transformer; None is the paper's, by 2 where the canvas is larger than a
            digit (RTS and TC), else none.
        dropout: share of the inputs of the layers behind the first that training drops; the paper's is 0.
        classes: number of classes.
        budget: number of parameters that the solved width may have.
    """
    return _behind_transformer(FcLocalisation, fcn_layers, size, transform, width, pool, dropout, classes, budget)


def st_cnn(
    size: int,
    transform: Transform,
    width: int | None = None,
    pool: int | None = None,
    dropout: float = 0.0,
    classes: int = 10,
    budget: int = BUDGET,
) -> MnistNetwork:
    """ST-CNN: a spatial transformer on the input, with a convolutional localisation network, then CNN.

    Args: as for :func:`st_fcn`; ``width`` is the number of filters of both convolutions of the CNN.
    """
    return _behind_transformer(ConvLocalisation, cnn_layers, size, transform, width, pool, dropout, classes, budget)


def _of_image(
    layers: Callable[[int, int, float, int], nn.Module],
    size: int,
    width: int | None,
    pool: int,
    dropout: float,
    classes: int,
    budget: int,
) -> MnistNetwork:
    return at_width(width, budget, lambda width: MnistNetwork(layers(size // pool, width, dropout, classes), pool=pool))


def _behind_transformer(
    localisation: Callable[[tuple[int, int, int], Transform], nn.Module],
    layers: Callable[[int, int, float, int], nn.Module],
    size: int,
    transform: Transform,
    width: int | None,
    pool: int | None,
    dropout: float,
    classes: int,
    budget: int,
) -> MnistNetwork:
    pool = pooling(pool, size)

    def build(width: int) -> MnistNetwork:
        transformer = SpatialTransformer(localisation((1, size, size), transform), transform, (size, size))
        return MnistNetwork(layers(size // pool, width, dropout, classes), transformer, pool)

    return at_width(width, budget, build)


def pooling(pool: int | None, size: int) -> int:
    """The pooling of an image of ``size`` pixels; None is by 2 where it is larger than a digit, else none.

    Raises:
        ValueError: it is larger than the image.
    """
    if pool is None:
        pool = 2 if size > DIGIT else 1
    if not 1 <= pool <= size:
        raise ValueError(f"pool must be from 1 to the size of the image, {size}, got {pool}")
    return pool


def fcn_layers(size: int, units: int, dropout: float, classes: int, channels: int = 1) -> nn.Sequential:
    """The classifier of FCN, for images of ``channels`` and ``size`` pixels."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, units),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(units, units),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(units, classes),
    )


def cnn_layers(size: int, filters: int, dropout: float, classes: int, channels: int = 1) -> nn.Sequential:
    """The classifier of CNN, likewise.

    Raises:
        ValueError: images below 21 x 21 px.
    """
    # Pooling rounds up where rounding down would drop a column of the first map, or all of the second: RTS behind a
    # transformer, pooled to 21 px, leaves maps of 13 and 1.
    first = size - 8
    second = (first + 1) // 2 - 6
    out = max(second // 2, 1)
    if second < 1:
        raise ValueError(f"the CNN of A.4 (convolutions 9x9 and 7x7) needs images of at least 21 x 21 px, got {size}")
    return nn.Sequential(
        OneChannelConv2d(filters, 9) if channels == 1 else nn.Conv2d(channels, filters, 9),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=first % 2 == 1),
        nn.Conv2d(filters, filters, 7),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=second == 1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(filters * out * out, classes),
    )


def at_width(width: int | None, budget: int, build: Callable[[int], MnistNetwork]) -> MnistNetwork:
    """Builds at ``width``, or at the largest width that the budget allows; a thousandth over it counts as on it."""
    if width is None:
        budget = budget * 1001 // 1000
        with torch.device("meta"):
            if _parameters(build(1)) > budget:
                raise ValueError(f"no width fits a budget of {budget:,} parameters: width 1 has {_parameters(build(1)):,}")
            low, high = 1, 2
            while _parameters(build(high)) <= budget:
                low, high = high, 2 * high
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _parameters(build(middle)) <= budget else (low, middle)
            width = low
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return build(width)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
