"""Base class of the data modules: loaders deliver indices, and batches are made on the device."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..utils.errors import UsageError
from ..utils.random import sample_keys

_ORDER = 0x4F52444552  # makes the order of the samples independent of what is drawn for each one


class Draw(NamedTuple):
    """The samples of a batch: all that a loader hands over."""

    split: str
    epoch: int
    samples: Tensor


class View(NamedTuple):
    """The input of a network that is made from a picture.

    Attributes
        image: ``(C, size, size)``, as from :meth:`BatchedData.samples`.
        box: its left, top, right and bottom in the picture, in pixels. It may stick out.
        note: what was changed that the picture's owner may want to know.
    """

    image: Tensor
    box: tuple[float, float, float, float]
    note: str = ""


class BatchedData(pl.LightningDataModule, ABC):
    """A LightningDataModule with the splits "train", "val" and "test".

    A subclass sets :attr:`input_size` and :attr:`classes`, and defines :meth:`size` and
    :meth:`samples`. That is enough to train. The other methods have defaults: they describe the
    data to people, to ``predict.py`` and to the run directory.

    A training sample depends on (seed, epoch, index) and nothing else: not on the batch size, the
    order, workers or devices, or on whether the run was resumed.

    Args:
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        seed: seed of the order, and of what is drawn for each sample.

    Attributes
        input_size: height and width of the network's input in pixels.
        classes: number of classes.
        shown_views: what :meth:`shown` puts side by side; empty for a single image.
        no_pictures: why :meth:`view` cannot prepare the users' own pictures; empty if it can.

    Raises:
        UsageError: a batch size is below 1.
    """

    input_size: int
    classes: int
    shown_views: str = ""
    no_pictures: str = "its data module has no method `view`"

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UsageError(f"data.{name} must be a positive integer, got {size}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed

    # What training needs

    @abstractmethod
    def size(self, split: str) -> int:
        """Return the number of samples of a split."""

    @abstractmethod
    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return the images and labels at ``index``, on its device.

        Args:
            split: "train", "val" or "test".
            index: ``(B,)`` positions in the split.
            epoch: of training. Validation and test samples do not depend on it.
        """

    def setup(self, stage: str | None = None) -> None:
        """Read what the samples are made of."""

    def digest(self) -> str:
        """Return a short hash of the content of the data, wherever it lies. Empty if unknown.

        A run is resumed, or taken for finished, only with the same data.
        """
        return ""

    # What people see

    @cached_property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [str(n) for n in range(self.classes)]

    def texts(self, labels: Tensor) -> list[str]:
        """Return labels, or predictions, as text."""
        return [self.names[label] for label in labels.tolist()]

    def shown(self, images: Tensor) -> Tensor:
        """Return images as they are shown to people, in [0, 1]."""
        return images

    def view(self, picture: Image.Image) -> View:
        """Return the network's input that is made from an RGB picture of the user.

        Raises:
            UsageError: it does not show what the network was trained for.
        """
        raise UsageError(f"Pictures cannot be used: {self.no_pictures}.")

    # Loaders

    def on_after_batch_transfer(self, batch: Draw, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        return self.samples(batch.split, batch.samples, batch.epoch)

    def train_dataloader(self) -> DataLoader:
        n, rank = self.size("train"), self._rank()
        return _loader(_TrainingDraws(n, self.batch_size, self.seed, self._progress, *rank))

    def val_dataloader(self) -> DataLoader:
        return _loader(_FixedDraws("val", self.size("val"), self.eval_batch_size, *self._rank()))

    def test_dataloader(self) -> DataLoader:
        return _loader(_FixedDraws("test", self.size("test"), self.eval_batch_size, *self._rank()))

    def _progress(self) -> tuple[int, int, float]:
        """Return the steps done, the batches per step, and the trainer's limit of an epoch."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1, math.inf
        return trainer.global_step, trainer.accumulate_grad_batches, trainer.num_training_batches

    def _rank(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def check_fits(batch_size: int, n: int) -> None:
    """Raise UsageError if a batch is larger than a training set of ``n`` samples."""
    if batch_size > n:
        raise UsageError(
            f"data.batch_size must be at most {n:,}, the size of the training set, got {batch_size:,}."
        )


def check_shares(batch_size: int, devices: int) -> None:
    """Raise UsageError if a training batch cannot be divided evenly among devices.

    The gradient is the mean over the devices of the mean over each one's share. It is the mean over
    all samples only if the shares are equal.
    """
    if batch_size % devices:
        lower = batch_size // devices * devices
        near = " or ".join(str(size) for size in (lower, lower + devices) if size)
        raise UsageError(
            f"data.batch_size must be a multiple of the {devices} devices, got {batch_size}. Use {near}."
        )


def in_order(parts: Sequence[Tensor]) -> Tensor:
    """Gather a fixed set's results from all processes, in the order of its samples.

    All processes must call it, and get the same.

    Args:
        parts: a tensor for each batch that this process evaluated, ``(share, ...)``.

    Returns:
        ``(N, ...)`` for the N samples of the set.
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
    """This rank's share of the training batches, in a new order each epoch, without the rest.

    The position follows from the number of steps that training has done, so that a resumed run sees
    the batches that it would have seen without the stop.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        progress: Callable[[], tuple[int, int, float]],
        rank: int,
        world_size: int,
    ) -> None:
        check_shares(batch_size, world_size)
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.progress = progress
        self.share = slice(rank, None, world_size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, so many that all steps have the same number."""
        batches_per_step = self.progress()[1]
        return self.n // self.batch_size // batches_per_step * batches_per_step

    def __iter__(self) -> Iterator[Draw]:
        steps, batches_per_step, limit = self.progress()
        epoch, step = divmod(steps, int(min(len(self), limit)) // batches_per_step)
        done = step * batches_per_step
        order = sample_keys(self.seed ^ _ORDER, epoch, torch.arange(self.n)).argsort()
        for index in order.split(self.batch_size)[done : len(self)]:
            yield Draw("train", epoch, index[self.share])


class _FixedDraws(Sampler):
    """This rank's share of the batches of a fixed set: each sample once, in order."""

    def __init__(self, split: str, n: int, batch_size: int, rank: int, world_size: int) -> None:
        self.split, self.batches = split, torch.arange(n).split(batch_size)
        self.share = slice(rank, None, world_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Draw]:
        for index in self.batches:
            yield Draw(self.split, 0, index[self.share])


class _Handover(Dataset):
    """A data set that returns the draws of its sampler unchanged."""

    def __getitem__(self, draw: Draw) -> Draw:
        return draw


def _loader(sampler: _TrainingDraws | _FixedDraws) -> DataLoader:
    return DataLoader(_Handover(), batch_size=None, sampler=sampler)
