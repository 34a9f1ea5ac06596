"""Images of what a spatial transformer reads, during training and after the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..transformer import find_transformers
from ..utils.failures import warn_on_failure
from ..utils.files import atomic_write
from ..visualization.crops import class_means, read_png, render_samples, write_gif
from ..visualization.drawing import image_grid, tile_width, to_image
from .base import CollectingCallback, DrawingCallback, find_wandb_loggers, log_image, log_samples

_MAX_FRAMES = 60
_MEAN_SAMPLES = 1000
_MAX_MEANS = 20  # classes
_MAX_CONTACTS = 300  # samples; a JPEG file is at most 65,500 pixels high


class CropImages(DrawingCallback):
    """Draw what the transformer reads of validation samples, before training and at validations.

    Also draws the mean input and output of each class, which shows whether the digits come to one
    pose (section 4.1 of the paper). When training ends, an animation shows the crops over the
    steps.

    Args:
        folder: directory of the PNG and GIF files. W&B gets the images if it is on.
        samples: number of validation samples, evenly spread over the set.
    """

    def __init__(self, folder: str | Path, samples: int = 12) -> None:
        self.folder = Path(folder)
        self.samples = samples

    def on_train_start(self, trainer, pl_module) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:  # not when a run is resumed
            self._draw_crops(trainer, pl_module)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._draw_crops(trainer, pl_module)
        self._draw_means(trainer, pl_module)

    def _draw_crops(self, trainer: Any, pl_module: Any) -> None:
        index = _spread(trainer.datamodule.size("val"), self.samples)
        samples = render_samples(trainer.datamodule, pl_module, "val", index)
        log_samples(trainer, "crops", samples)
        self._save(trainer, "crops", samples.sheet(f"step {trainer.global_step:,}"))

    def _draw_means(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        index = _spread(data.size("val"), _MEAN_SAMPLES)
        image, label = data.samples("val", index[:1].to(pl_module.device))
        is_photograph = image.shape[1] == 3
        has_class = label.ndim == 1  # not so a number or a window
        if is_photograph or not has_class or data.classes > _MAX_MEANS:
            return
        rows = []
        for images in class_means(data, pl_module, "val", index).values():
            shown = data.to_display(images)
            width = tile_width(shown.shape[-1] / shown.shape[-2])
            rows.append([to_image(i / i.max().clamp(min=1e-6), width) for i in shown])
        labels = ["mean input", "mean output"][: len(rows)]
        title = f"mean of each class, step {trainer.global_step:,}"
        sheet = image_grid(list(zip(*rows, strict=True)), data.names, title, labels)
        self._save(trainer, "mean_images", sheet)
        log_image(trainer, "mean_images", sheet)

    def _save(self, trainer: Any, name: str, image: Image.Image) -> None:
        file = self.folder / f"{name}_{trainer.global_step:07d}.png"
        with warn_on_failure(f"Writing {file}"), atomic_write(file) as path:
            image.save(path, "PNG")

    def on_fit_end(self, trainer, pl_module) -> None:
        paths = sorted(self.folder.glob("crops_*.png"))
        has_crops = bool(find_transformers(pl_module.network))
        if not has_crops or not trainer.is_global_zero:
            return
        frames = []
        for index in _spread(len(paths), _MAX_FRAMES):
            with warn_on_failure("A frame of training.gif"):
                frames.append(read_png(paths[index]))
        if len(frames) < 2:
            return
        file = self.folder / "training.gif"
        with atomic_write(file) as path:
            write_gif(path, frames)
        for logger in find_wandb_loggers(trainer):
            logger.log_video("pictures/training", [str(file)], format=["gif"])


class ContactSheet(CollectingCallback, DrawingCallback):
    """Draw the first test samples of each class, with their crops and predictions.

    Args:
        folder: where ``contact_sheet.jpg`` goes.
        per_class: samples per class, fewer for more than 100 classes. A divisor of 6 keeps each
            class in one row.
    """

    def __init__(self, folder: str | Path, per_class: int = 3) -> None:
        self.folder = Path(folder)
        self.per_class = per_class

    def collect(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [batch[1]]

    def on_test_collected(self, trainer, pl_module, *collected: Tensor) -> None:
        if not trainer.is_global_zero:
            return
        (labels,) = collected
        classes = labels.unique()
        count = max(1, min(self.per_class, _MAX_CONTACTS // len(classes)))
        first = [(labels == n).nonzero()[:count, 0] for n in classes]
        samples = render_samples(trainer.datamodule, pl_module, "test", torch.cat(first))
        sheet = samples.sheet(f"the first {count} test samples of each class")
        file = self.folder / "contact_sheet.jpg"
        with warn_on_failure(f"Writing {file}"), atomic_write(file) as path:
            sheet.save(path, "JPEG", quality=85)
        log_image(trainer, "contact_sheet", sheet)


def _spread(size: int, count: int) -> Tensor:
    """Return at most ``count`` positions, evenly spread over ``size``."""
    return torch.linspace(0, size - 1, min(count, size)).long()
