"""SVHN's full house numbers (section 4.2 of the paper) as a LightningDataModule."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import UsageError
from . import svhn_files
from .batched import BatchedData
from .caching import check_workers
from .keyed import sample_keys, uniform
from .picture_files import View
from .svhn_cache import ENLARGEMENT, NO_DIGIT, Crops, crop, open_crops

VALIDATION_SIZE = 5_000
_FEW = 50_000  # below that many training images a tenth of them validates
_VALIDATION_SEED = 0x56414C
_SHIFT, _SCALE, _ROTATION, _SHEAR, _CONTRAST = 0.1, 1.25, 10, 0.2, 1.5


class SvhnData(BatchedData):
    """Whole house numbers of up to five digits, cropped once and kept in a cache.

    The validation set is drawn from the training images (``train`` and ``extra`` together) by a permutation that no setting
    changes: 5,000 of them, or a tenth where there are fewer than 50,000 (ours; the paper does not say).

    The mean over all pixels and channels of an image is taken off it. So 0, which a transformer reads outside of the image,
    is the image's mean.

    Args:
        size: height and width of the crops in pixels, 64 or 128.
        root: folder that holds ``train``, ``test`` and, if wanted, ``extra``, each with its images and ``digitStruct.mat``;
            None downloads to ``data/SVHN`` on first use.
        cache: folder for the crops; None is ``cache`` in the root, or ``~/.cache/spatial_transformer`` where that cannot be
            written to.
        extra: train on the extra images too. None: if they are there, and with no root they are downloaded.
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        augment: training images vary in place, shape and colour, see :func:`augmented` (ours; not in the paper).
        seed: seed of order and augmentation.
        workers: processes that make the crops; None is one for each core, 16 at most.
        resident: GB (10⁹ bytes) up to which the images of a split lie on the GPU as a whole; larger ones come batch by batch.

    Attributes
        input_size: height and width of what a network gets, in pixels.
        classes: number of classes of a position: ten digits and "no digit", which is the last.

    Raises:
        UsageError: a setting out of range.
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
            raise UsageError(f"data.size={size} does not exist. Way out: one of {', '.join(map(str, ENLARGEMENT))} (pixels).")
        check_workers(workers, "crops")
        self.input_size = size
        self.root, self.cache, self.extra, self.workers = root, cache, extra, workers
        self.augment = augment
        self.resident = resident
        self._parts: list[Crops] = []
        self._sources: dict[str, _Source] = {}
        self._resident_images: dict[tuple[str, torch.device], Tensor] = {}
        self._labels: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        if not self._parts:  # once, however often Lightning asks
            folders = svhn_files.prepare(self.root, self.extra)
            self._parts = [open_crops(folder, self.input_size, self.cache, self.workers) for folder in folders]

    def setup(self, stage: str | None = None) -> None:
        if self._sources:
            return
        self.prepare_data()
        train, test, *extra = self._parts
        known = _Source([train, *extra])
        held_out = validation_positions(len(known.positions))
        rest = np.setdiff1d(known.positions, held_out)
        if self.batch_size > len(rest):
            raise UsageError(
                f"data.batch_size={self.batch_size} is larger than the training set of {len(rest):,} images. Way out: the "
                "paper has 128."
            )
        self._sources = {"train": known.at(rest), "val": known.at(held_out), "test": _Source([test])}
        self._labels = {split: torch.from_numpy(source.labels()).long() for split, source in self._sources.items()}

    def size(self, split: str) -> int:
        return len(self._labels[split])

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Images ``(B, 3, size, size)`` float32, of mean 0 each, and labels ``(B, 5)`` int64, on the device of ``index``.

        Without the mean an image's values lie in [0, 1]. Labels are the digits from left to right, then 10 for "no digit".

        Args:
            split: "train", "val" or "test".
            index: ``(B,)`` positions in the split.
            epoch: of the training split, where it is augmented; the others do not change.
        """
        self._labels[split] = self._labels[split].to(index.device)
        images = self._images(split, index).float().div_(255)
        if split == "train" and self.augment:
            images = augmented(images, sample_keys(self.seed, epoch, index))
        return images.sub_(images.mean((1, 2, 3), keepdim=True)), self._labels[split][index]

    def view(self, picture: Image.Image) -> View:
        """The whole picture, resized as the crops are: it should show a number and, at each side, some wall around it."""
        box = (0.0, 0.0, float(picture.width), float(picture.height))
        pixels = crop(picture, np.array(box), 1, self.input_size)
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float().div_(255)
        return View(image - image.mean(), box)

    def shown(self, images: Tensor) -> Tensor:
        """In [0, 1], about a medium grey: the mean that was taken off is not known any more."""
        return (images + 0.5).clamp(0, 1)

    def texts(self, labels: Tensor) -> list[str]:
        return ["".join(self.names[label] for label in number) for number in labels.tolist()]

    def _class_names(self) -> list[str]:
        return ["" if label == NO_DIGIT else str(label) for label in range(self.classes)]

    def _images(self, split: str, index: Tensor) -> Tensor:
        """Pixels ``(B, 3, size, size)`` uint8 on the index's device."""
        source, device = self._sources[split], index.device
        if device.type != "cpu" and source.bytes() <= self.resident * 1e9:
            if (split, device) not in self._resident_images:
                self._resident_images[split, device] = source.on(device)
            return self._resident_images[split, device][index]
        return torch.from_numpy(source.images(index.cpu().numpy())).to(device)


