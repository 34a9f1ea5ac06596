"""ST-CNN for Table 1 with small kernels and batch normalisation. Ours.

It joins four ideas of later work:

* batch normalisation (Ioffe and Szegedy 2015) also in the localisation network, as in the ST-CNN of
  Esteves et al. (2018);
* stacked 3x3 convolutions (Simonyan and Zisserman 2015);
* a 28x28 output on RTS, where the paper samples 42x42 and averages 2x2 pixels;
* convolutions that the localisation network shares with the classifier (Finnveden et al. 2020).
"""

from __future__ import annotations

import torch
from torch import nn

from ..transformer import SpatialTransformer, Transform
from .localisation import Regression
from .mnist import DIGIT_SIZE, TransformedClassifier

HIDDEN = 32
"""Units of the fully connected layer of the localisation network."""


class ModernStCnn(TransformedClassifier):
    """A spatial transformer with an output of 28 x 28, and a CNN of five convolutions.

    Args:
        size: height and width of the image in pixels.
        transform: family of transformations.
        width: filters of the first convolution. The others have twice as many.
        shared: whether the localisation network uses the first two convolutions of the classifier.
            Each of the two has its own batch normalisation, as raw and transformed images have
            other statistics.
        dropout: dropout probability before the last layer.
        classes: number of classes.

    Raises:
        ValueError: the image is smaller than 28 x 28 pixels, or there is no filter.
    """

    def __init__(
        self,
        size: int,
        transform: Transform,
        width: int = 32,
        shared: bool = False,
        dropout: float = 0.0,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if size < DIGIT_SIZE:
            raise ValueError(f"size must be at least {DIGIT_SIZE}, got {size}.")
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        wide = 2 * width
        first = nn.Conv2d(1, width, 5, bias=False)
        second = nn.Conv2d(width, wide, 3, padding=1, bias=False)
        self.classifier = nn.Sequential(
            *_layer(first, pool=True),  # 12 x 12
            *_layer(second),
            *_layer(nn.Conv2d(wide, wide, 3, padding=1, bias=False), pool=True),  # 6 x 6
            *_layer(nn.Conv2d(wide, wide, 3, bias=False)),
            *_layer(nn.Conv2d(wide, wide, 3, bias=False)),  # 2 x 2
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * wide, classes),
        )
        if shared:
            features = [*_layer(first, pool=True), *_layer(second)]
        else:
            wide = width
            features = [
                nn.AvgPool2d(2),
                *_layer(nn.Conv2d(1, width // 2 or 1, 5, bias=False), pool=True),
                *_layer(nn.Conv2d(width // 2 or 1, wide, 3, bias=False)),
            ]
        localisation = nn.Sequential(
            *features,
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(9 * wide, HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            Regression(HIDDEN, transform),
        )
        self.transformer = SpatialTransformer(localisation, transform, (DIGIT_SIZE, DIGIT_SIZE))
        # On a CPU the first convolution takes a third of the time with such weights.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _layer(convolution: nn.Conv2d, pool: bool = False) -> list[nn.Module]:
    """Return a convolution, max pooling by 2 if asked for, batch normalisation and ReLU.

    Normalisation and ReLU have a quarter of the work after pooling.
    """
    pooling = [nn.MaxPool2d(2)] if pool else []
    return [convolution, *pooling, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
