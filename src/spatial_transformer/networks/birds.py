"""The networks of Table 3: parallel transformers on a photograph, each with a stream (A.6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer import SpatialTransformer, Transform
from .backbones import Backbone, load_backbone
from .localisation import MAX_TRANSFORMERS, Regression

TILE_SIZE = 0.5
"""Side of the first crop of a transformer, in sides of the image."""
LOCALISATION_SIZE = 224
"""Side in pixels of what the localisation network sees. A larger image is reduced to it."""


class BirdNetwork(nn.Module):
    """Parallel transformers, a stream of convolutions for each crop, and one softmax layer on all.

    Args:
        streams: one for each transformer, or the only one without a transformer.
        transformer: from the image to all crops as channels. None for a CNN on the whole image.
        classes: number of classes.
        dropout: dropout probability before the softmax layer.

    Attributes:
        transformer, classes: as given.
        streams: a module for each.
    """

    def __init__(
        self,
        streams: list[Backbone],
        transformer: SpatialTransformer | None,
        classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.classes = classes
        self.streams = nn.ModuleList(streams)
        features = sum(stream.channels for stream in streams)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def forward(self, x: Tensor, theta: Tensor | None = None) -> Tensor:
        """Classify photographs.

        Args:
            x: ``(B, 3, H, W)`` images in [0, 1].
            theta: ``(B, n * n_params)`` to crop at, instead of that of the localisation network.

        Returns:
            ``(B, classes)`` logits.
        """
        crops: tuple[Tensor, ...] = (x,)
        if self.transformer is not None:
            crops = self.transformer(x, theta=theta).split(x.shape[1], dim=1)
        pairs = zip(self.streams, crops, strict=True)
        features = [stream(crop).mean((2, 3)) for stream, crop in pairs]
        return self.classifier(torch.cat(features, dim=1))


def birds_cnn(
    size: int,
    classes: int,
    backbone: str = "googlenet",
    weights: str = "imagenet",
    dropout: float = 0.7,
) -> BirdNetwork:
    """Build the baseline: one stream on the whole image.

    Args:
        size, classes, backbone, weights, dropout: as for :func:`birds_st`.
    """
    return BirdNetwork([load_backbone(backbone, weights)], None, classes, dropout)


def birds_st(
    size: int,
    classes: int,
    transform: Transform,
    transformers: int = 2,
    crop: int = 224,
    backbone: str = "googlenet",
    weights: str = "imagenet",
    dropout: float = 0.7,
) -> BirdNetwork:
    """Build parallel spatial transformers, whose thetas one shared localisation network regresses.

    Args:
        size: height and width of the image in pixels. The localisation network sees at most 224.
            Crops are read from the whole image.
        classes: number of classes.
        transform: the family of transformations. The paper's is attention with a scale of 0.5.
        transformers: number of transformers. Their first crops tile the image.
        crop: height and width of a crop in pixels.
        backbone: name of the convolutional network, see :mod:`.backbones`.
        weights: "imagenet", "none" or a file.
        dropout: dropout probability of the concatenated features.

    Raises:
        ValueError: the number of transformers or the size of the crop is out of range.
        UsageError: the backbone or its weights cannot be loaded.
    """
    if not 1 <= transformers <= MAX_TRANSFORMERS:
        raise ValueError(
            f"transformers must be from 1 to {MAX_TRANSFORMERS}, got {transformers}.",
        )
    if not 0 < crop <= size:
        raise ValueError(f"crop must be from 1 to the size of the image, {size}, got {crop}.")
    streams = [load_backbone(backbone, weights) for _ in range(transformers)]
    seen = min(size, LOCALISATION_SIZE)
    start = tiles(transformers, transform)
    localisation = BirdLocalisation(load_backbone(backbone, weights), transform, start, seen)
    # Streams take what is outside of the image for 0.
    transformer = SpatialTransformer(
        localisation,
        transform,
        (crop, crop),
        fill=streams[0].mean,
        parallel=transformers,
    )
    return BirdNetwork(streams, transformer, classes, dropout)


class BirdLocalisation(nn.Module):
    """The localisation network that all transformers share (A.6).

    Backbone, 1x1 convolution, one fully connected layer, regression.

    Args:
        backbone: up to its last feature map.
        transform: the family whose thetas are regressed.
        start: ``(n, n_params)`` thetas to start from.
        seen: side in pixels of what the backbone sees. Larger images are reduced to it, as the
            paper halves 448 pixels.
        units: of the 1x1 convolution and of the fully connected layer.

    Raises:
        ValueError: the image is too small for the backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        transform: Transform,
        start: Tensor,
        seen: int,
        units: int = 128,
    ) -> None:
        super().__init__()
        self.seen = seen
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Conv2d(backbone.channels, units, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(units * backbone.map_size(seen) ** 2, units),
            nn.ReLU(),
            Regression(units, transform, start),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to ``(B, n * n_params)``."""
        if x.shape[-1] > self.seen:
            x = F.adaptive_avg_pool2d(x, self.seen)
        return self.head(self.backbone(x))


def tiles(n: int, transform: Transform, side: float = TILE_SIZE) -> Tensor:
    """Return thetas ``(n, n_params)`` of windows that are spread evenly over the image.

    Args:
        n: number of windows. Two are left and right.
        transform: the family of transformations.
        side: side of a window, in sides of the image.

    Raises:
        ValueError: theta of the transform is not an affine matrix or attention.
    """
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)

    def centre(k: int, count: int) -> float:
        return 0.0 if count == 1 else (1 - side) * (2 * k / (count - 1) - 1)

    centres = torch.tensor(
        [[centre(k % columns, columns), centre(k // columns, rows)] for k in range(n)],
    )
    x, y = centres.unbind(1)
    scale, zero = torch.full_like(x, side), torch.zeros_like(x)
    by_size = {2: [x, y], 3: [scale, x, y], 6: [scale, zero, x, zero, scale, y]}
    if transform.n_params not in by_size:
        raise ValueError(
            f"Crops that tile the image need an attention or affine transform, got {transform}.",
        )
    return torch.stack(by_size[transform.n_params], dim=1)
