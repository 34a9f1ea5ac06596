"""A CNN that is equivariant to quarter turns (Cohen and Welling 2016), for comparison. Ours."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class P4Conv2d(nn.Module):
    """Convolution over the group p4 of translations and quarter turns, without padding.

    Args:
        in_channels: channels of the input, of each orientation.
        channels: channels of the output, of each of its four orientations.
        kernel_size: height and width of the filters.
        is_first: the input is an image, which has no orientations.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, is_first: bool = False
    ) -> None:
        super().__init__()
        orientations = 1 if is_first else 4
        shape = (channels, in_channels, orientations, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.weight, std=math.sqrt(2 / math.prod(shape[1:])))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels * 4, H, W)`` to ``(B, channels * 4, H', W')``.

        The four orientations of a channel are neighbours. A quarter turn of the input turns the
        output and shifts its orientations by one.
        """
        channels, in_channels, orientations = self.weight.shape[:3]
        turned = [
            self.weight.rot90(turn, (3, 4)).roll(turn if orientations == 4 else 0, 2)
            for turn in range(4)
        ]
        shape = 4 * channels, in_channels * orientations, *self.weight.shape[3:]
        weight = torch.stack(turned, dim=1).view(shape)
        return F.conv2d(x, weight)


class P4Cnn(nn.Module):
    """The p4-CNN for rotated MNIST: seven layers, about 25k parameters. The logits are invariant.

    Args:
        channels: channels of each orientation.
        classes: number of classes.
        dropout: dropout probability after each layer but the last.
    """

    def __init__(self, channels: int = 10, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        sizes = [1, *[channels] * 6]
        self.convolutions = nn.ModuleList(
            P4Conv2d(a, b, 3, is_first=a == 1) for a, b in pairwise(sizes)
        )
        # Statistics over the orientations, too: else the network would not be equivariant.
        self.norms = nn.ModuleList(nn.BatchNorm3d(channels) for _ in self.convolutions)
        self.dropout = nn.Dropout(dropout)
        self.head = P4Conv2d(channels, classes, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, classes)`` of images ``(B, 1, 28, 28)``."""
        for n, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x).unflatten(1, (-1, 4))).flatten(1, 2)
            x = self.dropout(F.relu(x))
            if n == 1:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.head(x).unflatten(1, (-1, 4)).amax(dim=(2, 3, 4))
        return logits
