"""MNIST addition (appendix A.1 of the paper): two digits in two channels, labelled by their sum."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...utils.random import integers
from .distorted import MnistData
from .distortions import rts_pose
from .registration import DigitPairs

_SECOND = 0x5345434F4E44  # makes the second digit's random numbers independent of the first's
_PARTNER = 9  # a stream that no distortion uses


class MnistAdditionData(DigitPairs, MnistData):
    """Pairs of digits, each distorted independently as in RTS.

    The first channel shows the digit at the sample's own index. The digit of the second is drawn
    uniformly, with replacement, from the same split: in each epoch for training, once for
    validation and test (ours; the paper does not say). There are 19 classes, the sums 0 to 18.

    Args: as for :class:`~spatial_transformer.data.mnist.MnistData`.
    """

    classes = 19

    def __init__(
        self,
        canvas: int | None = None,
        root: str | Path | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        fresh: bool = True,
        seed: int = 1,
    ) -> None:
        super().__init__("rts", canvas, root, batch_size, eval_batch_size, fresh, seed)

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images ``(B, 2, canvas, canvas)`` in [0, 1] and sums ``(B,)``."""
        first, second = (self._keys(split, index, epoch, stream) for stream in (0, _SECOND))
        partner = integers(second, 1, self.size(split), stream=_PARTNER)[:, 0]
        pair = [self._distort(split, index, first), self._distort(split, partner, second)]
        labels = self._labels[split]
        return torch.cat(pair, dim=1), labels[index] + labels[partner]

    def poses(self, split: str, index: Tensor) -> Tensor:
        """Return where the digits of both channels are: ``(B, 2, 2, 3)``, see :func:`.rts_pose`.

        Args:
            split: "val" or "test".
            index: ``(B,)`` positions in the split.
        """
        keys = (self._keys(split, index, stream=stream) for stream in (0, _SECOND))
        return torch.stack([rts_pose(key, self.input_size) for key in keys], dim=1)
