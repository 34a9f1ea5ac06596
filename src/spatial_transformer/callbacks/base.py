"""Base classes of callbacks, and how they send images to W&B."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from ..data.base import gather_in_order
from ..utils.failures import warn_on_failure
from ..visualization.crops import SampleImages

_MAX_IMAGES = 12  # that W&B shows side by side at a readable size


class DrawingCallback(pl.Callback):
    """Base class of callbacks that only show what a run does and do not affect it.

    Every hook (``on_*``) of a subclass is wrapped in
    :func:`~spatial_transformer.utils.failures.warn_on_failure`: neither a full disk nor a bug in a
    picture stops or loses a run. Metrics do not belong here, as a lost metric would go unnoticed.
    Use ``warn_on_failure`` around the drawing part of such a callback.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, hook in list(vars(cls).items()):
            if name.startswith("on_"):
                setattr(cls, name, warn_on_failure(f"{cls.__name__}.{name}")(hook))


class CollectingCallback(pl.Callback, ABC):
    """Base class of callbacks that collect tensors of each test batch for the end of the test."""

    @abstractmethod
    def collect(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Sequence[Tensor]:
        """Return what to keep of a batch, ``(B, ...)`` each.

        Args:
            outputs: of ``test_step``.
            batch: images and labels.
        """

    @abstractmethod
    def on_test_collected(self, trainer: Any, pl_module: Any, *collected: Tensor) -> None:
        """Use what was collected, ``(N, ...)`` each, in the order of the samples.

        It is called in every process. Only the first one may write files.
        """

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._batches: list[Sequence[Tensor]] = []

    def on_test_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        self._batches.append(self.collect(outputs, batch))

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        collected = [gather_in_order(parts) for parts in zip(*self._batches, strict=True)]
        self._batches = []
        self.on_test_collected(trainer, pl_module, *collected)


def find_wandb_loggers(trainer: pl.Trainer) -> list[WandbLogger]:
    """Return the W&B loggers of a run."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def log_image(trainer: Any, name: str, image: Image.Image | str) -> None:
    """Send an image, or the path of one, to W&B."""
    for logger in find_wandb_loggers(trainer):
        logger.log_image(f"pictures/{name}", [image], step=trainer.global_step)


def log_samples(trainer: Any, name: str, samples: SampleImages) -> None:
    """Send the first samples to W&B as images with captions."""
    for logger in find_wandb_loggers(trainer):
        tiles, captions = samples.tiles()[:_MAX_IMAGES], samples.captions[:_MAX_IMAGES]
        logger.log_image(f"pictures/{name}", tiles, step=trainer.global_step, caption=captions)
