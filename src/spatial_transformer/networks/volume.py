"""The networks for volumes: a classifier of a projection, with or without a transformer (A.3).

The paper names the transformer, the sum over depth and a classifier, but no layers. Ours are those
of the FCN of Table 1 on the projection, and a localisation network of two convolutions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import project_volume
from ..transformer import SpatialTransformer, Transform
from .localisation import Regression
from .mnist import fcn_classifier

_POOL = 2


class VolumeNetwork(nn.Module):
    """A transformer in three dimensions, the sum of its output over depth, and a classifier.

    Attributes:
        transformer: the :class:`SpatialTransformer`. If it is None, the volume itself is projected
            and pooled to the same size.
        classifier: from the projection to the logits.
    """

    def __init__(
        self,
        classifier: nn.Module,
        transformer: SpatialTransformer | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.classifier = classifier

    def forward(self, volumes: Tensor, theta: Tensor | None = None) -> Tensor:
        """Classify volumes.

        Args:
            volumes: ``(B, 1, D, H, W)`` in [0, 1].
            theta: ``(B, n_params)`` to warp by, instead of that of the localisation network.

        Returns:
            ``(B, classes)`` logits.
        """
        depth = volumes.shape[2]
        if self.transformer is None:
            image = F.avg_pool2d(project_volume(volumes, depth), _POOL)
        else:
            image = project_volume(self.transformer(volumes, theta=theta), depth)
        return self.classifier(image)


def fcn(size: int, width: int = 256, dropout: float = 0.0, classes: int = 10) -> VolumeNetwork:
    """Build an FCN on the projection of a volume.

    Args:
        size: depth, height and width of the volume in voxels.
        width: units of both hidden layers.
        dropout: dropout probability before all layers but the first.
        classes: number of classes.
    """
    return VolumeNetwork(fcn_classifier(size // _POOL, width, dropout, classes))


def st_fcn(
    size: int,
    transform: Transform,
    width: int = 256,
    dropout: float = 0.0,
    classes: int = 10,
) -> VolumeNetwork:
    """Build the same with a transformer, whose output has half the size of the volume.

    Args:
        size, width, dropout, classes: as for :func:`fcn`.
        transform: a family of transformations in three dimensions.

    Raises:
        ValueError: the transform is of the plane, or the volume is too small for the localisation
            network.
    """
    if transform.dims != 3:
        raise ValueError(f"transform must have three dimensions, got {transform}. Use affine3d.")
    half = size // _POOL
    features = ((half - 5) // 2 + 1 - 5) // 2 + 1
    if features < 1:
        raise ValueError(f"The volume must have at least 26 voxels per side, got {size}.")
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
    return VolumeNetwork(fcn_classifier(half, width, dropout, classes), transformer)
