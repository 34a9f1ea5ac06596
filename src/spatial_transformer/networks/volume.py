"""The networks of three dimensions (appendix A.3 of the paper): a classifier of a projection, behind a transformer or not.

The paper names the transformer, the sum over depth and a classifier, but no layer. Ours are those of FCN of Table 1 on the
projection, and a localisation network of two convolutions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..projection import project
from ..transformer import SpatialTransformer, Transform
from .localisation import Regression
from .mnist import fcn_layers

_POOL = 2


class VolumeNetwork(nn.Module):
    """A transformer in three dimensions, the sum of its output over depth, and a classifier of that image.

    Attributes
        transformer: the :class:`SpatialTransformer`, or None: then the volume itself is projected, and pooled to the same size.
        classifier: from the projection to the logits.
    """

    def __init__(self, classifier: nn.Module, transformer: SpatialTransformer | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.classifier = classifier

    def forward(self, volumes: Tensor) -> Tensor:
        """``(B, 1, D, H, W)`` volumes in [0, 1] -> ``(B, classes)`` logits."""
        depth = volumes.shape[2]
        if self.transformer is None:
            image = F.avg_pool2d(project(volumes, depth), _POOL)
        else:
            image = project(self.transformer(volumes), depth)
        return self.classifier(image)


def fcn(size: int, width: int = 256, dropout: float = 0.0, classes: int = 10) -> VolumeNetwork:
    """FCN on the projection of a volume.

    Args:
        size: depth, height and width of the volume in voxels.
        width: units of both hidden layers.
        dropout: share of the inputs of the layers behind the first that training drops.
        classes: number of classes.
    """
    return VolumeNetwork(fcn_layers(size // _POOL, width, dropout, classes))


def st_fcn(size: int, transform: Transform, width: int = 256, dropout: float = 0.0, classes: int = 10) -> VolumeNetwork:
    """The same behind a transformer, whose output has half the size of the volume, as the projection has behind its pooling.

    Args:
        size, width, dropout, classes: as for :func:`fcn`.
        transform: of three dimensions.

    Raises:
        ValueError: a transform of the plane, or a volume too small for the localisation network.
    """
    if transform.dims != 3:
        raise ValueError(f"a volume needs a transform of three dimensions, got {transform}. Way out: transform=affine3d")
    half = size // _POOL
    features = ((half - 5) // 2 + 1 - 5) // 2 + 1
    if features < 1:
        raise ValueError(f"the localisation network needs a volume of at least 26 voxels a side, got {size}")
    localisation = nn.Sequential(
        nn.AvgPool3d(_POOL),
        nn.Conv3d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv3d(16, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * features**3, 64),
        nn.ReLU(),
        Regression(64, transform),
    )
    transformer = SpatialTransformer(localisation, transform, (half, half, half))
    return VolumeNetwork(fcn_layers(half, width, dropout, classes), transformer)
