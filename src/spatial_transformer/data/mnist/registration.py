"""Pairs of MNIST digits to register (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...utils.errors import UsageError
from ...utils.random import uniform
from .distorted import MnistData
from .distortions import DIGIT

_PARTNER = 9  # a stream that no distortion uses
_COLOURS = ((1.0, 0.5, 0.0), (0.0, 0.5, 1.0))  # orange and blue, which add up to white


class DigitPairs:
    """What data modules of two digits in two channels have in common."""

    unsupported_reason = "an image is two digits in two channels, which no picture has"

    def to_display(self, images: Tensor) -> Tensor:
        """Return the first channel in orange and the second in blue: ``(..., 3, H, W)``."""
        return torch.einsum("...chw,cd->...dhw", images, images.new_tensor(_COLOURS))


class RegistrationData(DigitPairs, MnistData):
    """Pairs of digits of one class: a fixed one, and a moving one that is distorted.

    The first channel is the undistorted digit at the sample's own index. The digit of the second is
    drawn uniformly from those of its class in the same split: in each epoch for training, once for
    validation and test.

    Args: as for :class:`~spatial_transformer.data.mnist.MnistData`. The distortion must have a
        canvas of 28 pixels: r, p or e.
    """

    def setup(self, stage: str | None = None) -> None:
        if self.input_size != DIGIT:
            raise UsageError(
                f"data.distortion must be r, p or e, got images of {self.input_size} pixels. "
                f"The fixed digit has {DIGIT}."
            )
        super().setup(stage)

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images ``(B, 2, 28, 28)`` in [0, 1], fixed and moving, and classes ``(B,)``."""
        keys = self._keys(split, index, epoch)
        fixed = self._digits(split, index)
        labels = self._labels[split]
        partners = draw_partners(labels, index, keys)
        moving = self._distort(split, partners, keys)
        return torch.cat([fixed, moving], dim=1), labels[index]


def draw_partners(labels: Tensor, index: Tensor, keys: Tensor) -> Tensor:
    """Return the positions of random samples of the same classes, ``(B,)``.

    Args:
        labels: classes of all samples, ``(N,)``.
        index: positions of samples, ``(B,)``.
        keys: keys of their random numbers, ``(B,)``.
    """
    # Sorted by class, the samples of a class are one interval.
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    first, count = (counts.cumsum(0) - counts)[labels[index]], counts[labels[index]]
    place = (uniform(keys, 1, stream=_PARTNER)[:, 0] * count).long().clamp(max=count - 1)
    return order[first + place]
