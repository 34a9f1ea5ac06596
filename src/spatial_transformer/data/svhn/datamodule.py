"""SVHN's full house numbers (section 4.2 of the paper) as a LightningDataModule."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...utils.errors import UsageError
from ...utils.random import sample_keys, uniform
from ..base import FIXED_SEEDS, BatchedData, PreprocessedPicture
from .crops import ENLARGEMENT, NO_DIGIT, Crops, crop, open_crops
from .files import prepare

VALIDATION_SIZE = 5_000
_SMALL = 50_000  # of fewer training images, a tenth is for validation
_SHIFT, _SCALE, _ROTATION, _SHEAR, _CONTRAST = 0.1, 1.25, 10, 0.2, 1.5


class SvhnData(BatchedData):
    """House numbers of up to five digits, cropped once and kept in a cache.

    The validation set is a fixed random part of the training images (``train`` and ``extra``
    together): 5,000 of them, or a tenth if there are fewer than 50,000 (the tenth is ours).

    The mean over all pixels and channels is subtracted from each image. So 0, which a transformer
    reads outside the image, is the image's mean.

    A label is 0 to 9, or 10 for "no digit", at each of five positions.

    Args:
        size: height and width of the crops in pixels, 64 or 128.
        root: directory that contains ``train``, ``test`` and optionally ``extra``, each with its
            images and ``digitStruct.mat``, or the directory above it if it is called ``SVHN``.
            None is ``$STN_DATA``. Without that, SVHN is downloaded to ``data/SVHN`` on first use.
        cache: directory for the crops. None is ``cache`` in the directory of SVHN, or
            ``~/.cache/spatial_transformer`` if that is not writable.
        extra: train on the extra images too. None uses them if they exist or are downloaded.
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        augment: apply :func:`augment` to training images (ours; not in the paper).
        seed: seed of order and augmentation.
        workers: processes that make the crops. None is one per core, at most 16.
        resident: GB (10⁹ bytes) up to which a split's images stay on the GPU. Larger splits are
            copied batch by batch.

    Raises:
        UsageError: a setting is out of range.
    """

    classes = NO_DIGIT + 1

    def __init__(
        self,
        size: int = 64,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        extra: bool | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        augment: bool = False,
        seed: int = 1,
        workers: int | None = None,
        resident: float = 4.0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        if size not in ENLARGEMENT:
            sizes = " or ".join(map(str, ENLARGEMENT))
            raise UsageError(f"data.size must be {sizes} pixels, got {size}.")
        self.input_size = size
        self.names = [*map(str, range(NO_DIGIT)), ""]
        self.root, self.cache, self.extra, self.workers = root, cache, extra, workers
        self.augment = augment
        self.resident = resident
        self._splits: dict[str, _Split] = {}
        self._labels: dict[str, Tensor] = {}
        self._resident: dict[str, Tensor] = {}

    @cached_property
    def parts(self) -> list[Crops]:
        """The crops of train, test and, if used, extra, made on first use."""
        directories = prepare(self.root, self.extra)
        return [open_crops(d, self.input_size, self.cache, self.workers) for d in directories]

    def prepare_data(self) -> None:
        self.parts  # noqa: B018

    def setup(self, stage: str | None = None) -> None:
        if self._splits:
            return
        train, test, *extra = self.parts
        n = len(train.labels) + sum(len(part.labels) for part in extra)
        held_out = validation_positions(n)
        rest = np.setdiff1d(np.arange(n), held_out)
        self._splits = {
            "train": _Split([train, *extra], rest),
            "val": _Split([train, *extra], held_out),
            "test": _Split([test], np.arange(len(test.labels))),
        }
        for name, split in self._splits.items():
            self._labels[name] = torch.from_numpy(split.labels()).long()

    def digest(self) -> str:
        digests = " ".join(part.digest for part in self.parts)  # train is the first
        return hashlib.sha256(digests.encode()).hexdigest()[:16]

    def size(self, split: str) -> int:
        return len(self._splits[split].positions)

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images ``(B, 3, size, size)`` of mean 0, and labels ``(B, 5)``."""
        self._labels[split] = labels = self._labels[split].to(index.device)
        images = self._pixels(split, index).float().div_(255)
        if split == "train" and self.augment:
            images = augment(images, sample_keys(self.seed, epoch, index))
        return images.sub_(images.mean((1, 2, 3), keepdim=True)), labels[index]

    def _pixels(self, split: str, index: Tensor) -> Tensor:
        """Return pixels ``(B, 3, size, size)`` uint8 on the device of ``index``."""
        source = self._splits[split]
        n_bytes = 3 * self.input_size**2 * len(source.positions)
        if index.device.type == "cpu" or n_bytes > self.resident * 1e9:
            return torch.from_numpy(source.images(index.cpu().numpy())).to(index.device)
        if split not in self._resident:
            pixels = source.images(np.arange(len(source.positions)))
            self._resident[split] = torch.from_numpy(pixels).to(index.device)
        return self._resident[split][index]

    def decode_labels(self, labels: Tensor) -> list[str]:
        return ["".join(self.names[label] for label in number) for number in labels.tolist()]

    def to_display(self, images: Tensor) -> Tensor:
        """Return images with a mean of 0.5, as the mean that was subtracted is not known."""
        return (images + 0.5).clamp(0, 1)

    def preprocess_picture(self, picture: Image.Image) -> PreprocessedPicture:
        """Return the whole picture, resized. It should show a number with some wall around it."""
        box = (0.0, 0.0, float(picture.width), float(picture.height))
        pixels = crop(picture, np.array(box), 1, self.input_size)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float().div_(255)
        return PreprocessedPicture(image - image.mean(), box)


