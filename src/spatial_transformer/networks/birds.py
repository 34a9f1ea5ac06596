"""The networks of Table 3: parallel transformers, each with its own stream (section 4.3 and A.6).

Layers:
    CNN: Inception with batch normalisation, dropout 0.7, one softmax layer.
    N x ST-CNN: N transformers in parallel crop the image by an attention transform whose scale is
    fixed at 0.5. Each crop of 224 px has its own Inception. Their features are concatenated.
    Localisation, shared by all transformers: Inception, convolution 1x1 of 128 filters, fully
    connected layer of 128 units, regression. It sees images of 448 px at half their size.

Ours: the choice of backbones in :mod:`.backbones`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer import Affine, Attention, SpatialTransformer, Transform
from .backbones import Backbone, load_backbone
from .localisation import Regression

LOCALISATION_SIZE = 224
"""Side in pixels of the localisation network's input. Larger images are reduced to it."""
_UNITS = 128


class BirdNetwork(nn.Module):
    """Parallel transformers, a backbone for each crop, and one softmax layer on all features.

    Args:
        size: height and width of the image in pixels.
        classes: number of classes.
        transform: the family of transformations. The paper's is attention with a scale of 0.5. None
            builds the CNN, which sees the whole image.
        transformers: number of transformers. Their first crops tile the image.
        crop: height and width of a crop in pixels. Crops are read from the whole image.
        backbone: name of the convolutional network, see :mod:`.backbones`.
        weights: "imagenet", "none" or a file.
        dropout: dropout probability of the concatenated features.

    Attributes:
        transformer: the :class:`SpatialTransformer`, which returns all crops as channels, or None.
        classes: as given.
        streams: a :class:`Backbone` for each crop.

    Raises:
        ValueError: the number of transformers or the size of the crop is out of range.
        UsageError: the backbone or its weights cannot be loaded.
    """

    def __init__(
        self,
        size: int,
        classes: int,
        transform: Transform | None = None,
        transformers: int = 1,
        crop: int = 224,
        backbone: str = "googlenet",
        weights: str = "imagenet",
        dropout: float = 0.7,
    ) -> None:
        super().__init__()
        if transformers < 1:
            raise ValueError(f"transformers must be at least 1, got {transformers}.")
        if transform is None and transformers > 1:
            raise ValueError(f"transformers must be 1 without a transform, got {transformers}.")
        self.classes = classes
        streams = [load_backbone(backbone, weights) for _ in range(transformers)]
        self.transformer: SpatialTransformer | None = None
        if transform is not None:
            if not 0 < crop <= size:
                raise ValueError(f"crop must be from 1 to the image size, {size}, got {crop}.")
            localisation = BirdLocalisation(
                load_backbone(backbone, weights),
                transform,
                tiles(transformers, transform),
                min(size, LOCALISATION_SIZE),
            )
            fill = streams[0].mean  # the streams normalise it to 0
            self.transformer = SpatialTransformer(
                localisation, transform, (crop, crop), fill=fill, parallel=transformers
            )
        self.streams = nn.ModuleList(streams)
        features = sum(stream.channels for stream in streams)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
        self.to(memory_format=torch.channels_last)  # faster convolutions

    def forward(self, x: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return the logits ``(B, classes)`` of photographs ``(B, 3, H, W)`` in [0, 1].

        ``theta``, ``(B, n * n_params)``, replaces that of the localisation network.
        """
        crops: tuple[Tensor, ...] = (x,)
        if self.transformer is not None:
            crops = self.transformer(x, theta=theta).split(x.shape[1], dim=1)
        pairs = zip(self.streams, crops, strict=True)
        features = [stream(crop).mean((2, 3)) for stream, crop in pairs]
        logits: Tensor = self.classifier(torch.cat(features, dim=1))
        return logits


birds_cnn = birds_st = BirdNetwork
"""The names of the network in configurations and result files, without and with a transform."""


class BirdLocalisation(nn.Module):
    """The localisation network that all transformers share.

    Args:
        backbone: up to its last feature map.
        transform: the family whose thetas are regressed.
        start: ``(n, n_params)`` thetas to start from.
        size: side in pixels of what the backbone sees. Larger images are reduced to it.

    Raises:
        ValueError: the image is too small for the backbone.
    """

    def __init__(self, backbone: Backbone, transform: Transform, start: Tensor, size: int) -> None:
        super().__init__()
        self.size = size
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Conv2d(backbone.channels, _UNITS, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(_UNITS * backbone.map_size(size) ** 2, _UNITS),
            nn.ReLU(),
            Regression(_UNITS, transform, start),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, H, W)`` to ``(B, n * n_params)``."""
        if x.shape[-1] > self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        theta: Tensor = self.head(self.backbone(x))
        return theta


def tiles(n: int, transform: Transform) -> Tensor:
    """Return thetas ``(n, n_params)`` of windows of half the side, spread evenly over the image.

    Args:
        n: number of windows. Two are left and right.
        transform: the family of transformations.

    Raises:
        ValueError: theta of the transform is not an affine matrix or attention.
    """
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)

    def spread(count: int) -> Tensor:
        return torch.linspace(-0.5, 0.5, count) if count > 1 else torch.zeros(1)

    y, x = torch.cartesian_prod(spread(rows), spread(columns))[:n].unbind(1)
    scale, zero = torch.full_like(x, 0.5), torch.zeros_like(x)
    by_size = {2: [x, y], 3: [scale, x, y], 6: [scale, zero, x, zero, scale, y]}
    if not isinstance(transform, Attention) and type(transform) is not Affine:
        raise ValueError(f"Parallel crops need an attention or affine transform, got {transform}.")
    return torch.stack(by_size[transform.n_params], dim=1)
