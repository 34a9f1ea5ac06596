"""The misclassified test samples of a trained classifier, and its confusion matrix."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.failures import warn_on_failure
from ..utils.files import atomic_write
from ..visualization.confusion import confusion_figure
from ..visualization.crops import SampleImages, render_samples
from .base import CollectingCallback, DrawingCallback, find_wandb_loggers, log_image, log_samples

_COLUMNS = ["test sample", "label", "prediction", "confidence"]


class MisclassifiedSamples(CollectingCallback, DrawingCallback):
    """List and draw the misclassified test samples, the most confident ones first.

    Also draws the confusion matrix of classes.

    Args:
        folder: where ``mistakes.csv``, ``mistakes.png`` and ``confusion.png`` go.
        max_images: number of misclassified samples that are drawn and sent to W&B.
    """

    def __init__(self, folder: str | Path, max_images: int = 36) -> None:
        self.folder = Path(folder)
        self.max_images = max_images

    def collect(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [outputs, batch[1]]

    def on_test_collected(self, trainer, pl_module, *collected: Tensor) -> None:
        if not trainer.is_global_zero:
            return
        logits, labels = collected
        confidences, predictions = pl_module.confidences(logits), pl_module.predictions(logits)
        wrong = (predictions != labels).view(len(labels), -1).any(dim=1).nonzero()[:, 0]
        wrong = wrong[confidences[wrong].argsort(descending=True)]
        texts = trainer.datamodule.decode_labels
        rounded = [round(p, 4) for p in confidences[wrong].tolist()]
        columns = [wrong.tolist(), texts(labels[wrong]), texts(predictions[wrong]), rounded]
        rows = [list(row) for row in zip(*columns, strict=True)]
        self._save_table(rows)
        if rows:
            self._draw_samples(trainer, pl_module, rows, len(labels))
        if labels.ndim == 1:
            self._draw_confusion(trainer, labels, predictions)

    @warn_on_failure("The table of misclassified samples")
    def _save_table(self, rows: list[list[Any]]) -> None:
        with atomic_write(self.folder / "mistakes.csv") as path, path.open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *rows])

    @warn_on_failure("The image of misclassified samples")
    def _draw_samples(self, trainer: Any, pl_module: Any, rows: list[list[Any]], size: int) -> None:
        shown = rows[: self.max_images]
        index = torch.tensor([row[0] for row in shown])
        samples = render_samples(trainer.datamodule, pl_module, "test", index)
        log_samples(trainer, "mistakes", samples)
        self._log_table(trainer, shown, samples)
        title = f"{len(rows):,} of {size:,} test samples are misclassified"
        if len(shown) < len(rows):
            title += f", here the {len(shown)} most confident ones"
        with atomic_write(self.folder / "mistakes.png") as path:
            samples.sheet(title).save(path, "PNG")

    def _log_table(self, trainer: Any, rows: list[list[Any]], samples: SampleImages) -> None:
        for logger in find_wandb_loggers(trainer):
            import wandb

            images = [wandb.Image(tile) for tile in samples.tiles()]
            data = [[image, *row] for image, row in zip(images, rows, strict=True)]
            logger.log_table("mistakes", ["image", *_COLUMNS], data)

    @warn_on_failure("The confusion matrix")
    def _draw_confusion(self, trainer: Any, labels: Tensor, predictions: Tensor) -> None:
        data = trainer.datamodule
        # Where it has to be deterministic, torchmetrics' count takes gigabytes for 200 species.
        pairs = (labels * data.classes + predictions).cpu()
        counts = torch.bincount(pairs, minlength=data.classes**2)
        counts = counts.view(data.classes, data.classes)
        wrong = int(counts.sum() - counts.trace())
        title = f"{wrong:,} of {len(labels):,} test samples misclassified"
        file = self.folder / "confusion.png"
        with atomic_write(file) as path:
            confusion_figure(counts, data.names, title).savefig(path, format="png", dpi=100)
        log_image(trainer, "confusion", str(file))
