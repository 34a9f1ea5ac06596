"""Rotated MNIST with 12,000 training images, after Larochelle et al. 2007 (ours)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...utils.random import sample_keys
from .distorted import MnistData
from .distortions import r_pose, rotate

_SEED = 0x524F544154  # of the splits and the angles: the same for every run
_SIZES = {"train": 10_000, "val": 2_000, "test": 50_000}
_rotate = partial(rotate, max_angle=180.0)


class RotatedMnistData(MnistData):
    """MNIST digits, each rotated once by an angle that is uniform in 0 to 360 degrees.

    The original files cannot be made again, so this set follows their description. The 70,000
    digits of MNIST are permuted. The first 10,000 are for training, the next 2,000 for validation
    and the next 50,000 for the test. These rotations are fixed.

    Args:
        root, batch_size, eval_batch_size: as for :class:`.distorted.MnistData`.
        augment: rotate the training images once more, by another random angle in each epoch.
        seed: seed of the order and of the augmentation of the training samples.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        augment: bool = True,
        seed: int = 1,
    ) -> None:
        super().__init__("r", None, root, batch_size, eval_batch_size, seed=seed)
        self.augment = augment
        pose = partial(r_pose, max_angle=180.0)
        self.distortion = replace(self.distortion, apply=_rotate, pose=pose)

    def _split(self, train: Tensor, test: Tensor) -> dict[str, Tensor]:
        order = sample_keys(_SEED, 0, torch.arange(len(train) + len(test))).argsort()
        chosen = torch.cat([train, test])[order[: sum(_SIZES.values())]]
        return dict(zip(_SIZES, chosen.split(list(_SIZES.values())), strict=True))

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return rotated images ``(B, 1, 28, 28)`` in [0, 1] and labels ``(B,)``."""
        images, labels = super().samples(split, index, epoch)
        if split == "train" and self.augment:
            images = _rotate(images, sample_keys(self.seed, epoch, index), self.input_size)
        return images, labels

    def _keys(self, split: str, index: Tensor, epoch: int = 0, stream: int = 0) -> Tensor:
        return sample_keys(_SEED ^ stream, 1 + list(_SIZES).index(split), index)
