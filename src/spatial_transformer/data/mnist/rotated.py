"""Rotated MNIST with 12,000 training images, after Larochelle et al. 2007 (ours)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...utils.random import sample_keys
from . import files
from .distorted import MnistData
from .distortions import rotate

_SEED = 0x524F544154  # of the splits and the angles: the same for every run
_SIZES = {"train": 10_000, "val": 2_000, "test": 50_000}


class RotatedMnistData(MnistData):
    """MNIST digits, each rotated once by an angle that is uniform in 0 to 360 degrees.

    The original files cannot be made again, so this set follows their description. The 70,000
    digits of MNIST are permuted. The first 10,000 are for training, the next 2,000 for validation
    and the next 50,000 for the test. All rotations are fixed.

    Args:
        root, batch_size, eval_batch_size: as for :class:`.distorted.MnistData`.
        seed: seed of the order of the training samples.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        seed: int = 1,
    ) -> None:
        super().__init__("r", None, root, batch_size, eval_batch_size, seed=seed)
        # The angle of the digits is not that of R.
        self.distortion = replace(
            self.distortion, apply=partial(rotate, max_angle=180.0), pose=None
        )

    def setup(self, stage: str | None = None) -> None:
        if self._images:
            return
        root = files.prepare(self.root)
        parts = zip(*(files.read(root, is_train) for is_train in (True, False)), strict=True)
        order = sample_keys(_SEED, 0, torch.arange(70_000)).argsort()
        for tensors, part in zip((self._images, self._labels), parts, strict=True):
            splits = torch.cat(part)[order][: sum(_SIZES.values())].split(list(_SIZES.values()))
            tensors.update(zip(_SIZES, splits, strict=True))

    def _keys(self, split: str, index: Tensor, epoch: int = 0, stream: int = 0) -> Tensor:
        return sample_keys(_SEED ^ stream, 1 + list(_SIZES).index(split), index)
