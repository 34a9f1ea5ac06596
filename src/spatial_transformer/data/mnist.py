"""Distorted MNIST (section 4.1 of the paper) as a LightningDataModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UsageError
from . import mnist_files
from .distortions import DISTORTIONS, sample_keys

VALIDATION_SIZE = 5_000
_FIXED_SEEDS = {"val": 0x56414C, "test": 0x54455354}
"""Seeds of the fixed sets: the same for every network, every seed and every run."""

_ORDER = 0x4F52444552  # keeps the order of the samples and their distortions independent


class Draw(NamedTuple):
    """Which samples a batch is made of: all that a loader has to hand over."""

    split: str
    epoch: int
    samples: Tensor


class MnistData(pl.LightningDataModule):
    """MNIST digits, distorted in batches on the device of the model.

    The loaders deliver indices only. Images lie on the device as a whole, and :meth:`on_after_batch_transfer` distorts a
    batch of them there. A training sample depends on (seed, epoch, index) and nothing else; the validation set (the
    last 5,000 training digits) and the test set are drawn once for all.

    Args:
        distortion: r, rts, p, e, t or tc, as in section 4.1.
        canvas: height and width of the distorted image in pixels; None is the paper's.
        root: folder that holds ``MNIST/raw``; None downloads to ``data/`` on first use.
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        fresh: draw new training distortions each epoch; False keeps those of the first.
        seed: seed of training distortions and order.

    Attributes
        input_size: height and width of what a network gets, in pixels.
        classes: number of classes.

    Raises:
        UsageError: a setting out of range.
    """

    classes = 10

    def __init__(
        self,
        distortion: str = "rts",
        canvas: int | None = None,
        root: str | Path | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 1000,
        fresh: bool = True,
        seed: int = 1,
    ) -> None:
        super().__init__()
        if distortion not in DISTORTIONS:
            raise UsageError(f"data.distortion={distortion} does not exist. Way out: one of {', '.join(DISTORTIONS)}.")
        self.distortion = DISTORTIONS[distortion]
        self.input_size = self.distortion.canvas if canvas is None else canvas
        if self.input_size < self.distortion.smallest:
            raise UsageError(
                f"data.canvas={canvas} is too small: distortion {distortion} needs at least {self.distortion.smallest} px to "
                f"hold a digit. Way out: data.canvas={self.distortion.canvas} is the paper's."
            )
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UsageError(f"data.{name}={size} is not a batch size. Way out: 1 or more; the paper has 256.")
        training_size = 60_000 - VALIDATION_SIZE
        if batch_size > training_size:
            raise UsageError(
                f"data.batch_size={batch_size} is larger than the training set of {training_size:,} digits. Way out: the paper "
                "has 256."
            )
        self.root = root
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.fresh = fresh
        self.seed = seed
        self._folder: Path | None = None
        self._images: dict[str, Tensor] = {}
        self._labels: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        if self._folder is None:  # the files are proved once, however often Lightning asks
            self._folder = mnist_files.prepare(self.root)

    def setup(self, stage: str | None = None) -> None:
        if self._images:
            return
        self.prepare_data()
        assert self._folder is not None
        images, labels = mnist_files.read(self._folder, train=True)
        test_images, test_labels = mnist_files.read(self._folder, train=False)
        self._images = {"train": images[:-VALIDATION_SIZE], "val": images[-VALIDATION_SIZE:], "test": test_images}
        self._labels = {"train": labels[:-VALIDATION_SIZE], "val": labels[-VALIDATION_SIZE:], "test": test_labels}

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Distorted images ``(B, 1, canvas, canvas)`` float32 in [0, 1] and labels ``(B,)``, on the device of ``index``.

        Args:
            split: "train", "val" or "test".
            index: ``(B,)`` positions in the split.
            epoch: of the training split; the others do not change.
        """
        for tensors in (self._images, self._labels):
            for name in {split, "train"}:
                tensors[name] = tensors[name].to(index.device)
        if split == "train":
            keys = sample_keys(self.seed, epoch if self.fresh else 0, index)
        else:
            keys = sample_keys(_FIXED_SEEDS[split], 0, index)
        digits = self._images[split][index].unsqueeze(1).float() / 255
        images = self.distortion.apply(digits, keys, self.input_size, self._images["train"])
        return images, self._labels[split][index]

    def on_after_batch_transfer(self, batch: Draw, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        return self.samples(batch.split, batch.samples, batch.epoch)

    def train_dataloader(self) -> DataLoader:
        return _loader(_TrainingDraws(len(self._labels["train"]), self.batch_size, self.seed, self._progress, *self._rank()))

    def val_dataloader(self) -> DataLoader:
        return _loader(_FixedDraws("val", len(self._labels["val"]), self.eval_batch_size, *self._rank()))

    def test_dataloader(self) -> DataLoader:
        return _loader(_FixedDraws("test", len(self._labels["test"]), self.eval_batch_size, *self._rank()))

    def _progress(self) -> tuple[int, int, float]:
        """Optimiser steps done, batches to a step, and the most batches that the trainer takes of an epoch."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1, math.inf
        return trainer.global_step, trainer.accumulate_grad_batches, trainer.num_training_batches

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


class _TrainingDraws(Sampler):
    """Training batches: an order of its own for each epoch, whole batches only, this rank's share of each.

    Where to go on is read off the number of steps that training has done, so that a resumed run sees what it would have
    seen undisturbed.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, progress: Callable[[], tuple[int, int, float]], rank: int, world_size: int
    ) -> None:
        if batch_size < world_size:
            raise UsageError(
                f"data.batch_size={batch_size} is less than one sample for each of {world_size} devices. Way out: fewer "
                "devices (trainer.devices=...), or a larger batch."
            )
        self.n, self.batch_size, self.seed, self.progress = n, batch_size, seed, progress
        self.share = slice(rank, None, world_size)

    def __len__(self) -> int:
        return self.n // self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        steps, batches_to_a_step, limit = self.progress()
        # The last step of an epoch is taken with the batches that are left.
        epoch, step = divmod(steps, math.ceil(min(len(self), limit) / batches_to_a_step))
        done = step * batches_to_a_step
        order = sample_keys(self.seed ^ _ORDER, epoch, torch.arange(self.n)).argsort()
        for index in order.split(self.batch_size)[done : len(self)]:
            yield Draw("train", epoch, index[self.share])


class _FixedDraws(Sampler):
    """Each sample of a fixed set once and in order, this rank's share of each batch."""

    def __init__(self, split: str, n: int, batch_size: int, rank: int, world_size: int) -> None:
        self.split, self.batches = split, torch.arange(n).split(batch_size)
        self.share = slice(rank, None, world_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Draw]:
        for index in self.batches:
            yield Draw(self.split, 0, index[self.share])


class _Handover(Dataset):
    """The data set of a loader whose sampler already says all: it hands each draw over as it is."""

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


def _loader(sampler: _TrainingDraws | _FixedDraws) -> DataLoader:
    return DataLoader(_Handover(), batch_size=None, sampler=sampler)
