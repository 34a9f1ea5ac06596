"""The networks for volumes: a classifier of a projection, with or without a transformer (A.3).

Layers:
    The paper names a transformer in three dimensions, a sum over depth and a classifier, but no
    layers. Ours: the FCN of Table 1 on the projection, and a localisation network of average
    pooling by 2, two convolutions of 16 filters 5x5x5 with stride 2, a fully connected layer of 64
    units, regression.
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

    Args:
        size: depth, height and width of the volume in voxels.
        transform: a family of transformations in three dimensions. The output of the transformer
            has half the size. If it is None, the volume is projected and pooled to that size.
        width: units of both hidden layers of the classifier.
        dropout: dropout probability before all layers but the first.
        classes: number of classes.

    Attributes:
        transformer: the :class:`SpatialTransformer`, or None.
        classifier: from the projection to the logits.

    Raises:
        ValueError: the transform is of the plane, or the volume is too small for the localisation
            network.
    """

    def __init__(
        self,
        size: int,
        transform: Transform | None = None,
        width: int = 256,
        dropout: float = 0.0,
        classes: int = 10,
    ) -> None:
        super().__init__()
        half = size // _POOL
        self.transformer: SpatialTransformer | None = None
        if transform is not None:
            localisation = _build_localisation(size, transform)
            self.transformer = SpatialTransformer(localisation, transform, (half, half, half))
        self.classifier = fcn_classifier(half, width, dropout, classes)

    def forward(self, volumes: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return the logits ``(B, classes)`` of volumes ``(B, 1, D, H, W)`` in [0, 1].

        ``theta``, ``(B, n_params)``, replaces that of the localisation network.
        """
        depth = volumes.shape[2]
        if self.transformer is None:
            image = F.avg_pool2d(project_volume(volumes, depth), _POOL)
        else:
            image = project_volume(self.transformer(volumes, theta=theta), depth)
        logits: Tensor = self.classifier(image)
        return logits


fcn = st_fcn = VolumeNetwork
"""The names of the network in configurations and result files, without and with a transform."""


def _build_localisation(size: int, transform: Transform) -> nn.Module:
    if transform.dims != 3:
        raise ValueError(f"transform must have three dimensions, got {transform}. Use affine3d.")
    features = ((size // _POOL - 5) // 2 + 1 - 5) // 2 + 1
    if features < 1:
        raise ValueError(f"The volume must have at least 26 voxels per side, got {size}.")
    return nn.Sequential(
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
