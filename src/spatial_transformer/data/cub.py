"""CUB-200-2011, the birds (section 4.3 of the paper), as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UsageError
from . import cub_files
from .batched import BatchedData
from .caching import check_workers
from .cub_cache import LONGEST, Pictures, open_pictures, shrunk
from .cub_files import Birds
from .keyed import sample_keys, uniform
from .picture_files import View

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""ImageNet's, in [0, 1]: what stands where a crop is larger than the image."""
_VALIDATION_SEED = 0x56414C


class CubData(BatchedData):
    """Birds of 200 species, or of some of them, in crops of images that were resized once and are kept in a cache.

    An image's longest side is resized to 256 pixels, or 512 for crops of 448 (A.6). A training image is the crop at a random
    place, mirrored or not; validation and test images are the crop at the centre. Nine of ten resized images are narrower than
    the crop in one direction. There the image lies within the crop, at a random place for training and else at the centre, and
    the rest has ImageNet's mean colour (ours; the paper does not say).

    The validation set is a tenth of the training images of each species, at least one, and the same whatever the settings
    (ours; the paper does not say).

    Args:
        root: folder that holds ``images.txt``; None downloads to ``data/CUB_200_2011`` on first use.
        species: which ones, by number (1 to 200) or name: "1-50", "1,4,7-9", "Laysan_Albatross,5", [1, 2]; None is all.
        size: height and width of the crops in pixels, 224 or 448.
        cache: folder for the resized images; None is ``cache`` in the root, or ``~/.cache/spatial_transformer`` where that
            cannot be written to.
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        augment: training images are crops at random places, mirrored or not; False takes the crop at the centre.
        seed: seed of order and augmentation.
        workers: processes that resize the images; None is one for each core, 16 at most.

    Attributes
        input_size: height and width of what a network gets, in pixels.
        classes: number of classes. The labels are in the order of the species' official numbers.
        names: the species of each label, read from the data's text files on first use.

    Raises:
        UsageError: a setting out of range.
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
            raise UsageError(f"data.size={size} does not exist. Way out: one of {', '.join(map(str, LONGEST))} (pixels).")
        check_workers(workers, "resized images")
        self.species = cub_files.selection(species)
        self.classes = len(self.species)
        self.input_size = size
        self.root, self.cache, self.workers = root, cache, workers
        self.augment = augment
        self._birds: Birds | None = None
        self._pictures: Pictures | None = None
        self._positions: dict[str, np.ndarray] = {}

    def prepare_data(self) -> None:
        if self._pictures is None:  # once, however often Lightning asks
            self._birds = cub_files.read_birds(cub_files.prepare(self.root), self.species)
            self._pictures = open_pictures(self._birds, self.input_size, self.cache, self.workers)

    def setup(self, stage: str | None = None) -> None:
        if self._positions:
            return
        self.prepare_data()
        birds = self._known()[0]
        held_out = validates(birds)
        train = np.flatnonzero(birds.training & ~held_out)
        if self.batch_size > len(train):
            raise UsageError(
                f"data.batch_size={self.batch_size} is larger than the training set of {len(train):,} images. Way out: a "
                "smaller one, or more species; the paper has 256."
            )
        self._positions = {"train": train, "val": np.flatnonzero(held_out), "test": np.flatnonzero(~birds.training)}

    def size(self, split: str) -> int:
        return len(self._positions[split])

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Images ``(B, 3, size, size)`` float32 in [0, 1] and labels ``(B,)`` int64, on the device of ``index``.

        Args:
            split: "train", "val" or "test".
            index: ``(B,)`` positions in the split.
            epoch: of the training split, where it is augmented; the others do not change.
        """
        birds, pictures = self._known()
        device, index = index.device, index.cpu()
        positions = self._positions[split][index.numpy()]
        if split == "train" and self.augment:
            draws = uniform(sample_keys(self.seed, epoch, index), 3).double().numpy()
            corners = _at(draws[:, :2], pictures.sizes[positions], self.input_size)
            mirrored = draws[:, 2] < 0.5
        else:
            corners = _at_centre(pictures.sizes[positions], self.input_size)
            mirrored = np.zeros(len(positions), dtype=bool)
        images = cut(pictures, positions, corners, mirrored, self.input_size, device)
        return images, torch.from_numpy(birds.labels[positions]).to(device)

    def view(self, picture: Image.Image) -> View:
        """As the test's images: the longest side resized, then the crop at the centre."""
        pixels = shrunk(picture, LONGEST[self.input_size])
        sizes = np.array([pixels.shape[:0:-1]])
        originals = np.array([picture.size])
        corner = _at_centre(sizes, self.input_size)
        one = Pictures(pixels.reshape(-1), sizes, originals, np.zeros(1, np.int64))
        image = cut(one, np.zeros(1, np.int64), corner, np.zeros(1, bool), self.input_size, torch.device("cpu"))[0]
        left, top, right, bottom = (np.concatenate([corner, corner + self.input_size]) * (originals / sizes)).flatten().tolist()
        return View(image, (left, top, right, bottom))

    def texts(self, labels: Tensor) -> list[str]:
        return [name.replace("_", " ") for name in super().texts(labels)]

    def _class_names(self) -> list[str]:
        birds = self._birds or cub_files.read_birds(cub_files.prepare(self.root), self.species)
        return birds.names

    # For measuring, never for training

    @property
    def part_names(self) -> list[str]:
        """Names of the parts that :meth:`parts` gives, in its order."""
        return cub_files.part_names(self._known()[0].root)

    def parts(self, split: str) -> Tensor:
        """Where the parts of the birds are, ``(N, 15, 3)`` float32: x, y and whether the part is to be seen.

        *Convention*: x and y are in [-1, 1] of the crop, from the left (upper) edge of its first pixel to the right (lower)
        edge of its last. CUB's coordinate c is taken as the centre of pixel c, which is c + 0.5 pixels from the image's edge.

        The third is 1 for a part that is to be seen in the crop, else 0. A part that is not to be seen in the image at all has
        x and y 0; one outside of the crop keeps its own, beyond ±1.

        Args:
            split: "val" or "test".

        Raises:
            UsageError: another split; the text files are damaged.
        """
        birds, _ = self._known()
        positions = self._measured(split)
        parts = cub_files.read_parts(birds)[positions]
        seen = parts[:, :, 2] > 0
        places = np.where(seen[:, :, None], self._in_crop(parts[:, :, :2], positions), 0)
        inside = seen & (abs(places) <= 1).all(2)
        return torch.from_numpy(np.concatenate([places, inside[:, :, None]], 2)).float()

    def boxes(self, split: str) -> Tensor:
        """The boxes around the birds, ``(N, 4)`` float32: left, top, right and bottom, as far as they are in the crop.

        *Convention*: that of :meth:`parts`.

        Args:
            split: "val" or "test".

        Raises:
            UsageError: another split; the text files are damaged.
        """
        birds, _ = self._known()
        positions = self._measured(split)
        boxes = cub_files.read_boxes(birds)[positions].reshape(-1, 2, 2)
        corners = self._in_crop(boxes.cumsum(1), positions)
        return torch.from_numpy(corners.reshape(-1, 4)).float().clamp_(-1, 1)

    def _measured(self, split: str) -> np.ndarray:
        if split not in ("val", "test"):
            raise UsageError(f"the split {split!r} has no fixed crops to measure in. Way out: val or test.")
        return self._positions[split]

    def _in_crop(self, places: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Places ``(N, P, 2)``, x and y in CUB's pixels, in [-1, 1] of the crops at the centre."""
        _, pictures = self._known()
        sizes = pictures.sizes[positions]
        scale = (sizes / pictures.originals[positions])[:, None]
        in_pixels = (places + 0.5) * scale - _at_centre(sizes, self.input_size)[:, None]
        return in_pixels / self.input_size * 2 - 1

    def _known(self) -> tuple[Birds, Pictures]:
        assert self._birds is not None
        assert self._pictures is not None
        return self._birds, self._pictures


def validates(birds: Birds) -> np.ndarray:
    """Which images validate, ``(N,)`` bool: of each species the same for every run, seed, size and choice of species."""
    order = sample_keys(_VALIDATION_SEED, 0, torch.from_numpy(birds.ids)).argsort().numpy()
    held_out = np.zeros(len(order), dtype=bool)
    for label in range(len(birds.numbers)):
        of_species = order[birds.training[order] & (birds.labels[order] == label)]
        held_out[of_species[: max(1, len(of_species) // 10)]] = True
    return held_out


# Crops
#
# A corner is the place of a crop's first pixel in the image, (x, y) in pixels. It is negative where the crop is the larger.


def _at(draws: np.ndarray, sizes: np.ndarray, size: int) -> np.ndarray:
    """Corners ``(B, 2)`` of crops that lie anywhere in images, or images in them, as draws ``(B, 2)`` in [0, 1) say."""
    slack = sizes - size
    return np.sign(slack) * (draws * (abs(slack) + 1)).astype(np.int64)


def _at_centre(sizes: np.ndarray, size: int) -> np.ndarray:
    """Corners ``(B, 2)`` of crops at the centre of images; half a pixel before it where it cannot be met."""
    slack = sizes - size
    return np.sign(slack) * (abs(slack) // 2)


def cut(
    pictures: Pictures, positions: np.ndarray, corners: np.ndarray, mirrored: np.ndarray, size: int, device: torch.device
) -> Tensor:
    """Crops ``(B, 3, size, size)`` float32 in [0, 1] on a device, with the mean colour beside the images."""
    pixels = np.zeros((len(positions), 3, size, size), np.uint8)
    # Where an image begins and ends in its crop, (B, 2) of x and y.
    first, last = np.maximum(-corners, 0), np.minimum(pictures.sizes[positions] - corners, size)
    for i, ((x0, y0), (x1, y1), (x, y)) in enumerate(zip(first.tolist(), last.tolist(), corners.tolist())):
        piece = pictures.image(positions[i])[:, y0 + y : y1 + y, x0 + x : x1 + x]
        if mirrored[i]:
            pixels[i, :, y0:y1, size - x1 : size - x0] = piece[:, :, ::-1]
        else:
            pixels[i, :, y0:y1, x0:x1] = piece
    first[mirrored, 0], last[mirrored, 0] = size - last[mirrored, 0], size - first[mirrored, 0]

    images = torch.from_numpy(pixels).to(device).float().div_(255)
    axis = torch.arange(size, device=device)
    low, high = (torch.from_numpy(ends).to(device).unsqueeze(2) for ends in (first, last))
    columns, rows = ((axis < low) | (axis >= high)).unbind(1)
    beside = columns[:, None, :] | rows[:, :, None]
    for channel, mean in zip(images.unbind(1), MEAN_COLOUR):  # in place: a second batch in memory would cost more
        channel.masked_fill_(beside, mean)
    return images
