"""Networks for rotated MNIST: a CNN, with a spatial transformer, or with a learned pose. Ours.

All have about 22k parameters. The networks of Cohen and Welling (2016) have about 25k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..transformer import Affine, SpatialTransformer, Transform, sample
from .localisation import Regression
from .mnist import TransformedClassifier

SIZE = 28
"""Height and width of an image in pixels."""


class Rotation(Affine):
    """Rotation about the centre. Theta ``(a, b)`` is the direction of the rotated x axis.

    Its length has no effect, so theta needs no constraint.
    """

    n_params = 2
    is_group = False

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0.0], device="cpu")

    def _elements(self, theta: Tensor) -> Tensor:
        cos, sin = (theta / theta.norm(dim=1, keepdim=True).clamp(min=1e-6)).unbind(1)
        zero = torch.zeros_like(cos)
        return torch.stack([cos, -sin, zero, sin, cos, zero], dim=1)


def rotated_cnn(width: int = 20, classes: int = 10, dropout: float = 0.0) -> nn.Sequential:
    """Build the CNN of Cohen and Welling (2016): seven layers of ``width`` filters.

    It maps ``(B, 1, 28, 28)`` to ``(B, classes)``.
    """
    layers: list[nn.Module] = []
    for n in range(1, 7):
        convolution = nn.Conv2d(1 if n == 1 else width, width, 3, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout)]
        if n == 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Conv2d(width, classes, 4), nn.Flatten())


def _pose_features(channels: int) -> list[nn.Module]:
    """Return the layers of ST-CNN's localisation network but the last, with batch normalisation.

    Without it the few ReLUs can die in the first steps, and the pose stays constant.
    """
    return [
        nn.AvgPool2d(2),
        nn.Conv2d(1, channels, 5, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 5, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels, channels),
        nn.ReLU(),
    ]


class RotatedStCnn(TransformedClassifier):
    """A spatial transformer and the CNN.

    Args:
        transform: family of transformations.
        width: filters of each layer of the CNN.
        channels: filters of the localisation network.
        dropout: dropout probability of the CNN.
    """

    def __init__(
        self, transform: Transform, width: int = 19, channels: int = 9, dropout: float = 0.0
    ) -> None:
        super().__init__()
        localisation = nn.Sequential(*_pose_features(channels), Regression(channels, transform))
        self.transformer = SpatialTransformer(localisation, transform, (SIZE, SIZE))
        self.classifier = rotated_cnn(width, dropout=dropout)


class CanonicalCnn(nn.Module):
    """Learned canonicalisation: the rotation of lowest energy, then the CNN (Kaba et al. 2023).

    An energy network sees the image in each of ``angles`` rotations. The CNN sees the one of lowest
    energy. The gradient is that of the mean under the softmax of the negative energies (straight
    through).

    Args:
        angles: number of rotations, evenly spread over the circle.
        width: filters of each layer of the CNN.
        channels: filters of the energy network.
        dropout: dropout probability of the CNN.
    """

    def __init__(
        self, angles: int = 16, width: int = 19, channels: int = 9, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.energy = nn.Sequential(*_pose_features(channels), nn.Linear(channels, 1))
        self.classifier = rotated_cnn(width, dropout=dropout)
        turns = torch.arange(angles) * (2 * math.pi / angles)
        theta = torch.stack([turns.cos(), turns.sin()], dim=1)
        self.grids: Tensor
        self.register_buffer("grids", Rotation().grid(theta, (SIZE, SIZE)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of images ``(B, 1, 28, 28)``."""
        angles, batch = len(self.grids), x.shape[0]  # len() would fix the size in an export
        images = x.repeat_interleave(angles, dim=0)
        rotated = sample(images, self.grids.repeat(batch, 1, 1, 1))
        share = self.energy(rotated).view(batch, angles).neg().softmax(dim=1)
        best = torch.zeros_like(share).scatter_(1, share.argmax(dim=1, keepdim=True), 1.0)
        weight = best + share - share.detach()
        canonical = torch.einsum("ba,bachw->bchw", weight, rotated.unflatten(0, (batch, angles)))
        logits: Tensor = self.classifier(canonical)
        return logits