class _Split:
    """Some images of one or several parts.

    Args:
        parts: the crops of the parts.
        positions: ``(N,)`` positions in the concatenated parts.
    """

    def __init__(self, parts: list[Crops], positions: np.ndarray) -> None:
        self.parts = parts
        self.starts = np.cumsum([0] + [len(part.labels) for part in parts])
        self.positions = positions

    def labels(self) -> np.ndarray:
        return np.concatenate([part.labels for part in self.parts])[self.positions]

    def images(self, index: np.ndarray) -> np.ndarray:
        """Return pixels ``(B, 3, size, size)`` uint8."""
        positions = self.positions[index]
        pixels = np.empty((len(positions), *self.parts[0].images.shape[1:]), np.uint8)
        for part, start, end in zip(self.parts, self.starts, self.starts[1:]):
            inside = (positions >= start) & (positions < end)
            pixels[inside] = part.images[positions[inside] - start]
        return pixels


def validation_positions(n: int) -> np.ndarray:
    """Return which of ``n`` training images are for validation, in ascending order.

    They are the same for every run, seed and size.
    """
    order = sample_keys(FIXED_SEEDS["val"], 0, torch.arange(n)).argsort()
    return order[: VALIDATION_SIZE if n >= _SMALL else max(1, n // 10)].sort().values.numpy()


def augment(images: Tensor, keys: Tensor) -> Tensor:
    """Change the geometry and the colours of images at random, so that a number stays readable.

    Geometry: shift by up to 10 % of the sides, scale of each side by 1/1.25 to 1.25, rotation by up
    to 10 degrees, shear by up to 0.2. Outside the image, the pixels at its edge are repeated.
    Colour: scale of the contrast by 1/1.5 to 1.5, scale of the colours by -1 to 1 about grey,
    inversion of every second image. Digits of any colour occur on any other.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        keys: ``(B,)``, see :func:`~spatial_transformer.utils.random.sample_keys`.
    """
    draws = uniform(keys, 9) * 2 - 1
    angle, shear = math.radians(_ROTATION) * draws[:, 0], _SHEAR * draws[:, 1]
    across, along = torch.exp(math.log(_SCALE) * draws[:, 2:4]).unbind(1)
    x, y = (2 * _SHIFT * draws[:, 4:6]).unbind(1)  # the sides are 2 long
    cos, sin = angle.cos(), angle.sin()
    rows = [across * cos, along * (shear * cos - sin), x]
    rows += [across * sin, along * (shear * sin + cos), y]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, colour, negative = (column.view(-1, 1, 1, 1) for column in draws[:, 6:].unbind(1))
    grey = moved.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    moved = (grey - mean + (moved - grey) * colour) * torch.exp(math.log(_CONTRAST) * contrast)
    return (mean + moved * negative.sign()).clamp_(0, 1)