class _Source:
    """Some of the images of one or several parts of the data set, in any order.

    Args:
        parts: they are counted through, one after the other.
        positions: ``(N,)`` in that count; None is all.
    """

    def __init__(self, parts: list[Crops], positions: np.ndarray | None = None) -> None:
        self.parts = parts
        self.starts = np.cumsum([0] + [len(part.labels) for part in parts])
        self.positions = np.arange(self.starts[-1]) if positions is None else positions

    def at(self, positions: np.ndarray) -> _Source:
        return _Source(self.parts, positions)

    def labels(self) -> np.ndarray:
        return np.concatenate([part.labels for part in self.parts])[self.positions]

    def bytes(self) -> int:
        return len(self.positions) * self.parts[0].images[0].nbytes

    def images(self, index: np.ndarray) -> np.ndarray:
        """Pixels ``(B, 3, size, size)`` uint8."""
        positions = self.positions[index]
        pixels = np.empty((len(positions), *self.parts[0].images.shape[1:]), np.uint8)
        for part, start, end in zip(self.parts, self.starts, self.starts[1:]):
            here = (positions >= start) & (positions < end)
            pixels[here] = part.images[positions[here] - start]
        return pixels

    def on(self, device: torch.device) -> Tensor:
        """All pixels on a device; carried there in pieces, so that the host never holds them all."""
        pixels = torch.empty((len(self.positions), *self.parts[0].images.shape[1:]), dtype=torch.uint8, device=device)
        for start in range(0, len(pixels), 4096):
            index = np.arange(start, min(start + 4096, len(pixels)))
            pixels[start : start + 4096] = torch.from_numpy(self.images(index)).to(device)
        return pixels


def validation_positions(n: int) -> np.ndarray:
    """Which of ``n`` training images validate, ``(V,)`` in ascending order: the same for every run, seed and size."""
    order = sample_keys(_VALIDATION_SEED, 0, torch.arange(n)).argsort()
    return order[: VALIDATION_SIZE if n >= _FEW else max(1, n // 10)].sort().values.numpy()


def augmented(images: Tensor, keys: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` in [0, 1] changed as the keys ``(B,)`` say, so that a number stays readable.

    In place: shifted by up to 10 % of the sides, each side scaled by 1/1.25 to 1.25, turned by up to 10 degrees, sheared by
    up to 0.2. Where that leaves the image, the pixels at its edge go on. In colour: contrast scaled by 1/1.5 to 1.5, colours
    from their own over grey to the opposite, and in every second image dark for light: digits are found in any colour on any
    other.
    """
    draws = uniform(keys, 9) * 2 - 1
    angle, shear = math.radians(_ROTATION) * draws[:, 0], _SHEAR * draws[:, 1]
    across, along = torch.exp(math.log(_SCALE) * draws[:, 2:4]).unbind(1)
    x, y = (2 * _SHIFT * draws[:, 4:6]).unbind(1)  # the sides are 2 long in these coordinates
    cos, sin = angle.cos(), angle.sin()
    rows = [across * cos, along * (shear * cos - sin), x, across * sin, along * (shear * sin + cos), y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, colour, negative = (column.view(-1, 1, 1, 1) for column in draws[:, 6:].unbind(1))
    grey = moved.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    moved = (grey - mean + (moved - grey) * colour) * torch.exp(math.log(_CONTRAST) * contrast)
    return (mean + moved * negative.sign()).clamp_(0, 1)
