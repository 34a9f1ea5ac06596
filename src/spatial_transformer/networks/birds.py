"""The networks of Table 3: parallel transformers on a photograph, each with a stream of its own (section 4.3, appendix A.6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer import SpatialTransformer, Transform
from .backbones import Backbone, load_backbone
from .localisation import Regression

TILE = 0.5
"""Side of a transformer's first crop, in sides of the image."""
SEEN = 224
"""Side in pixels of what the localisation network sees; a larger image is reduced to it."""


MOST = 16
"""Parallel transformers: more than that would be a mistake. The paper has four."""


class BirdNetwork(nn.Module):
    """Parallel transformers, a stream of convolutions for each crop, one softmax layer on all of them side by side.

    Args:
        streams: one for each transformer, or the only one without.
        transformer: from the image to all crops as channels; None for a CNN that sees the whole image.
        classes: number of classes.
        dropout: before the softmax layer.

    Attributes
        transformer, classes: as given.
        streams: a module for each.
    """

    def __init__(self, streams: list[Backbone], transformer: SpatialTransformer | None, classes: int, dropout: float) -> None:
        super().__init__()
        self.transformer = transformer
        self.classes = classes
        self.streams = nn.ModuleList(streams)
        features = sum(stream.channels for stream in streams)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
        self.to(memory_format=torch.channels_last)  # convolutions are faster so

    @property
    def backbones(self) -> list[nn.Module]:
        """The streams, and that of the localisation network: all that was trained elsewhere."""
        localisation = [] if self.transformer is None else [self.transformer.localisation.backbone]
        return [*self.streams, *localisation]

    def forward(self, x: Tensor, theta: Tensor | None = None) -> Tensor:
        """``(B, 3, H, W)`` images in [0, 1] -> ``(B, classes)`` logits; of the crops at ``theta`` where it is given."""
        crops = [x] if self.transformer is None else self.transformer(x, theta=theta).split(x.shape[1], dim=1)
        features = [stream(crop).mean((2, 3)) for stream, crop in zip(self.streams, crops, strict=True)]
        return self.classifier(torch.cat(features, dim=1))


def birds_cnn(
    size: int, classes: int, backbone: str = "googlenet", weights: str = "imagenet", dropout: float = 0.7
) -> BirdNetwork:
    """The baseline: one stream on the whole image.

    Args: as for :func:`birds_st`.
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
    """Parallel spatial transformers, whose thetas one shared localisation network regresses.

    Args:
        size: height and width of the image in pixels. The localisation network sees at most 224; crops are read from the
            whole.
        classes: number of classes.
        transform: the family of transformations: attention of a fixed scale of 0.5 in the paper.
        transformers: how many. Their first crops tile the image.
        crop: height and width of a crop in pixels.
        backbone: name of the convolutional network, see :mod:`.backbones`.
        weights: "imagenet", "none" or a file.
        dropout: of the concatenated features.

    Raises:
        ValueError: fewer than one transformer or more than :data:`MOST`, or a crop larger than the image.
        UsageError: of the backbone and its weights.
    """
    if not 1 <= transformers <= MOST:
        raise ValueError(f"transformers must be from 1 to {MOST}, got {transformers}; model=birds_cnn is the network without")
    if not 0 < crop <= size:
        raise ValueError(f"crop must be between 1 and the size of the image, {size}, got {crop}")
    streams = [load_backbone(backbone, weights) for _ in range(transformers)]
    seen = min(size, SEEN)
    localisation = BirdLocalisation(load_backbone(backbone, weights), transform, tiles(transformers, transform), seen)
    # What lies outside the image is what the streams take for 0.
    transformer = SpatialTransformer(localisation, transform, (crop, crop), fill=streams[0].mean, parallel=transformers)
    return BirdNetwork(streams, transformer, classes, dropout)


class BirdLocalisation(nn.Module):
    """The localisation network that all transformers share (A.6): backbone, 1x1 convolution, fully connected, regression.

    Args:
        backbone: up to its last feature map.
        transform: the family whose thetas are regressed.
        start: ``(n, n_params)`` thetas to start from.
        seen: side in pixels of what the backbone sees; larger images are reduced to it, as the paper halves 448 pixels.
        units: of the 1x1 convolution and of the fully connected layer.

    Raises:
        ValueError: the backbone leaves nothing of so small an image.
    """

    def __init__(self, backbone: Backbone, transform: Transform, start: Tensor, seen: int, units: int = 128) -> None:
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
        """``(B, 3, H, W)`` -> ``(B, n * n_params)``."""
        if x.shape[-1] > self.seen:
            x = F.adaptive_avg_pool2d(x, self.seen)
        return self.head(self.backbone(x))


def tiles(n: int, transform: Transform, side: float = TILE) -> Tensor:
    """Thetas ``(n, n_params)`` of windows of ``side`` times the image, spread evenly over it (two: left and right).

    Raises:
        ValueError: a transform whose theta is no affine matrix or attention.
    """
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)

    def centre(k: int, of: int) -> float:
        return 0.0 if of == 1 else (1 - side) * (2 * k / (of - 1) - 1)

    centres = torch.tensor([[centre(k % columns, columns), centre(k // columns, rows)] for k in range(n)])
    x, y = centres.unbind(1)
    scale, zero = torch.full_like(x, side), torch.zeros_like(x)
    by_size = {2: [x, y], 3: [scale, x, y], 6: [scale, zero, x, zero, scale, y]}
    if transform.n_params not in by_size:
        raise ValueError(f"crops that tile the image are attention or affine windows, not {transform}")
    return torch.stack(by_size[transform.n_params], dim=1)
