"""Classification: what is trained and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ..errors import UsageError
from ..transformer import localisation_networks


class ErrorRate(MulticlassAccuracy):
    """Share of wrong predictions in percent, as the paper's tables have it."""

    higher_is_better = False

    def compute(self) -> Tensor:
        return 100 * (1 - super().compute())


class Classification(pl.LightningModule):
    """Trains a classifier end to end by cross-entropy and scores it by its error.

    Args:
        network: from images to ``(B, classes)`` logits.
        classes: number of classes.
        optimizer: makes the optimiser from parameter groups.
        scheduler: makes a schedule, stepped after every batch, from the optimiser; None keeps the rates.
        localisation_lr_factor: learning rate of all localisation networks, as a multiple of the others'.

    Logged
        ``train/loss``, ``train/error`` (of single batches), ``val/loss``, ``val/error``, ``test/loss``, ``test/error``;
        errors in percent.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        localisation_lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if localisation_lr_factor < 0:
            raise UsageError(
                f"recipe.localisation_lr_factor={localisation_lr_factor} is negative. Way out: 1 for the same rate."
            )
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.localisation_lr_factor = localisation_lr_factor
        scores = MetricCollection({"error": ErrorRate(classes, average="micro")})
        self.train_scores = scores.clone(prefix="train/")
        scores.add_metrics({"loss": MeanMetric()})
        self.val_scores = scores.clone(prefix="val/")
        self.test_scores = scores.clone(prefix="test/")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # What dropout draws depends on the step alone, so a resumed run draws what an undisturbed one does.
        seed = hash((self._seed, self.global_step, batch_idx, self.global_rank))
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a hundred times as long
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        if self.is_logging_step:  # scoring every batch would slow small networks down
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(images))
            self.log_dict(self.train_scores(logits.detach(), labels), batch_size=len(images))
        return loss

    @property
    def is_logging_step(self) -> bool:
        """Whether the loggers take figures of the step that is under way."""
        trainer: Any = self.trainer
        return (self.global_step + 1) % trainer.log_every_n_steps == 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.val_scores)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.test_scores)

    def on_validation_epoch_end(self) -> None:
        self._log_scores(self.val_scores)

    def on_test_epoch_end(self) -> None:
        self._log_scores(self.test_scores)

    def _evaluate(self, batch: tuple[Tensor, Tensor], scores: MetricCollection) -> Tensor:
        """Scores a batch; returns its logits, for callbacks."""
        images, labels = batch
        logits = self.network(images)
        scores["error"].update(logits, labels)
        scores["loss"].update(F.cross_entropy(logits, labels, reduction="none"))
        return logits

    def _log_scores(self, scores: MetricCollection) -> None:
        # Values, not metrics: reset here, so that the sanity check leaves nothing behind.
        self.log_dict(scores.compute(), prog_bar=True)
        scores.reset()

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_factor"]
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The named groups of the optimiser: "network", and "localisation" with its own rate where there is a transformer."""
        localisation = {id(p): p for net in localisation_networks(self.network) for p in net.parameters()}
        rest = [p for p in self.network.parameters() if id(p) not in localisation]
        groups: list[dict[str, Any]] = [{"name": "network", "params": rest, "lr_factor": 1.0}]
        if localisation:
            groups.append(
                {"name": "localisation", "params": list(localisation.values()), "lr_factor": self.localisation_lr_factor}
            )
        return groups
