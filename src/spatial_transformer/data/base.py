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

FIXED_SEEDS = {"val": 0x56414C, "test": 0x54455354}
"""Seeds of data that are drawn once and are the same for every network, seed and run."""
_ORDER = 0x4F52444552  # makes the order of the samples independent of what is drawn for each one


class BatchIndices(NamedTuple):
    """The samples of a batch, which is all that a loader yields.

    Attributes:
        split: "train", "val" or "test".
        epoch: of training.
        indices: ``(B,)`` positions in the split.
    """

    split: str
    epoch: int
    indices: Tensor


class PreprocessedPicture(NamedTuple):
    """The input of a network, made from a user's picture.

    Attributes:
        image: ``(C, size, size)``, as from :meth:`BatchedData.samples`.
        box: left, top, right and bottom of the input in the picture, in pixels. It may stick out.
        note: a change that the user should know of, such as "inverted".
    """

    image: Tensor
    box: tuple[float, float, float, float]
    note: str = ""


class BatchedData(pl.LightningDataModule, ABC):
    """A LightningDataModule with the splits "train", "val" and "test".

    A subclass sets :attr:`input_size` and :attr:`classes`, and defines :meth:`size` and
    :meth:`samples`. That is enough to train and test. Everything else is optional:

    - ``prepare_data`` and :meth:`setup` download and read files.
    - :meth:`digest` identifies the data, so that a run is resumed only with the same data.
    - :attr:`names`, :meth:`decode_labels` and :meth:`to_display` are for images, tables and logs.
    - :meth:`preprocess_picture` makes ``predict.py`` available.

    A training sample must depend on (seed, epoch, index) only, and not on the batch size, the
    order, workers, devices, or on whether the run was resumed.

    Args:
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        seed: seed of the order, and of the random numbers of each sample.

    Attributes:
        input_size: height and width of the network's input in pixels.
        classes: number of classes.
        display_views: names of what :meth:`to_display` puts side by side.

    Raises:
        UsageError: a batch size is below 1.
    """

    input_size: int
    classes: int
    display_views: str = ""

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UsageError(f"data.{name} must be a positive integer, got {size}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed

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

    # Optional

    def setup(self, stage: str | None = None) -> None:
        """Read what the samples are made of."""

    def digest(self) -> str:
        """Return a short hash of the content of the data, wherever it is. Empty if unknown."""
        return ""

    @cached_property
    def names(self) -> list[str]:
        """Names of the classes."""
        return [str(n) for n in range(self.classes)]

    def decode_labels(self, labels: Tensor) -> list[str]:
        """Return labels, or predictions, as text."""
        return [self.names[label] for label in labels.tolist()]

    def to_display(self, images: Tensor) -> Tensor:
        """Return images as people see them: grey or RGB, in [0, 1]."""
        return images

    def preprocess_picture(self, picture: Image.Image) -> PreprocessedPicture:
        """Return the network's input for a user's RGB picture.

        Raises:
            UsageError: the picture does not show what the network was trained for.
        """
        raise UsageError(f"Pictures cannot be used: {self.unsupported_reason}.")

    @property
    def unsupported_reason(self) -> str:
        """Why users' pictures cannot be used. Empty if they can."""
        is_missing = type(self).preprocess_picture is BatchedData.preprocess_picture
        return "its data module does not define preprocess_picture" if is_missing else ""

    # Loaders

    def on_after_batch_transfer(
        self, batch: BatchIndices, dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        return self.samples(batch.split, batch.indices, batch.epoch)

    def train_dataloader(self) -> DataLoader:
        rank, world_size = self._rank()
        n = self.size("train")
        limit = n // self._progress()[1]
        if self.batch_size > limit:
            raise UsageError(
                f"data.batch_size must be at most {limit:,}, as an optimizer step takes at most "
                f"the {n:,} training samples, got {self.batch_size:,}."
            )
        check_divisible(self.batch_size, world_size)
        share = slice(rank, None, world_size)
        sampler = TrainingSampler(n, self.batch_size, self.seed, self._progress, share)
        return DataLoader(_IdentityDataset(), batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_dataloader("test")

    def _eval_dataloader(self, split: str) -> DataLoader:
        rank, world_size = self._rank()
        for name in ("val", "test"):
            if self.size(name) < world_size:
                raise UsageError(
                    f"The data must have at least one sample of {name!r} for each device, got "
                    f"{self.size(name)} for {world_size}."
                )
        index = torch.arange(self.size(split))
        batches = index.split(self.eval_batch_size)
        if min(map(len, batches)) < world_size:  # a share would be empty
            batches = index.tensor_split(min(len(batches), len(index) // world_size))
        shares: Any = [BatchIndices(split, 0, index[rank::world_size]) for index in batches]
        return DataLoader(shares, batch_size=None)

    def _rank(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _progress(self) -> tuple[int, int, float]:
        """Return the progress of training, see :class:`TrainingSampler`."""
        trainer = self.trainer
        if trainer is None:
            return 0, 1, math.inf
        return trainer.global_step, trainer.accumulate_grad_batches, trainer.num_training_batches


def check_divisible(batch_size: int, devices: int) -> None:
    """Raise UsageError if a training batch cannot be divided evenly among devices.

    The gradient is the mean over devices of the mean over each device's share. It is the mean over
    all samples only if the shares are equal.
    """
    if batch_size % devices:
        lower = batch_size // devices * devices
        near = " or ".join(str(size) for size in (lower, lower + devices) if size)
        raise UsageError(
            f"data.batch_size must be a multiple of the {devices} devices, got {batch_size}. "
            f"Use {near}."
        )


def gather_in_order(parts: Sequence[Tensor]) -> Tensor:
    """Gather results on validation or test data from all processes, in the order of the samples.

    All processes must call it, and all get the same.

    Args:
        parts: a tensor for each batch that this process evaluated, ``(share, ...)``.

    Returns:
        ``(N, ...)`` for the N samples of the split.
    """
    if not dist.is_initialized():
        return torch.cat(list(parts))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, [part.cpu() for part in parts])
    batches = []
    for shares in zip(*gathered, strict=True):
        batch = shares[0].new_empty(sum(map(len, shares)), *shares[0].shape[1:])
        for rank, share in enumerate(shares):
            batch[rank :: len(shares)] = share
        batches.append(batch)
    return torch.cat(batches).to(parts[0].device)


class TrainingSampler(Sampler):
    """One rank's share of the training batches, in a new order each epoch, without the rest.

    The position follows from the progress of training, so that a resumed run sees the batches that
    it would have seen without the interruption.

    Args:
        n: number of training samples.
        batch_size: global batch size.
        seed: seed of the order.
        progress: returns the steps done, the batches per step, and the limit of batches per epoch.
        share: the samples of each batch that belong to this rank.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        progress: Callable[[], tuple[int, int, float]],
        share: slice = slice(None),
    ) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.progress, self.share = progress, share

    def __len__(self) -> int:
        """Return the number of batches in an epoch, a multiple of the batches per step."""
        batches_per_step = self.progress()[1]
        return self.n // self.batch_size // batches_per_step * batches_per_step

    def __iter__(self) -> Iterator[BatchIndices]:
        steps, batches_per_step, limit = self.progress()
        epoch, step = divmod(steps, int(min(len(self), limit)) // batches_per_step)
        done = step * batches_per_step
        order = sample_keys(self.seed ^ _ORDER, epoch, torch.arange(self.n)).argsort()
        for index in order.split(self.batch_size)[done : len(self)]:
            yield BatchIndices("train", epoch, index[self.share])


class _IdentityDataset(Dataset):
    """A data set that returns the indices of its sampler unchanged."""

    def __getitem__(self, indices: BatchIndices) -> BatchIndices:
        return indices
