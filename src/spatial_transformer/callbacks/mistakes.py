"""What a trained classifier gets wrong on the test set."""

from __future__ import annotations

import csv
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor
from torchmetrics.utilities.plot import plot_confusion_matrix

from ..data.batched import in_order
from ..files import replacing
from .pictures import FEW_CLASSES, picture_of


class Mistakes(pl.Callback):
    """After the test: the wrong ones as a table and, the most confident first, as a picture; the confusion matrix of classes.

    Args:
        folder: where ``mistakes.csv``, ``mistakes.png`` and ``confusion.png`` go.
        shown: how many wrong samples are drawn.
        zoom: screen pixels to a pixel.
    """

    def __init__(self, folder: str | Path, shown: int = 36, zoom: float = 2) -> None:
        self.folder = Path(folder)
        self.shown = shown
        self.zoom = zoom

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._logits.append(outputs)
        self._labels.append(batch[1])

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        logits, label = in_order(self._logits), in_order(self._labels)
        if not trainer.is_global_zero:
            return
        confidence, prediction = pl_module.confidences(logits), pl_module.predictions(logits)
        wrong = (prediction != label).view(len(label), -1).any(dim=1).nonzero()[:, 0]
        wrong = wrong[confidence[wrong].argsort(descending=True)]
        columns = ["test sample", "label", "prediction", "confidence"]
        data = trainer.datamodule
        texts = zip(data.texts(label[wrong]), data.texts(prediction[wrong]), strict=True)
        rows = [[n, *text, round(p, 4)] for n, text, p in zip(wrong.tolist(), texts, confidence[wrong].tolist(), strict=True)]
        with replacing(self.folder / "mistakes.csv") as path, path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        pictures = {}
        if label.ndim == 1:
            # torchmetrics' own count, where it has to be deterministic, takes gigabytes for 200 species.
            counts = torch.bincount((label * data.classes + prediction).cpu(), minlength=data.classes**2)
            confusion = counts.view(data.classes, data.classes)
            pictures["confusion"] = self._confusion_picture(confusion, data.names)
        if rows:
            title = f"{len(rows)} of {len(label):,} test samples are wrong; the most confident of them"
            picture = picture_of(trainer, pl_module, "test", wrong[: self.shown], title, self.zoom)
            with replacing(self.folder / "mistakes.png") as path:
                picture.save(path, "PNG")
            pictures["mistakes"] = self.folder / "mistakes.png"
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for name, picture_path in pictures.items():
                    logger.log_image(f"pictures/{name}", [str(picture_path)])
                logger.log_table("mistakes", columns, rows)

    def _confusion_picture(self, confusion: Tensor, names: list[str]) -> Path:
        import matplotlib

        matplotlib.use("Agg")
        few = len(names) <= FEW_CLASSES
        figure, _ = plot_confusion_matrix(confusion, add_text=few, labels=names if few else None)
        with replacing(self.folder / "confusion.png") as path:
            figure.savefig(path, format="png", dpi=120)
        matplotlib.pyplot.close(figure)
        return self.folder / "confusion.png"
