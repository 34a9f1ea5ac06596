"""Images for co-localisation (appendix A.2 of the paper): digits of one class, one per image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...geometry import box_to_theta
from ...utils.errors import UsageError
from .distorted import MnistData
from .distortions import DIGIT, DISTORTIONS, clutter, digit_corners

CANVAS = 84
PATCHES = 16
_DISTORTIONS = ("t", "tc")


class ColocalisationData(MnistData):
    """Some test digits of one class, each at a random location. All splits are the same images.

    Args:
        digit: the class, 0 to 9.
        distortion: t, or tc with 16 patches of clutter.
        canvas: height and width of the images in pixels. None is the paper's 84.
        images: number of images, the first ones of the class.
        root: as for :class:`~spatial_transformer.data.mnist.MnistData`.
        batch_size: images per step, all pairs of which are compared.
        eval_batch_size: batch size of validation and test.
        seed: seed of the order. The images do not depend on it.

    Raises:
        UsageError: a setting is out of range.
    """

    unsupported_reason = "it only learns where the digits of its own images are"

    def __init__(
        self,
        digit: int = 0,
        distortion: str = "t",
        canvas: int | None = None,
        images: int = 100,
        root: str | Path | None = None,
        batch_size: int = 50,
        eval_batch_size: int = 100,
        seed: int = 1,
    ) -> None:
        if distortion not in _DISTORTIONS:
            known = " or ".join(_DISTORTIONS)
            raise UsageError(f"data.distortion must be {known}, got {distortion}.")
        canvas = CANVAS if canvas is None else canvas
        super().__init__(distortion, canvas, root, batch_size, eval_batch_size, seed=seed)
        if batch_size < 2:
            raise UsageError(f"data.batch_size must be at least 2 to form pairs, got {batch_size}.")
        if distortion == "tc":
            self.distortion = replace(DISTORTIONS["tc"], apply=partial(clutter, patches=PATCHES))
        self.digit = digit
        self.images = images

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._index = (self._labels["test"] == self.digit).nonzero()[: self.images, 0]
        if len(self._index) < self.images:
            raise UsageError(
                f"data.images must be at most {len(self._index)}, the number of test digits of "
                f"class {self.digit}, got {self.images}."
            )

    def size(self, split: str) -> int:
        return self.images

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images ``(B, 1, canvas, canvas)`` and θ of the digits' boxes, ``(B, 3)``."""
        digits = self._index.to(index.device)[index]
        keys = self._keys("test", digits)
        row, column = digit_corners(keys, self.input_size).unbind(1)
        boxes = torch.stack([column, row, column + DIGIT, row + DIGIT], dim=1)
        return self._distort("test", digits, keys), box_to_theta(boxes, self.input_size)
