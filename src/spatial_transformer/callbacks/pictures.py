"""Pictures of a spatial transformer at work, during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..files import replacing
from ..transformer import SpatialTransformer
from .drawing import region_lines, strip, to_image, with_lines


class CropPictures(pl.Callback):
    """After each validation: what the transformer reads of some fixed samples, what it gives, and what is read off it.

    Also the mean output of each class, which shows whether the digits come to one pose (section 4.1 of the paper), and, when
    training ends, an animation of the crops over the steps. All land in ``folder`` as PNG and GIF, and in W&B if it is on.

    Args:
        folder: where the pictures go.
        samples: how many validation samples are shown, the first ones.
        zoom: screen pixels to a pixel.
    """

    def __init__(self, folder: str | Path, samples: int = 12, zoom: int = 3) -> None:
        self.folder = Path(folder)
        self.samples = samples
        self.zoom = zoom
        self._means: dict[str, ClassMeans] = {}
        self._hook: RemovableHandle | None = None

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        classes = trainer.datamodule.classes
        self._means = {"input": ClassMeans(classes), "output": ClassMeans(classes)}
        self._crops: Tensor | None = None
        transformer = pl_module.network.transformer
        if transformer is not None:
            self._hook = transformer.register_forward_hook(self._keep_crops)

    def _keep_crops(self, module: SpatialTransformer, args: tuple, output: Tensor) -> None:
        self._crops = output

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        images, labels = batch
        self._means["input"].update(images, labels)
        if self._crops is not None:
            self._means["output"].update(self._crops, labels)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        step = trainer.global_step
        pictures = {
            "crops": self.crops(trainer, pl_module, f"step {step:,}"),
            "mean_images": strip(
                list(zip(*[means.images(self.zoom) for means in self._means.values() if means.seen], strict=True)),
                [str(n) for n in range(trainer.datamodule.classes)],
                f"mean of each class, {' and '.join(name for name, means in self._means.items() if means.seen)}, step {step:,}",
            ),
        }
        for name, picture in pictures.items():
            with replacing(self.folder / f"{name}_{step:07d}.png") as path:
                picture.save(path, "PNG")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for name, picture in pictures.items():
                    logger.log_image(f"pictures/{name}", [picture], step=step)

    @torch.inference_mode()
    def crops(self, trainer, pl_module, title: str) -> Image.Image:
        """Input with the region that is read, output, and prediction, for the fixed samples."""
        images, labels = trainer.datamodule.samples("val", torch.arange(self.samples, device=pl_module.device))
        return picture_of(pl_module, images, labels, title, self.zoom)

    def on_fit_end(self, trainer, pl_module) -> None:
        # 32 colours do for grey digits and two colours of line, and halve the file.
        frames = [Image.open(path).quantize(32) for path in sorted(self.folder.glob("crops_*.png"))]
        if len(frames) < 2 or not trainer.is_global_zero:
            return
        path = self.folder / "training.gif"
        durations = [250] * (len(frames) - 1) + [2000]
        with replacing(path) as temporary:
            frames[0].save(temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                import wandb

                logger.experiment.log({"pictures/training": wandb.Video(str(path), format="gif")})


@torch.inference_mode()
def picture_of(pl_module: Any, images: Tensor, labels: Tensor, title: str, zoom: int, per_row: int = 12) -> Image.Image:
    """A strip of samples: each with the region that is read, the transformer's output, and what it is taken for."""
    was_training = pl_module.training
    pl_module.eval()
    predictions = pl_module(images).argmax(dim=1)
    transformer = pl_module.network.transformer
    if transformer is None:
        columns = [[to_image(image, zoom)] for image in images]
    else:
        crops, theta = transformer(images, return_theta=True)
        columns = [
            [with_lines(to_image(image, zoom), region_lines(transformer.transform, theta[n])), to_image(crops[n], zoom)]
            for n, image in enumerate(images)
        ]
    pl_module.train(was_training)
    captions = [
        f"{prediction}" + ("" if label == prediction else f" (is {label})")
        for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True)
    ]
    return strip(columns, captions, title, per_row)


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

    def images(self, zoom: int) -> list[Image.Image]:
        assert self.sums is not None
        assert self.counts is not None
        means = self.sums / self.counts.clamp(min=1).view(-1, 1, 1, 1)
        return [to_image(mean / mean.max().clamp(min=1e-6), zoom) for mean in means]
