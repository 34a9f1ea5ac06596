"""Pictures of a spatial transformer at work, during training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..data.batched import in_order
from ..files import replacing
from ..transformer import SpatialTransformer
from .drawing import COLOURS, PAPER, Reading, strip, to_image, with_lines

FEW_CLASSES = 20
"""Up to so many, each class has a mean image and its numbers in the confusion matrix: of more nothing could be read."""
_AT_ONCE = 50  # samples of a picture that a network sees at once


class CropPictures(pl.Callback):
    """Before training and after each validation: what the transformer reads of some fixed samples, what it gives, and what is
    read off it.

    Also the mean output of each class, which shows whether the digits come to one pose (section 4.1 of the paper), and, when
    training ends, an animation of the crops over the steps. All land in ``folder`` as PNG and GIF, and in W&B if it is on.

    Args:
        folder: where the pictures go.
        samples: how many validation samples are shown, evenly spread over the set.
        zoom: screen pixels to a pixel.
    """

    def __init__(self, folder: str | Path, samples: int = 12, zoom: float = 3) -> None:
        self.folder = Path(folder)
        self.samples = samples
        self.zoom = zoom
        self._means: dict[str, ClassMeans] = {}
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:  # not where a run is resumed
            self._save(trainer, {"crops": self._crops(trainer, pl_module)})

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        classes = trainer.datamodule.classes
        self._means = {"input": ClassMeans(classes), "output": ClassMeans(classes)}
        self._output: Tensor | None = None
        transformer = _transformer(pl_module.network)
        if transformer is not None:
            self._hook = transformer.register_forward_hook(self._keep_output)

    def _keep_output(self, module: SpatialTransformer, args: tuple, output: Tensor) -> None:
        self._output = output

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        images, labels = batch
        if labels.ndim == 1 and trainer.datamodule.classes <= FEW_CLASSES:  # a number has no class
            self._means["input"].update(images, labels)
            if self._output is not None:
                self._means["output"].update(self._output, labels)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for means in self._means.values():
            means.over_devices(trainer.strategy)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        pictures = {"crops": self._crops(trainer, pl_module)}
        seen = {
            name: [to_image(mean / mean.max().clamp(min=1e-6), self.zoom) for mean in trainer.datamodule.shown(means.images())]
            for name, means in self._means.items()
            if means.seen
        }
        if seen:
            digits = [str(n) for n in range(trainer.datamodule.classes)]
            title = f"mean of each class, {' and '.join(seen)}, step {trainer.global_step:,}"
            pictures["mean_images"] = strip(list(zip(*seen.values(), strict=True)), digits, title)
        self._save(trainer, pictures)

    def _crops(self, trainer: Any, pl_module: Any) -> Image.Image:
        size = trainer.datamodule.size("val")
        shown = torch.linspace(0, size - 1, min(self.samples, size)).long()
        return picture_of(trainer, pl_module, "val", shown, f"step {trainer.global_step:,}", self.zoom)

    def _save(self, trainer: Any, pictures: dict[str, Image.Image]) -> None:
        step = trainer.global_step
        for name, picture in pictures.items():
            with replacing(self.folder / f"{name}_{step:07d}.png") as path:
                picture.save(path, "PNG")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for name, picture in pictures.items():
                    logger.log_image(f"pictures/{name}", [picture], step=step)

    def on_fit_end(self, trainer, pl_module) -> None:
        if not trainer.is_global_zero:
            return
        pictures = [Image.open(path) for path in sorted(self.folder.glob("crops_*.png"))]
        if len(pictures) < 2:
            return
        height = max(picture.height for picture in pictures)
        # An octree keeps the few bright pixels of lines in their colours; Pillow's default mixes them with the digits' grey.
        octree = Image.Quantize.FASTOCTREE
        frames = [_on_paper(picture, height).quantize(method=octree) for picture in pictures]
        path = self.folder / "training.gif"
        durations = [250] * (len(frames) - 1) + [2000]
        with replacing(path) as temporary:
            frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_video("pictures/training", [str(path)], format=["gif"])


def _on_paper(picture: Image.Image, height: int) -> Image.Image:
    """A picture whose captions have fewer lines than others', on paper as high as theirs."""
    sheet = Image.new("RGB", (picture.width, height), PAPER)
    sheet.paste(picture)
    return sheet


def _transformer(network: nn.Module) -> SpatialTransformer | None:
    """The only transformer of a network, None where there is no one such."""
    transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    return transformers[0] if len(transformers) == 1 and transformers[0].parallel == 1 else None


