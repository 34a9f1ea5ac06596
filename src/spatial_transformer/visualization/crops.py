"""Images of what spatial transformers read, and files of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .drawing import BACKGROUND, COLOURS, CropGeometry, draw_lines, image_grid, to_image

FEW_CLASSES = 20
"""With more classes than this, mean images and numbers in the confusion matrix are unreadable."""
_BATCH_SIZE = 50


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back into its mode whatever happens."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


@torch.inference_mode()
def render_samples(
    trainer: Any,
    pl_module: Any,
    split: str,
    index: Tensor,
    title: str,
    zoom: float,
) -> Image.Image:
    """Draw samples of a data set: for each its outlined crops, the crops, and the prediction.

    Of several transformers in a row, the outline is that of all together. Below, the outline of
    each is drawn alone. Of parallel transformers all outlines and all crops are drawn.

    Args:
        trainer: the trainer that holds the data module.
        pl_module: the task.
        split: "train", "val" or "test".
        index: ``(B,)`` positions in the split.
        title: text above the image.
        zoom: screen pixels per pixel.
    """
    data = trainer.datamodule
    columns: list[list[Image.Image]] = []
    captions: list[str] = []
    with evaluating(pl_module):
        for part in index.to(pl_module.device).split(_BATCH_SIZE):
            images, labels = data.samples(split, part)
            readings, logits = CropGeometry.from_network(pl_module.network, images)
            columns += render_columns(data, images, readings, zoom)
            truths = data.decode_labels(labels)
            predictions = data.decode_labels(pl_module.predictions(logits))
            for truth, prediction in zip(truths, predictions, strict=True):
                captions.append(prediction if truth == prediction else f"{prediction} (is {truth})")
    if readings and len(readings[0].split()) > 1:
        title += f"; below, each transformer by itself: {', '.join(COLOURS)}"
    return image_grid(columns, captions, title)


def render_columns(
    data: Any,
    images: Tensor,
    readings: Sequence[CropGeometry],
    zoom: float,
) -> list[list[Image.Image]]:
    """Draw a column for each image: the image with all outlines, the crops, and the image with
    the outline of each of several transformers in a row.
    """
    apart = readings[0].split() if readings else []
    columns = []
    for n, image in enumerate(images):
        plain = to_image(data.to_display(image), zoom)
        crops = [to_image(data.to_display(reading.crop(n, image)), zoom) for reading in readings]
        column = [draw_crop_outlines(plain, readings, n), *crops]
        if len(apart) > 1:
            column.append(draw_crop_outlines(plain, apart, n))
        columns.append(column)
    return columns


def draw_crop_outlines(image: Image.Image, readings: Sequence[CropGeometry], n: int) -> Image.Image:
    """Draw the outlines of the crops of sample ``n``, each in a colour of its own."""
    for reading, colour in zip(readings, itertools.cycle(COLOURS.values())):
        image = draw_lines(image, reading.outline(n), colour)
    return image


class ClassMeans:
    """The mean image of each class.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums: Tensor | None = None
        self.counts: Tensor | None = None

    @property
    def seen(self) -> bool:
        """Whether there were any images."""
        return self.sums is not None

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add images ``(B, C, H, W)`` with labels ``(B,)``."""
        if self.sums is None or self.counts is None:
            self.sums = images.new_zeros(self.classes, *images.shape[1:])
            self.counts = images.new_zeros(self.classes)
        self.sums.index_add_(0, labels, images)
        self.counts += torch.bincount(labels, minlength=self.classes)

    def all_reduce(self, strategy: Any) -> None:
        """Add the images of the other processes."""
        if self.sums is not None:
            self.sums = strategy.reduce(self.sums, reduce_op="sum")
            self.counts = strategy.reduce(self.counts, reduce_op="sum")

    def images(self) -> Tensor:
        """Return the means, ``(classes, C, H, W)``."""
        assert self.sums is not None
        assert self.counts is not None
        return self.sums / self.counts.clamp(min=1).view(-1, *[1] * (self.sums.ndim - 1))


def read_png(path: Path) -> Image.Image:
    """Return a PNG file in RGB.

    No other format is decoded: some of Pillow's decoders start programs.

    Raises:
        ValueError: the file is not a PNG file, or is damaged.
    """
    try:
        with Image.open(path, formats=["PNG"]) as file:
            return file.convert("RGB")
    except Exception as error:  # Pillow raises many unrelated kinds for damaged files
        raise ValueError(f"{path} cannot be read as a PNG file: {error}.") from error


def write_gif(path: Path, frames: Sequence[Image.Image]) -> None:
    """Write RGB frames as an endless animation that rests on its last frame.

    Frames that are less high than others, as their captions have fewer lines, are padded below.
    """
    height = max(frame.height for frame in frames)
    # An octree keeps the colours of thin lines, which Pillow's default mixes with the grey around.
    octree = Image.Quantize.FASTOCTREE
    padded = [_pad(frame, height).quantize(method=octree) for frame in frames]
    durations = [250] * (len(frames) - 1) + [2000]
    options = {"append_images": padded[1:], "duration": durations, "loop": 0}
    padded[0].save(path, "GIF", save_all=True, **options)


def _pad(image: Image.Image, height: int) -> Image.Image:
    sheet = Image.new("RGB", (image.width, height), BACKGROUND)
    sheet.paste(image)
    return sheet
