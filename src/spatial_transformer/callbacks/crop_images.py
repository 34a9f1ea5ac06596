"""Images of what a spatial transformer reads, during training and after the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..data.base import gather_in_order
from ..transformer import SpatialTransformer
from ..utils.failures import warn_on_failure
from ..utils.files import atomic_write
from ..visualization.crops import FEW_CLASSES, ClassMeans, read_png, render_samples, write_gif
from ..visualization.drawing import image_grid, to_image
from .base import DrawingCallback

_MAX_FRAMES = 60


class CropImages(DrawingCallback):
    """Draw what the transformer reads of fixed validation samples, before training and after each
    validation.

    Also draws the mean output of each class, which shows whether the digits come to one pose
    (section 4.1 of the paper). When training ends, an animation shows the crops over the steps.

    Args:
        folder: where the PNG and GIF files go; W&B gets them if it is on.
        samples: number of validation samples, evenly spread over the set.
        zoom: screen pixels per pixel.
    """

    def __init__(self, folder: str | Path, samples: int = 12, zoom: float = 3) -> None:
        self.folder = Path(folder)
        self.samples = samples
        self.zoom = zoom
        self._means: dict[str, ClassMeans] = {}
        self._output: Tensor | None = None
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:  # not when a run is resumed
            self._save(trainer, "crops", self._crops(trainer, pl_module))

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        classes = trainer.datamodule.classes
        self._means = {"input": ClassMeans(classes), "output": ClassMeans(classes)}
        self._output = None
        transformer = _only_transformer(pl_module.network)
        if transformer is not None:
            self._hook = transformer.register_forward_hook(self._keep_output)

    def _keep_output(self, module: SpatialTransformer, args: tuple, output: Tensor) -> None:
        self._output = output

    def on_validation_batch_end(
        self,
        trainer,
        pl_module,
        outputs,
        batch,
        batch_idx,
        dataloader_idx=0,
    ) -> None:
        images, labels = batch
        if labels.ndim > 1 or trainer.datamodule.classes > FEW_CLASSES:
            return  # a number has no class, and many classes cannot be shown
        self._means["input"].update(images, labels)
        if self._output is not None:
            self._means["output"].update(self._output, labels)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for means in self._means.values():
            means.all_reduce(trainer.strategy)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._save(trainer, "crops", self._crops(trainer, pl_module))
        means_image = self._mean_images(trainer)
        if means_image is not None:
            self._save(trainer, "mean_images", means_image)

    def _crops(self, trainer: Any, pl_module: Any) -> Image.Image:
        size = trainer.datamodule.size("val")
        index = torch.linspace(0, size - 1, min(self.samples, size)).long()
        title = f"step {trainer.global_step:,}"
        return render_samples(trainer, pl_module, "val", index, title, self.zoom)

    def _mean_images(self, trainer: Any) -> Image.Image | None:
        """Draw the means of input and output of each class; None if no batch had a class."""
        data = trainer.datamodule
        rows = {}
        for name, means in self._means.items():
            if means.seen:
                images = data.to_display(means.images())
                rows[name] = [to_image(i / i.max().clamp(min=1e-6), self.zoom) for i in images]
        if not rows:
            return None
        captions = [str(n) for n in range(data.classes)]
        title = f"mean of each class, {' and '.join(rows)}, step {trainer.global_step:,}"
        return image_grid(list(zip(*rows.values(), strict=True)), captions, title)

    def _save(self, trainer: Any, name: str, image: Image.Image) -> None:
        step = trainer.global_step
        file = self.folder / f"{name}_{step:07d}.png"
        with warn_on_failure(f"Writing {file}"), atomic_write(file) as path:
            image.save(path, "PNG")
        _log_image(trainer, name, image, step)

    def on_fit_end(self, trainer, pl_module) -> None:
        if not trainer.is_global_zero:
            return
        paths = sorted(self.folder.glob("crops_*.png"))
        if len(paths) < 2:
            return
        frames = []
        for index in torch.linspace(0, len(paths) - 1, min(_MAX_FRAMES, len(paths))).long():
            with warn_on_failure("A frame of training.gif"):
                frames.append(read_png(paths[index]))
        with atomic_write(self.folder / "training.gif") as path:
            write_gif(path, frames)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                file = str(self.folder / "training.gif")
                logger.log_video("pictures/training", [file], format=["gif"])


def _log_image(trainer: Any, name: str, image: Image.Image, step: int | None = None) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{name}", [image], step=step)


def _only_transformer(network: nn.Module) -> SpatialTransformer | None:
    """Return the transformer of a network; None if it has none, several, or parallel ones."""
    transformers = [m for m in network.modules() if isinstance(m, SpatialTransformer)]
    return transformers[0] if len(transformers) == 1 and transformers[0].parallel == 1 else None


class ContactSheet(DrawingCallback):
    """Draw the first test samples of each class, with their crops and predictions.

    Args:
        folder: where ``contact_sheet.jpg`` goes.
        per_class: samples per class, a divisor of 12 so that no class is split by the end of a row.
        zoom: screen pixels per pixel.
    """

    def __init__(self, folder: str | Path, per_class: int = 3, zoom: float = 0.5) -> None:
        self.folder = Path(folder)
        self.per_class = per_class
        self.zoom = zoom
        self._labels: list[Tensor] = []

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._labels = []

    def on_test_batch_end(
        self,
        trainer,
        pl_module,
        outputs,
        batch,
        batch_idx,
        dataloader_idx=0,
    ) -> None:
        self._labels.append(batch[1])

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        labels = gather_in_order(self._labels)
        if not trainer.is_global_zero:
            return
        firsts = [(labels == n).nonzero()[: self.per_class, 0] for n in labels.unique()]
        index = torch.cat(firsts)
        title = f"the first {self.per_class} test samples of each class"
        image = render_samples(trainer, pl_module, "test", index, title, self.zoom)
        file = self.folder / "contact_sheet.jpg"
        with warn_on_failure(f"Writing {file}"), atomic_write(file) as path:
            image.save(path, "JPEG", quality=85)
        _log_image(trainer, "contact_sheet", image)
