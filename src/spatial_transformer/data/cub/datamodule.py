"""CUB-200-2011, the birds (section 4.3 of the paper), as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...utils.errors import UsageError
from ...utils.random import sample_keys, uniform
from ..base import FIXED_SEEDS, BatchedData, PreprocessedPicture
from . import files
from .files import Birds
from .images import LONGEST, Images, open_images, resize

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""ImageNet's mean, in [0, 1]: the colour of a crop outside the image."""


class CubData(BatchedData):
    """Birds of 200 species, or of some of them, in crops of images that are resized once.

    The longest side of an image is resized to 256 pixels, or 512 for crops of 448 (A.6). A training
    image is a random crop, mirrored or not. Validation and test images are centre crops. Nine of
    ten resized images are narrower than the crop in one direction. Such an image is placed within
    the crop, at random for training and else at the centre. The rest has ImageNet's mean colour
    (ours; the paper does not say).

    The validation set is a tenth of the training images of each species, at least one. It does not
    depend on the settings (ours; the paper does not say). Labels are in the order of the species'
    official numbers.

    Args:
        root: directory that contains ``images.txt``, or the directory above it if it is called
            ``CUB_200_2011``. None is ``$STN_DATA``. Without that, CUB is downloaded to
            ``data/CUB_200_2011`` on first use.
        species: numbers (1 to 200) or names: "1-50", "1,4,7-9", "Laysan_Albatross,5", [1, 2]. None
            is all.
        size: height and width of the crops in pixels, 224 or 448.
        cache: directory for the resized images. None is ``cache`` in the directory of CUB, or
            ``~/.cache/spatial_transformer`` if that is not writable.
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        augment: training images are random crops, mirrored or not. False takes centre crops.
        seed: seed of order and augmentation.
        workers: processes that resize the images. None is one per core, at most 16.

    Raises:
        UsageError: a setting is out of range.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        species: str | int | Sequence[str | int] | None = None,
        size: int = 224,
        cache: str | Path | None = None,
        batch_size: int = 256,
        eval_batch_size: int = 100,
        augment: bool = True,
        seed: int = 1,
        workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        if size not in LONGEST:
            sizes = " or ".join(map(str, LONGEST))
            raise UsageError(f"data.size must be {sizes} pixels, got {size}.")
        self.species = files.parse_species(species)
        self.classes = len(self.species)
        self.input_size = size
        self.root, self.cache, self.workers = root, cache, workers
        self.augment = augment
        self._positions: dict[str, np.ndarray] = {}

    @cached_property
    def birds(self) -> Birds:
        """The images of the species, read on first use."""
        return files.read_birds(files.prepare(self.root), self.species)

    @cached_property
    def images(self) -> Images:
        """The resized images, made on first use."""
        return open_images(self.birds, self.input_size, self.cache, self.workers)

    def prepare_data(self) -> None:
        self.images  # noqa: B018

    def setup(self, stage: str | None = None) -> None:
        if self._positions:
            return
        self.prepare_data()
        held_out = validation_mask(self.birds)
        train = np.flatnonzero(self.birds.training & ~held_out)
        self._positions = {
            "train": train,
            "val": np.flatnonzero(held_out),
            "test": np.flatnonzero(~self.birds.training),
        }

    def digest(self) -> str:
        return self.images.digest[:16]

    def size(self, split: str) -> int:
        return len(self._positions[split])

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images ``(B, 3, size, size)`` in [0, 1], and labels ``(B,)``."""
        device, index = index.device, index.cpu()
        positions = self._positions[split][index.numpy()]
        sizes = self.images.sizes[positions]
        if split == "train" and self.augment:
            draws = uniform(sample_keys(self.seed, epoch, index), 3).double().numpy()
            corners = _random_corners(draws[:, :2], sizes, self.input_size)
            is_mirrored = draws[:, 2] < 0.5
        else:
            corners = _centre_corners(sizes, self.input_size)
            is_mirrored = np.zeros(len(positions), dtype=bool)
        images = cut_crops(self.images, positions, corners, is_mirrored, self.input_size, device)
        return images, torch.from_numpy(self.birds.labels[positions]).to(device)

    @cached_property
    def names(self) -> list[str]:
        return self.birds.names

    def decode_labels(self, labels: Tensor) -> list[str]:
        return [name.replace("_", " ") for name in super().decode_labels(labels)]

    def preprocess_picture(self, picture: Image.Image) -> PreprocessedPicture:
        """Return the centre crop, as of a test image."""
        pixels = resize(picture, LONGEST[self.input_size])
        sizes, originals = np.array([pixels.shape[:0:-1]]), np.array([picture.size])
        corner = _centre_corners(sizes, self.input_size)
        start, is_mirrored = np.zeros(1, np.int64), np.zeros(1, bool)
        images = Images(pixels.reshape(-1), sizes, originals, start)
        device = torch.device("cpu")
        image = cut_crops(images, start, corner, is_mirrored, self.input_size, device)[0]
        box = np.concatenate([corner, corner + self.input_size]) * (originals / sizes)
        left, top, right, bottom = box.flatten().tolist()
        return PreprocessedPicture(image, (left, top, right, bottom))

    # Annotations of validation and test images, which are never used in training

    @property
    def part_names(self) -> list[str]:
        """Names of the parts in the order of :meth:`parts`."""
        return files.part_names(self.birds.root)

    def parts(self, split: str) -> Tensor:
        """Return the birds' parts: ``(N, 15, 3)`` float32, x, y and whether it is visible.

        *Convention*: x and y are in [-1, 1] of the crop, from the left (upper) edge of its first
        pixel to the right (lower) edge of its last. CUB's coordinate c is taken as the centre of
        pixel c, which is c + 0.5 pixels from the image's edge.

        The third value is 1 for a part that is visible in the crop, else 0. A part that is not
        visible in the image has x and y 0. A part outside the crop has x or y beyond ±1.

        Args:
            split: "val" or "test".

        Raises:
            UsageError: another split, or the text files are damaged.
        """
        positions = self._fixed_positions(split)
        parts = files.read_parts(self.birds)[positions]
        is_visible = parts[:, :, 2] > 0
        points = np.where(is_visible[:, :, None], self._in_crop(parts[:, :, :2], positions), 0)
        is_inside = is_visible & (abs(points) <= 1).all(2)
        return torch.from_numpy(np.concatenate([points, is_inside[:, :, None]], 2)).float()

    def boxes(self, split: str) -> Tensor:
        """Return the boxes around the birds, clamped to the crop.

        *Convention*: ``(N, 4)`` float32: left, top, right and bottom, as in :meth:`parts`.

        Args:
            split: "val" or "test".

        Raises:
            UsageError: another split, or the text files are damaged.
        """
        positions = self._fixed_positions(split)
        boxes = files.read_boxes(self.birds)[positions].reshape(-1, 2, 2)
        corners = self._in_crop(boxes.cumsum(1), positions)
        return torch.from_numpy(corners.reshape(-1, 4)).float().clamp_(-1, 1)

    def _fixed_positions(self, split: str) -> np.ndarray:
        if split not in ("val", "test"):
            raise UsageError(f"Only the crops of val and test are fixed, got split {split!r}.")
        return self._positions[split]

    def _in_crop(self, points: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Convert ``(N, P, 2)`` x and y from CUB's pixels to [-1, 1] of the crops at the centre."""
        sizes = self.images.sizes[positions]
        scale = (sizes / self.images.originals[positions])[:, None]
        corners = _centre_corners(sizes, self.input_size)[:, None]
        return ((points + 0.5) * scale - corners) / self.input_size * 2 - 1


def validation_mask(birds: Birds) -> np.ndarray:
    """Return which images are for validation, ``(N,)`` bool.

    For each species they are the same for every run, seed, size and choice of species.
    """
    order = sample_keys(FIXED_SEEDS["val"], 0, torch.from_numpy(birds.ids)).argsort().numpy()
    is_held_out = np.zeros(len(order), dtype=bool)
    for label in range(len(birds.numbers)):
        training = order[birds.training[order] & (birds.labels[order] == label)]
        is_held_out[training[: max(1, len(training) // 10)]] = True
    return is_held_out


# A corner is the position of a crop's first pixel in the image, (x, y) in pixels. It is negative
# where the crop is larger than the image.


def _random_corners(draws: np.ndarray, sizes: np.ndarray, size: int) -> np.ndarray:
    """Return corners ``(B, 2)`` of crops anywhere in images, or of images anywhere in crops.

    Args:
        draws: ``(B, 2)`` in [0, 1).
        sizes: ``(B, 2)``, widths and heights of the images.
        size: of the crops.
    """
    slack = sizes - size
    return np.sign(slack) * (draws * (abs(slack) + 1)).astype(np.int64)


def _centre_corners(sizes: np.ndarray, size: int) -> np.ndarray:
    """Return corners ``(B, 2)`` of crops at the centre, or half a pixel before it."""
    slack = sizes - size
    return np.sign(slack) * (abs(slack) // 2)


def cut_crops(
    images: Images,
    positions: np.ndarray,
    corners: np.ndarray,
    is_mirrored: np.ndarray,
    size: int,
    device: torch.device,
) -> Tensor:
    """Cut crops ``(B, 3, size, size)`` float32 in [0, 1], with the mean colour around images.

    Args:
        images: all images.
        positions: ``(B,)``, which of them to crop.
        corners: ``(B, 2)``.
        is_mirrored: ``(B,)`` bool.
        size: height and width of the crops in pixels.
        device: of the result.
    """
    pixels = np.zeros((len(positions), 3, size, size), np.uint8)
    # Where an image begins and ends in its crop, (B, 2) of x and y.
    first = np.maximum(-corners, 0)
    last = np.minimum(images.sizes[positions] - corners, size)
    for crop, position, corner, start, end in zip(pixels, positions, corners, first, last):
        (x0, y0), (x1, y1), (x, y) = start, end, corner
        crop[:, y0:y1, x0:x1] = images.image(position)[:, y0 + y : y1 + y, x0 + x : x1 + x]

    crops = torch.from_numpy(pixels).to(device).float().div_(255)
    axis = torch.arange(size, device=device)
    low, high = (torch.from_numpy(ends).to(device).unsqueeze(2) for ends in (first, last))
    columns, rows = ((axis < low) | (axis >= high)).unbind(1)
    outside = columns[:, None, :] | rows[:, :, None]
    for channel, mean in zip(crops.unbind(1), MEAN_COLOUR):  # in place, to save memory
        channel.masked_fill_(outside, mean)
    mirrored = torch.from_numpy(is_mirrored).to(device)
    crops[mirrored] = crops[mirrored].flip(3)
    return crops
