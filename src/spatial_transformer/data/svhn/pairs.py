"""Pairs of digits of SVHN to register (ours)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...utils.random import sample_keys
from ..base import FIXED_SEEDS
from ..mnist.registration import DigitPairs, draw_partners
from .crops import DIGIT_SIZE
from .datamodule import SvhnData


class SvhnPairs(DigitPairs, SvhnData):
    """Pairs of house-number digits of one class: a fixed one and a moving one.

    An image shows the ink of a digit, see :func:`extract_ink`. The first channel is the digit at
    the sample's own index. That of the second is drawn uniformly from those of its class in the
    same split: in each epoch for training, once for validation and test.

    Args: as for :class:`~spatial_transformer.data.svhn.SvhnData`.
    """

    classes = 10

    def __init__(
        self,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        extra: bool | None = False,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        seed: int = 1,
        workers: int | None = None,
    ) -> None:
        super().__init__(
            64, root, cache, extra, batch_size, eval_batch_size, seed=seed, workers=workers
        )
        self.input_size = DIGIT_SIZE
        self.names = [str(digit) for digit in range(self.classes)]

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images ``(B, 2, 28, 28)`` in [0, 1], fixed and moving, and classes ``(B,)``."""
        is_training = split == "train"
        seed, draw = (self.seed, epoch) if is_training else (FIXED_SEEDS[split], 0)
        keys = sample_keys(seed, draw, index)
        labels = self._labels[split].to(index.device)[:, 0]
        pairs = torch.stack([index, draw_partners(labels, index, keys)], dim=1)
        ink = extract_ink(self._pixels(split, pairs.flatten()))
        return ink.view(-1, 2, DIGIT_SIZE, DIGIT_SIZE), labels[index]

    def decode_labels(self, labels: Tensor) -> list[str]:
        return [self.names[label] for label in labels.tolist()]


def extract_ink(pixels: Tensor) -> Tensor:
    """Return how much the grey level differs from the wall, towards that of the digit.

    The wall is the mean of the outermost pixels. A digit is darker or brighter than that, whichever
    the mean of the central quarter of the image is.

    Args:
        pixels: ``(B, 3, H, W)`` uint8.

    Returns:
        ``(B, 1, H, W)`` in [0, 1]. The maximum is 1, except in a flat image, which is 0.
    """
    grey = pixels.float().mean(1, keepdim=True)
    height, width = grey.shape[2:]
    inside = torch.zeros(height, width, dtype=torch.bool, device=grey.device)
    inside[1:-1, 1:-1] = True
    difference = grey - grey[..., ~inside].mean(-1)[..., None, None]
    centre = difference[..., height // 4 : -(height // 4), width // 4 : -(width // 4)]
    ink = (difference * centre.mean((2, 3), keepdim=True).sign()).clamp(min=0)
    return ink / ink.amax((2, 3), keepdim=True).clamp(min=1)
