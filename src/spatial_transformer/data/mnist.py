"""Distorted MNIST (section 4.1 of the paper) as a LightningDataModule."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..errors import UsageError
from . import mnist_files
from .batched import BatchedData
from .digit_pictures import digit_view
from .distortions import DISTORTIONS, project
from .keyed import sample_keys
from .picture_files import View

VALIDATION_SIZE = 5_000
LARGEST = 1_024
"""Pixels: the networks' weights grow with the square of a canvas."""
_FIXED_SEEDS = {"val": 0x56414C, "test": 0x54455354}
"""Seeds of the fixed sets: the same for every network, every seed and every run."""


class MnistData(BatchedData):
    """MNIST digits, distorted in batches on the device of the model.

    Images lie on the device as a whole. Training samples are distorted anew in each epoch; the validation set (the last
    5,000 training digits) and the test set are drawn once for all.

    Args:
        distortion: r, rts, p, e, t or tc, as in section 4.1.
        canvas: height and width of the distorted image in pixels; None is the paper's.
        root: folder that holds ``MNIST/raw``; None downloads to ``data/`` on first use.
        batch_size: global batch size, over all devices.
        eval_batch_size: batch size of validation and test.
        fresh: draw new training distortions each epoch; False keeps those of the first.
        seed: seed of training distortions and order.
        corner_std: of distortion p, the standard deviation of each coordinate of a corner's displacement in pixels; None is
            5 / sqrt(2), see :data:`~spatial_transformer.data.distortions.CORNER_STD`.

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
        corner_std: float | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        if distortion not in DISTORTIONS:
            raise UsageError(f"data.distortion={distortion} does not exist. Way out: one of {', '.join(DISTORTIONS)}.")
        self.distortion = DISTORTIONS[distortion]
        if corner_std is not None:
            if distortion != "p" or corner_std < 0:
                raise UsageError(
                    f"data.corner_std={corner_std} with data.distortion={distortion}: only p moves corners, by 0 "
                    "px or more. Way out: data.distortion=p data.corner_std=2.5, say, or leave it out."
                )
            self.distortion = replace(self.distortion, apply=partial(project, corner_std=corner_std))
        self.input_size = self.distortion.canvas if canvas is None else canvas
        if self.input_size < self.distortion.smallest:
            raise UsageError(
                f"data.canvas={canvas} is too small: distortion {distortion} needs at least {self.distortion.smallest} px to "
                f"hold a digit. Way out: data.canvas={self.distortion.canvas} is the paper's."
            )
        if self.input_size > LARGEST:
            raise UsageError(f"data.canvas={canvas} is too large. Way out: {LARGEST} px or less; the paper has 60 at most.")
        training_size = 60_000 - VALIDATION_SIZE
        if batch_size > training_size:
            raise UsageError(
                f"data.batch_size={batch_size} is larger than the training set of {training_size:,} digits. Way out: the paper "
                "has 256."
            )
        self.root = root
        self.fresh = fresh
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

    def size(self, split: str) -> int:
        return len(self._labels[split])

    def samples(self, split: str, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Distorted images ``(B, 1, canvas, canvas)`` float32 in [0, 1] and labels ``(B,)``, on the device of ``index``.

        Args:
            split: "train", "val" or "test".
            index: ``(B,)`` positions in the split.
            epoch: of the training split; the others do not change.
        """
        images = self._distorted(split, index, self._keys(split, index, epoch))
        return images, self._labels[split][index]

    def redrawn(self, split: str, index: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Validation or test samples as of :meth:`samples`, but distorted by the numbers of another ``draw``, 1 or more."""
        images = self._distorted(split, index, sample_keys(_FIXED_SEEDS[split], draw, index))
        return images, self._labels[split][index]

    def view(self, picture: Image.Image) -> View:
        """The digit of a drawing or a photograph, see :func:`~spatial_transformer.data.digit_pictures.digit_view`."""
        return digit_view(picture, self.input_size)

    def poses(self, split: str, index: Tensor) -> Tensor:
        """Where the digits are: ``(B, 1, 2, 3)``, as of :func:`~spatial_transformer.data.distortions.rts_pose`.

        Raises:
            ValueError: of this distortion no such matrix says it.
        """
        if self.distortion.pose is None:
            raise ValueError("only R and RTS turn digits by an angle that is known")
        return self.distortion.pose(self._keys(split, index), self.input_size)[:, None]

    def _keys(self, split: str, index: Tensor, epoch: int = 0, stream: int = 0) -> Tensor:
        """What the random numbers of samples are made of; each ``stream`` gives others."""
        if split == "train":
            return sample_keys(self.seed ^ stream, epoch if self.fresh else 0, index)
        return sample_keys(_FIXED_SEEDS[split] ^ stream, 0, index)

    def _distorted(self, split: str, index: Tensor, keys: Tensor) -> Tensor:
        """The digits at ``index``, distorted as ``keys`` say: ``(B, 1, canvas, canvas)``. Moves the data to their device."""
        digits = self._digits(split, index)
        return self.distortion.apply(digits, keys, self.input_size, self._images["train"])

    def _digits(self, split: str, index: Tensor) -> Tensor:
        """The digits at ``index`` as they are: ``(B, 1, 28, 28)`` in [0, 1]. Moves the data to the device of ``index``."""
        for tensors in (self._images, self._labels):
            for name in {split, "train"}:
                tensors[name] = tensors[name].to(index.device)
        return self._images[split][index].unsqueeze(1).float() / 255