class ContactSheet(pl.Callback):
    """After the test: the first samples of each class, with what is read of them and what they are taken for.

    Args:
        folder: where ``contact_sheet.jpg`` goes.
        per_class: how many samples of each class, a divisor of 12 so that none is torn apart by the end of a row.
        zoom: screen pixels to a pixel.
    """

    def __init__(self, folder: str | Path, per_class: int = 3, zoom: float = 0.5) -> None:
        self.folder = Path(folder)
        self.per_class = per_class
        self.zoom = zoom

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._labels: list[Tensor] = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._labels.append(batch[1])

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        labels = in_order(self._labels)
        if not trainer.is_global_zero:
            return
        firsts = [(labels == label).nonzero()[: self.per_class, 0] for label in labels.unique()]
        title = f"the first {self.per_class} test samples of each class"
        picture = picture_of(trainer, pl_module, "test", torch.cat(firsts), title, self.zoom)
        with replacing(self.folder / "contact_sheet.jpg") as path:
            picture.save(path, "JPEG", quality=85)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("pictures/contact_sheet", [picture])


@torch.inference_mode()
def picture_of(trainer: Any, pl_module: Any, split: str, index: Tensor, title: str, zoom: float) -> Image.Image:
    """A strip of samples: each with the region that is read, what is read there, and what it is taken for.

    Of several transformers in a row, the region is that of all together; below, each one's own is drawn, by itself. Of
    parallel ones all regions and all crops are shown.

    Args:
        trainer: whose data the samples are from.
        pl_module: the task.
        split: "train", "val" or "test".
        index: ``(B,)`` positions in the split.
        title: written above.
        zoom: screen pixels to a pixel.
    """
    data = trainer.datamodule
    was_training = pl_module.training
    pl_module.eval()
    columns: list[list[Image.Image]] = []
    captions: list[str] = []
    for part in index.to(pl_module.device).split(_AT_ONCE):
        images, labels = data.samples(split, part)
        readings, logits = Reading.of(pl_module.network, images)
        columns += columns_of(data, images, readings, zoom)
        truths, predictions = data.texts(labels), data.texts(pl_module.predictions(logits))
        captions += [
            prediction + ("" if truth == prediction else f" (is {truth})")
            for truth, prediction in zip(truths, predictions, strict=True)
        ]
    pl_module.train(was_training)
    if readings and len(readings[0].apart()) > 1:
        title += f"; below, each transformer by itself: {', '.join(COLOURS)}"
    return strip(columns, captions, title)


def columns_of(data: Any, images: Tensor, readings: Sequence[Reading], zoom: float) -> list[list[Image.Image]]:
    """For each image a column: with all regions that are read, the crops, and with each of transformers in a row by itself."""
    apart = readings[0].apart() if readings else []
    columns = []
    for n, image in enumerate(images):
        plain = to_image(data.shown(image), zoom)
        crops = [to_image(data.shown(reading.crop(n, image)), zoom) for reading in readings]
        column = [with_regions(plain, readings, n), *crops]
        columns.append([*column, with_regions(plain, apart, n)] if len(apart) > 1 else column)
    return columns


def with_regions(image: Image.Image, readings: Sequence[Reading], n: int) -> Image.Image:
    """The regions that are read of sample ``n`` drawn on it, each in a colour of its own."""
    for reading, colour in zip(readings, itertools.cycle(COLOURS.values())):
        image = with_lines(image, reading.lines(n), colour)
    return image


class ClassMeans:
    """The mean image of each class."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums: Tensor | None = None
        self.counts: Tensor | None = None

    @property
    def seen(self) -> bool:
        return self.sums is not None

    def update(self, images: Tensor, labels: Tensor) -> None:
        if self.sums is None or self.counts is None:
            self.sums = images.new_zeros(self.classes, *images.shape[1:])
            self.counts = images.new_zeros(self.classes)
        self.sums.index_add_(0, labels, images)
        self.counts += torch.bincount(labels, minlength=self.classes)

    def over_devices(self, strategy: Strategy) -> None:
        """Takes in what the other processes have seen."""
        if self.sums is not None:
            self.sums, self.counts = (strategy.reduce(values, reduce_op="sum") for values in (self.sums, self.counts))

    def images(self) -> Tensor:
        """``(classes, C, H, W)``."""
        assert self.sums is not None
        assert self.counts is not None
        return self.sums / self.counts.clamp(min=1).view(-1, *[1] * (self.sums.ndim - 1))
