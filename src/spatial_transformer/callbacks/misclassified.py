"""What a trained classifier gets wrong on the test set."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from ..data.base import gather_in_order
from ..utils.failures import warn_on_failure
from ..utils.files import atomic_write
from ..visualization.confusion import confusion_figure
from ..visualization.crops import render_samples
from .base import DrawingCallback

_COLUMNS = ["test sample", "label", "prediction", "confidence"]


class MisclassifiedSamples(DrawingCallback):
    """List and draw the misclassified test samples, the most confident first, and the confusion
    matrix of classes.

    Args:
        folder: where ``mistakes.csv``, ``mistakes.png`` and ``confusion.png`` go.
        max_images: number of misclassified samples that are drawn.
        zoom: screen pixels per pixel.
    """

    def __init__(self, folder: str | Path, max_images: int = 36, zoom: float = 2) -> None:
        self.folder = Path(folder)
        self.max_images = max_images
        self.zoom = zoom
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._logits, self._labels = [], []

    def on_test_batch_end(
        self,
        trainer,
        pl_module,
        outputs,
        batch,
        batch_idx,
        dataloader_idx=0,
    ) -> None:
        self._logits.append(outputs)
        self._labels.append(batch[1])

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        logits, labels = gather_in_order(self._logits), gather_in_order(self._labels)
        if not trainer.is_global_zero:
            return
        confidences, predictions = pl_module.confidences(logits), pl_module.predictions(logits)
        wrong = (predictions != labels).view(len(labels), -1).any(dim=1).nonzero()[:, 0]
        wrong = wrong[confidences[wrong].argsort(descending=True)]
        self._save_table(trainer, labels[wrong], predictions[wrong], confidences[wrong], wrong)
        self._save_image(trainer, pl_module, wrong, len(labels))
        if labels.ndim == 1:
            self._save_confusion(trainer, labels, predictions)

    @warn_on_failure("The table of misclassified samples")
    def _save_table(
        self,
        trainer: Any,
        labels: Tensor,
        predictions: Tensor,
        confidences: Tensor,
        index: Tensor,
    ) -> None:
        texts = trainer.datamodule.decode_labels
        rounded = [round(p, 4) for p in confidences.tolist()]
        columns = [index.tolist(), texts(labels), texts(predictions), rounded]
        rows = [list(row) for row in zip(*columns, strict=True)]
        with atomic_write(self.folder / "mistakes.csv") as path, path.open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("mistakes", _COLUMNS, rows)

    @warn_on_failure("The image of misclassified samples")
    def _save_image(self, trainer: Any, pl_module: Any, wrong: Tensor, samples: int) -> None:
        if not len(wrong):
            return
        title = f"{len(wrong)} of {samples:,} test samples are wrong; the most confident of them"
        index = wrong[: self.max_images]
        image = render_samples(trainer, pl_module, "test", index, title, self.zoom)
        with atomic_write(self.folder / "mistakes.png") as path:
            image.save(path, "PNG")
        self._log_image(trainer, "mistakes")

    @warn_on_failure("The confusion matrix")
    def _save_confusion(self, trainer: Any, labels: Tensor, predictions: Tensor) -> None:
        data = trainer.datamodule
        # Where it has to be deterministic, torchmetrics' count takes gigabytes for 200 species.
        pairs = (labels * data.classes + predictions).cpu()
        counts = torch.bincount(pairs, minlength=data.classes**2)
        counts = counts.view(data.classes, data.classes)
        wrong = int(counts.sum() - counts.trace())
        title = f"{wrong:,} of {len(labels):,} test samples wrong"
        with atomic_write(self.folder / "confusion.png") as path:
            confusion_figure(counts, data.names, title).savefig(path, format="png", dpi=120)
        self._log_image(trainer, "confusion")

    def _log_image(self, trainer: Any, name: str) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"pictures/{name}", [str(self.folder / f"{name}.png")])
