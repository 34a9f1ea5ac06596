"""Localisation networks: from a feature map to theta (section 3.1 and appendix A.4).

Any module from ``(B, C, H, W)`` to ``(B, n_params)`` can be a localisation network if it ends in a
:class:`Regression`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer import Transform, find_transformers
from ..transformer.transforms import is_autocast_on


class Regression(nn.Linear):
    """The last layer of a localisation network: zero weights, and the identity's theta as bias.

    It computes in float32 also under autocast: a bfloat16 theta is wrong by 0.1 px at 28 px.

    Args:
        in_features: size of each input sample.
        transform: determines the number of outputs and the identity.
        start: thetas to start from, ``(n, n_params)`` for n parallel transformers. None is the
            identity.

    Raises:
        ValueError: ``start`` has the wrong shape.
    """

    def __init__(self, in_features: int, transform: Transform, start: Tensor | None = None) -> None:
        start = transform.identity() if start is None else torch.as_tensor(start)
        n_params = transform.n_params
        if start.shape[-1] != n_params:
            shape = tuple(start.shape)
            raise ValueError(f"start must be (n, {n_params}) for {transform}, got {shape}")
        self.start = start.flatten().tolist()  # reset_parameters reads it, and nn.Linear calls that
        super().__init__(in_features, len(self.start))

    def reset_parameters(self) -> None:
        """Set weights and bias to the start."""
        with torch.no_grad():
            self.weight.zero_()
            self.bias.copy_(torch.tensor(self.start, device="cpu"))

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(B, in_features)`` to ``(B, n * n_params)`` in float32, or float64 if it is."""
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        if is_autocast_on(features):
            with torch.autocast(features.device.type, enabled=False):
                return self.forward(features)
        return F.linear(features.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class FcLocalisation(nn.Sequential):
    """Fully connected localisation network. That of ST-FCN has three layers of 32 units (A.4).

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
        width = math.prod(in_shape)
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        super().__init__(*layers, Regression(width, transform, start))


class ConvLocalisation(nn.Sequential):
    """Convolutional localisation network of ST-CNN (A.4).

    Average pooling by 2, convolution 5x5, max pooling by 2, convolution 5x5, one fully connected
    layer, regression. The paper has 20 filters and 20 units.

    Args:
        in_shape: ``(C, H, W)`` of the feature map, at least 28 x 28.
        transform: the family whose theta is regressed.
        channels: filters of both convolutions, and units of the fully connected layer.
        start: as for :class:`Regression`.

    Raises:
        ValueError: the feature map is too small.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        transform: Transform,
        channels: int = 20,
        start: Tensor | None = None,
    ) -> None:
        in_channels, *size = in_shape
        height, width = ((n // 2 - 4) // 2 - 4 for n in size)
        if min(height, width) < 1:
            raise ValueError(
                f"ConvLocalisation needs a feature map of at least 28 x 28, got {tuple(size)}"
            )
        super().__init__(
            nn.AvgPool2d(2),
            nn.Conv2d(in_channels, channels, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * height * width, channels),
            nn.ReLU(),
            Regression(channels, transform, start),
        )


class MomentLocalisation(nn.Module):
    """Affine theta that normalises an image by its moments: a baseline without weights (ours).

    In the output, the centre of mass is in the centre, the principal axis is upright and the root
    mean square distance of the ink from the centre is ``radius``. Images are square.

    Args:
        radius: in units of half the side. The default is the mean of MNIST's training digits.
    """

    def __init__(self, radius: float = 0.48) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        """Return theta ``(B, 6)`` of images ``(B, 1, H, H)`` whose background is 0."""
        if is_autocast_on(x):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x)
        ink = x[:, 0].float()
        ink = ink / ink.sum((1, 2), keepdim=True).clamp(min=1e-6)
        axis = (2 * torch.arange(ink.shape[-1], device=x.device) + 1) / ink.shape[-1] - 1
        columns, rows = ink.sum(1), ink.sum(2)
        centre_x, centre_y = columns @ axis, rows @ axis
        variance_x = columns @ axis.square() - centre_x.square()
        variance_y = rows @ axis.square() - centre_y.square()
        covariance = (ink @ axis * axis).sum(1) - centre_x * centre_y
        angle = torch.atan2(-2 * covariance, variance_y - variance_x) / 2  # of the principal axis
        scale = (variance_x + variance_y).clamp(min=1e-4).sqrt() / self.radius
        cos, sin = scale * angle.cos(), scale * angle.sin()
        return torch.stack([cos, -sin, centre_x, sin, cos, centre_y], dim=1)


class InkLocalisation(nn.Module):
    """Attention theta of a window on the patch with the most ink: a baseline without weights.

    Args:
        patch: height and width of the patch in pixels: those of an MNIST digit without its margin.
        window: height and width of the window in pixels, centred on the patch.
    """

    def __init__(self, patch: int = 20, window: int = 28) -> None:
        super().__init__()
        self.patch, self.window = patch, window

    def forward(self, x: Tensor) -> Tensor:
        """Return theta ``(B, 3)`` of images ``(B, 1, H, H)`` whose background is 0."""
        ink = F.avg_pool2d(x.float(), (self.patch, 1), stride=1)  # rows, then columns: faster
        ink = F.avg_pool2d(ink, (1, self.patch), stride=1)[:, 0]
        # Many patches hold the whole of a narrow digit. Their mean position is on its centre.
        is_best = (ink >= 0.9999 * ink.amax((1, 2), keepdim=True)).float()
        corners = torch.arange(ink.shape[-1], dtype=torch.float32, device=x.device)
        # Products and a sum, as autocast would round a matmul.
        corner = torch.stack([(is_best.sum(axis) * corners).sum(1) for axis in (1, 2)], dim=1)
        centre = (2 * corner / is_best.sum((1, 2))[:, None] + self.patch) / x.shape[-1] - 1
        side = torch.full_like(centre[:, :1], self.window / x.shape[-1])
        return torch.cat([side, centre], dim=1)


class JoinedLocalisation(nn.Module):
    """Localisation networks of parallel transformers, each with its own weights.

    Args:
        networks: from ``(B, C, H, W)`` to ``(B, n_params)``, one for each of n transformers. Their
            outputs are joined to ``(B, n * n_params)``.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the thetas ``(B, n * n_params)`` of feature maps ``(B, C, H, W)``."""
        return torch.cat([network(x) for network in self.networks], dim=1)


def localisation_networks(network: nn.Module) -> list[nn.Module]:
    """Return the localisation networks of all spatial transformers in ``network``."""
    return [transformer.localisation for transformer in find_transformers(network)]
