"""MNIST addition (appendix A.1 of the paper): two digits, each in a channel of its own, labelled by their sum."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .distortions import rts_pose
from .keyed import integers
from .mnist import MnistData

_SECOND = 0x5345434F4E44  # makes what is drawn for the second digit independent of the first's
_PARTNER = 9  # a stream that no distortion draws from
_COLOURS = ((1.0, 0.5, 0.0), (0.0, 0.5, 1.0))  # add up to white


class MnistAdditionData(MnistData):
    """Pairs of digits, each distorted on its own as in RTS.

    The digit of the first channel is the sample's own; the second is drawn evenly, with replacement, from the same split: anew
    in each epoch for training, once for all for validation and test (the paper does not say how digits are paired).

    Args: as for :class:`~spatial_transformer.data.mnist.MnistData`.

    Attributes
        classes: the sums 0 to 18.
    """

    classes = 19
    no_pictures = "an image is two digits in two channels, which no picture has"

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
        """Images ``(B, 2, canvas, canvas)`` float32 in [0, 1] and sums ``(B,)``, likewise."""
        own, other = self._keys(split, index, epoch), self._keys(split, index, epoch, _SECOND)
        partner = integers(other, 1, self.size(split), stream=_PARTNER)[:, 0]
        images = torch.cat([self._distorted(split, index, own), self._distorted(split, partner, other)], dim=1)
        labels = self._labels[split]
        return images, labels[index] + labels[partner]

    def poses(self, split: str, index: Tensor) -> Tensor:
        """Where the digits are: ``(B, 2, 2, 3)``, as of :func:`~spatial_transformer.data.distortions.rts_pose`, by channel.

        Args:
            split: "val" or "test".
            index: ``(B,)`` positions in the split.
        """
        keys = (self._keys(split, index), self._keys(split, index, stream=_SECOND))
        return torch.stack([rts_pose(key, self.input_size) for key in keys], dim=1)

    def shown(self, images: Tensor) -> Tensor:
        """The first channel in orange, the second in blue: ``(..., 3, H, W)``."""
        colours = images.new_tensor(_COLOURS)
        return torch.einsum("...chw,cd->...dhw", images, colours)
