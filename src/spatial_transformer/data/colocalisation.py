"""The images of co-localisation (appendix A.2 of the paper): digits of one class, each somewhere in an image of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from ..windows import boxes_of, windows_of
from .distortions import DIGIT, DISTORTIONS, clutter, place
from .mnist import MnistData

CANVAS = 84
PATCHES = 16
SETS = ("t", "tc")


class ColocalisationData(MnistData):
    """Some test digits of one class, each at a place of its own. There is nothing to hold out: all splits are the same images.

    Args:
        digit: the class, 0 to 9.
        distortion: t, or tc with 16 patches of clutter.
        canvas: height and width of the images in pixels; None is the paper's 84.
        images: how many; the first ones of the class.
        root: as for :class:`~spatial_transformer.data.mnist.MnistData`.
        batch_size: images to a step, between which all pairs are compared.
        eval_batch_size: batch size of validation and test.
        seed: seed of the order. The images do not depend on it.

    Raises:
        UsageError: a setting out of range.
    """

    no_pictures = "it learns where the digits of its own images are, without labels, and has nothing to say of others"

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
        if distortion not in SETS:
            raise UsageError(f"data.distortion={distortion} is not one of co-localisation. Way out: one of {', '.join(SETS)}.")
        super().__init__(distortion, CANVAS if canvas is None else canvas, root, batch_size, eval_batch_size, seed=seed)
        if digit not in range(10):
            raise UsageError(f"data.digit={digit} is not a class. Way out: one of 0 to 9.")
        if self.input_size <= DIGIT:
            raise UsageError(f"data.canvas={canvas} leaves a digit no room. Way out: data.canvas={CANVAS} is the paper's.")
        if not 2 <= batch_size <= images:
            raise UsageError(
                f"data.batch_size={batch_size} is out of range: images are compared with each other. Way out: from 2 to "
                f"data.images={images}."
            )
        if distortion == "tc":
            self.distortion = replace(DISTORTIONS["tc"], apply=partial(clutter, patches=PATCHES))
        self.digit = digit
        self.images = images

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._index = (self._labels["test"] == self.digit).nonzero()[: self.images, 0]
        if len(self._index) < self.images:
            raise UsageError(
                f"data.images={self.images} are more than the {len(self._index)} test digits of {self.digit}. Way out: fewer."
            )

    def size(self, split: str) -> int:
        return self.images

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Images ``(B, 1, canvas, canvas)`` float32 in [0, 1] and the digits' windows ``(B, 3)``, whatever the split."""
        self._index = self._index.to(index.device)
        keys = self._keys("test", self._index[index])
        row, column = place(keys, self.input_size).unbind(1)
        boxes = torch.stack([column, row, column + DIGIT, row + DIGIT], dim=1)
        return self._distorted("test", self._index[index], keys), windows_of(boxes, self.input_size)

    def texts(self, labels: Tensor) -> list[str]:
        boxes = boxes_of(labels, self.input_size).round().int().tolist()
        return [f"{right - left} px at {left}, {top}" for left, top, right, _ in boxes]
