"""Distorted MNIST (section 4.1 of the paper) as a LightningDataModule."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from ...utils.errors import UsageError
from ...utils.random import sample_keys
from ..base import FIXED_SEEDS, BatchedData, PreprocessedPicture
from . import files
from .distortions import DISTORTIONS
from .photos import preprocess_photo

VALIDATION_SIZE = 5_000


class MnistData(BatchedData):
    """MNIST digits, distorted in batches on the device of the model.

    All images stay on the device. Training samples are distorted differently in each epoch. The
    distortions of the validation set (the last 5,000 training digits) and of the test set are
    fixed.

    Args:
        distortion: r, rts, p, e, t or tc, as in section 4.1.
        canvas: height and width of the distorted image in pixels. None is the paper's.
        root: directory that contains ``MNIST/raw``. None is ``$STN_DATA``. Without that, MNIST is
            downloaded to ``data/`` on first use.
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        fresh: draw new training distortions each epoch. False keeps those of the first.
        seed: seed of training distortions and order.
        corner_std: for distortion p, the standard deviation of each coordinate of a corner's
            displacement in pixels. None is :data:`.distortions.CORNER_STD`.
        point_std: the same for a control point of distortion e. None is
            :data:`.distortions.POINT_STD`.

    Raises:
        UsageError: a setting is out of range.
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
        corner_std: float | None = None,
        point_std: float | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        if distortion not in DISTORTIONS:
            known = ", ".join(DISTORTIONS)
            raise UsageError(f"data.distortion must be one of {known}, got {distortion}.")
        self.distortion = DISTORTIONS[distortion]
        for name, std, owner in (("corner_std", corner_std, "p"), ("point_std", point_std, "e")):
            if std is None:
                continue
            if distortion != owner or std < 0:
                raise UsageError(
                    f"data.{name} must be null, or at least 0 with data.distortion={owner}, "
                    f"got {std} with {distortion}."
                )
            apply = partial(self.distortion.apply, **{name: std})
            self.distortion = replace(self.distortion, apply=apply)
        self.input_size = self.distortion.canvas if canvas is None else canvas
        if self.input_size < self.distortion.min_canvas:
            raise UsageError(
                f"data.canvas must be at least {self.distortion.min_canvas} pixels for "
                f"{distortion}, got {canvas}. The paper has {self.distortion.canvas}."
            )
        self.root = root
        self.fresh = fresh
        self._images: dict[str, Tensor] = {}
        self._labels: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        files.prepare(self.root)

    def setup(self, stage: str | None = None) -> None:
        if self._images:
            return
        root = files.prepare(self.root)
        train, test = (files.read(root, is_train) for is_train in (True, False))
        self._images, self._labels = map(self._split, train, test)

    def _split(self, train: Tensor, test: Tensor) -> dict[str, Tensor]:
        """Divide all training and test images, or labels, into the splits."""
        n = len(train) - VALIDATION_SIZE
        return {"train": train[:n], "val": train[n:], "test": test}

    def digest(self) -> str:
        return hashlib.sha256(" ".join(files.FILES.values()).encode()).hexdigest()[:16]

    def size(self, split: str) -> int:
        return len(self._labels[split])

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return distorted images ``(B, 1, canvas, canvas)`` in [0, 1] and labels ``(B,)``."""
        images = self._distort(split, index, self._keys(split, index, epoch))
        return images, self._labels[split][index]

    def redraw(self, split: str, index: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Return validation or test samples with other distortions, by ``draw``, 1 or more."""
        images = self._distort(split, index, sample_keys(FIXED_SEEDS[split], draw, index))
        return images, self._labels[split][index]

    def preprocess_picture(self, picture: Image.Image) -> PreprocessedPicture:
        """Return the digit of a drawing or a photograph, see :mod:`.photos`."""
        return preprocess_photo(picture, self.input_size)

    def poses(self, split: str, index: Tensor) -> Tensor:
        """Return where the digits are: ``(B, 1, 2, 3)``, see :func:`.distortions.rts_pose`.

        Raises:
            ValueError: such a matrix does not describe the distortion.
        """
        if self.distortion.pose is None:
            raise ValueError("only R and RTS rotate digits by a known angle")
        return self.distortion.pose(self._keys(split, index), self.input_size)[:, None]

    def _keys(self, split: str, index: Tensor, epoch: int = 0, stream: int = 0) -> Tensor:
        """Return the keys of the samples' random numbers. Streams are independent."""
        if split == "train":
            return sample_keys(self.seed ^ stream, epoch if self.fresh else 0, index)
        return sample_keys(FIXED_SEEDS[split] ^ stream, 0, index)

    def _distort(self, split: str, index: Tensor, keys: Tensor) -> Tensor:
        """Distort the digits at ``index`` to ``(B, 1, canvas, canvas)``."""
        digits, source = self._digits(split, index), self._images["train"]
        return self.distortion.apply(digits, keys, self.input_size, source)

    def _digits(self, split: str, index: Tensor) -> Tensor:
        """Return the digits at ``index`` without distortion: ``(B, 1, 28, 28)`` in [0, 1].

        The whole data set is moved to the device of ``index``, where it stays.
        """
        for tensors in (self._images, self._labels):
            for name, tensor in tensors.items():
                tensors[name] = tensor.to(index.device)
        return self._images[split][index].unsqueeze(1).float() / 255
