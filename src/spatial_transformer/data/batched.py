"""Data whose loaders deliver indices only: batches are made where the model is, all at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UsageError
from .keyed import sample_keys
from .picture_files import View

_ORDER = 0x4F52444552  # keeps the order of the samples and what is drawn for each independent


class Draw(NamedTuple):
    """Which samples a batch is made of: all that a loader has to hand over."""

    split: str
    epoch: int
    samples: Tensor


class BatchedData(pl.LightningDataModule, ABC):
    """A LightningDataModule of three splits, "train", "val" and "test", with batches made by :meth:`samples`.

    A training sample depends on (seed, epoch, index) and nothing else: not on batch size, order, workers or devices, or on
    whether the run was resumed.

    Args:
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        seed: seed of the order, and of what is drawn for each sample.

    Attributes
        input_size: height and width of what a network gets, in pixels.
        classes: number of classes.
        no_pictures: why :meth:`view` cannot make one's own pictures fit; empty where it can.

    Raises:
        UsageError: a batch size below 1.
    """

    input_size: int
    classes: int
    no_pictures: str = ""

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UsageError(f"data.{name}={size} is not a batch size. Way out: 1 or more.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self._names: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Reads what samples are made of; nothing, where they are drawn."""

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of samples of a split."""

    @abstractmethod
    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Images and labels at ``index``, ``(B,)`` positions in the split, on its device."""

    def shown(self, images: Tensor) -> Tensor:
        """Images as people are shown them, in [0, 1]."""
        return images

    @abstractmethod
    def view(self, picture: Image.Image) -> View:
        """What a network gets of a picture of one's own, in RGB.

        Raises:
            UsageError: it does not show what the network was trained for.
        """

    @property
    def names(self) -> list[str]:
        """What each class is called."""
        if not self._names:
            self._names = self._class_names()
        return self._names

    @names.setter
    def names(self, names: list[str]) -> None:
        self._names = names

    def _class_names(self) -> list[str]:
        return [str(n) for n in range(self.classes)]

    def texts(self, labels: Tensor) -> list[str]:
        """Labels, or predictions, as people write them."""
        return [self.names[label] for label in labels.tolist()]

    def on_after_batch_transfer(self, batch: Draw, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        return self.samples(batch.split, batch.samples, batch.epoch)

    def train_dataloader(self) -> DataLoader:
        return _loader(_TrainingDraws(self.size("train"), self.batch_size, self.seed, self._progress, *self._rank()))

    def val_dataloader(self) -> DataLoader:
        return _loader(_FixedDraws("val", self.size("val"), self.eval_batch_size, *self._rank()))

    def test_dataloader(self) -> DataLoader:
        return _loader(_FixedDraws("test", self.size("test"), self.eval_batch_size, *self._rank()))

    def _progress(self) -> tuple[int, int, float]:
        """Optimiser steps done, batches to a step, and the most batches that the trainer takes of an epoch."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1, math.inf
        return trainer.global_step, trainer.accumulate_grad_batches, trainer.num_training_batches

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def check_shares(batch_size: int, devices: int) -> None:
    """Refuses a training batch that cannot be shared out evenly.

    The gradient is the mean over devices of the mean over each one's share: that over all samples if shares are equal.

    Raises:
        UsageError: it cannot.
    """
    if batch_size % devices:
        near = [size for size in (batch_size // devices * devices, -(-batch_size // devices) * devices) if size]
        raise UsageError(
            f"data.batch_size={batch_size} cannot be shared out evenly to {devices} devices. Way out: data.batch_size="
            f"{' or '.join(map(str, near))}, or another number of devices."
        )


def in_order(parts: Sequence[Tensor]) -> Tensor:
    """What belongs to the samples of a fixed set, in their order, from what each process has of its share of each batch.

    To be called in all processes; gives the same in all.

    Args:
        parts: a tensor for each batch that was evaluated here, ``(share, ...)``.

    Returns:
        ``(N, ...)``, N samples of the set.
    """
    if not dist.is_initialized():
        return torch.cat(list(parts))
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, [part.cpu() for part in parts])
    batches = []
    for shares in zip(*everywhere, strict=True):
        whole = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
        for rank, share in enumerate(shares):
            whole[rank :: len(shares)] = share
        batches.append(whole)
    return torch.cat(batches).to(parts[0].device)


class _TrainingDraws(Sampler):
    """Training batches: an order of its own for each epoch, whole batches only, this rank's share of each.

    Where to go on is read off the number of steps that training has done, so that a resumed run sees what it would have
    seen undisturbed.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, progress: Callable[[], tuple[int, int, float]], rank: int, world_size: int
    ) -> None:
        check_shares(batch_size, world_size)
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
