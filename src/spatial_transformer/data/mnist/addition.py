"""MNIST addition (appendix A.1 of the paper): two digits in two channels, labelled by their sum."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...utils.random import integers
from .distorted import MnistData
from .distortions import rts_pose

_SECOND = 0x5345434F4E44  # makes the second digit's random numbers independent of the first's
_PARTNER = 9  # a stream that no distortion uses
_COLOURS = ((1.0, 0.5, 0.0), (0.0, 0.5, 1.0))  # add up to white


class MnistAdditionData(MnistData):
    """Pairs of digits, each distorted independently as in RTS.

    The digit of the first channel is the sample's own. The second is drawn uniformly, with
    replacement, from the same split: in each epoch for training, once for validation and test (the
    paper does not say how digits are paired).

    Args: as for :class:`~spatial_transformer.data.mnist.MnistData`.

    Attributes
        classes: the sums 0 to 18.
    """

    classes = 19
    unsupported_reason = "an image is two digits in two channels, which no picture has"

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
        """Return images ``(B, 2, canvas, canvas)`` float32 in [0, 1] and sums ``(B,)``."""
        own, other = self._keys(split, index, epoch), self._keys(split, index, epoch, _SECOND)
        partner = integers(other, 1, self.size(split), stream=_PARTNER)[:, 0]
        self._move_to(index.device)
        pairs = [self._distort(split, index, own), self._distort(split, partner, other)]
        images = torch.cat(pairs, dim=1)
        labels = self._labels[split]
        return images, labels[index] + labels[partner]

    def poses(self, split: str, index: Tensor) -> Tensor:
        """Return where the digits are, by channel: ``(B, 2, 2, 3)``.

        See :func:`~spatial_transformer.data.mnist.distortions.rts_pose`.

        Args:
            split: "val" or "test".
            index: ``(B,)`` positions in the split.
        """
        keys = (self._keys(split, index), self._keys(split, index, stream=_SECOND))
        return torch.stack([rts_pose(key, self.input_size) for key in keys], dim=1)

    def to_display(self, images: Tensor) -> Tensor:
        """Return the first channel in orange and the second in blue: ``(..., 3, H, W)``."""
        colours = images.new_tensor(_COLOURS)
        return torch.einsum("...chw,cd->...dhw", images, colours)
