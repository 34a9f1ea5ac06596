"""Localisation networks: from a feature map to theta (section 3.1, appendix A.4 of the paper).

Any module that maps ``(B, C, H, W)`` to ``(B, n_params)`` will do, as long as it ends in a :class:`Regression`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transforms import Transform


class Regression(nn.Linear):
    """The last layer of a localisation network: zero weights and the identity's theta as bias, so that training starts there.

    It computes in float32 also under autocast: eight bits of theta are a tenth of a pixel at 28 px.

    Args:
        in_features: size of what it reads.
        transform: says how many numbers to regress, and where to start.
        start: thetas to start from, ``(n, n_params)`` for n parallel transformers; the identity by default.
    """

    def __init__(self, in_features: int, transform: Transform, start: Tensor | None = None) -> None:
        start = transform.identity() if start is None else torch.as_tensor(start, dtype=torch.float32)
        if start.shape[-1] != transform.n_params:
            raise ValueError(f"start must be (n, {transform.n_params}) for {transform}, got {tuple(start.shape)}")
        super().__init__(in_features, start.numel())
        with torch.no_grad():
            self.weight.zero_()
            self.bias.copy_(start.flatten())

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
            return F.linear(features.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class FcLocalisation(nn.Sequential):
    """Fully connected localisation network; three layers of 32 units is the paper's for ST-FCN (A.4).

    Args:
        in_shape: ``(C, H, W)`` of the feature map.
        transform: the family whose theta is regressed.
        hidden: units of each hidden layer.
        start: as for :class:`Regression`.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        transform: Transform,
        hidden: Sequence[int] = (32, 32, 32),
        start: Tensor | None = None,
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        width = 1
        for n in in_shape:
            width *= n
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        super().__init__(*layers, Regression(width, transform, start))


class JoinedLocalisation(nn.Module):
    """Localisation networks of parallel transformers, each with weights of its own.

    Args:
        networks: each from ``(B, C, H, W)`` to its transformer's ``(B, n_params)``; together ``(B, n n_params)``.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], dim=1)


class ConvLocalisation(nn.Sequential):
    """Convolutional localisation network of ST-CNN (A.4).

    Average pooling by 2, convolution 5x5, max pooling by 2, convolution 5x5, one fully connected layer, regression.

    Args:
        in_shape: ``(C, H, W)`` of the feature map, 28 x 28 at least.
        transform: the family whose theta is regressed.
        channels: filters of both convolutions, and units of the fully connected layer.
        start: as for :class:`Regression`.

    Raises:
        ValueError: the feature map is too small for these layers.
    """

    def __init__(self, in_shape: Sequence[int], transform: Transform, channels: int = 20, start: Tensor | None = None) -> None:
        in_channels, *size = in_shape
        out = [(n // 2 - 4) // 2 - 4 for n in size]
        if min(out) < 1:
            raise ValueError(f"ConvLocalisation needs a feature map of at least 28 x 28, got {tuple(size)}")
        super().__init__(
            nn.AvgPool2d(2),
            nn.Conv2d(in_channels, channels, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * out[0] * out[1], channels),
            nn.ReLU(),
            Regression(channels, transform, start),
        )
