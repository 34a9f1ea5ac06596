"""Classification: what is trained and how it is scored."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, MetricCollection

from ..data.batched import in_order
from ..data.keyed import sample_keys, uniform
from ..errors import UsageError
from ..networks.localisation import localisation_networks


class Classification(pl.LightningModule):
    """Trains a classifier end to end by cross-entropy and scores it by its error.

    A task with other labels overrides what says how they are scored and read: ``error_names``, :meth:`losses`, :meth:`errors`,
    :meth:`predictions` and :meth:`confidences`.

    Args:
        network: from images to ``(B, classes)`` logits.
        optimizer: makes the optimiser from parameter groups.
        scheduler: makes a schedule, stepped after every batch, from the optimiser; None keeps the rates.
        localisation_lr_factor: learning rate of all localisation networks, as a multiple of the others'.
        label_smoothing: share of each training label that is spread evenly over all classes, from 0 up to 1 (ours).
        theta_noise: standard deviation of normal noise on theta in training, in theta's units, for most of which 1 is half the
            image's side (ours). A transformer undoes how its images are distorted, and with it what a classifier gains by
            seeing each digit in ever new ways; a window that is a little off each time gives that back. For a network with
            one ``transformer``, that takes ``theta``; others have no noise.

    Logged
        ``train/loss`` (of smoothed labels), ``train/error`` (both of single batches), ``val/loss``, ``val/error``,
        ``test/loss``, ``test/error``; errors in percent.

    Attributes
        misclassified: after a test, the indices of the test samples that count as errors, in ascending order.
    """

    error_names: tuple[str, ...] = ("error",)

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        localisation_lr_factor: float = 1.0,
        label_smoothing: float = 0.0,
        theta_noise: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= localisation_lr_factor < math.inf:
            raise UsageError(
                f"recipe.localisation_lr_factor={localisation_lr_factor} is no factor. Way out: 1 for the same rate."
            )
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"recipe.label_smoothing={label_smoothing} is not a share. Way out: 0 for none, up to 0.5, say.")
        if not 0 <= theta_noise < math.inf:
            raise UsageError(f"recipe.theta_noise={theta_noise} is not a deviation. Way out: 0 for none, 0.05, say.")
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.localisation_lr_factor = localisation_lr_factor
        self.label_smoothing = label_smoothing
        self.theta_noise = theta_noise
        scores = MetricCollection({name: MeanMetric() for name in ("loss", *self.error_names)}, compute_groups=False)
        self.val_scores = scores.clone(prefix="val/")
        self.test_scores = scores.clone(prefix="test/")
        self.misclassified: list[int] = []
        self._is_wrong: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample, ``(B,)``."""
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)

    @property
    def smoothing(self) -> float:
        """The label smoothing of now: only training has any."""
        return self.label_smoothing if self.training else 0.0

    def errors(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """For each of ``error_names``, 100 where a sample is wrong and 0 where it is right: float ``(B,)``."""
        return {"error": 100.0 * (logits.argmax(dim=1) != labels)}

    def predictions(self, logits: Tensor) -> Tensor:
        """The predicted labels, of the labels' shape."""
        return logits.argmax(dim=-1)

    def confidences(self, logits: Tensor) -> Tensor:
        """The probability of each prediction, ``(B,)``."""
        return logits.float().softmax(dim=-1).amax(dim=-1)

    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # What dropout draws depends on the step and the device alone, so a resumed run draws what an undisturbed one does.
        self._batch = (self._seed, self.global_step, batch_idx)
        seed = hash((*self._batch, self.global_rank))
        torch.default_generator.manual_seed(seed)  # torch.manual_seed is slow: it records a traceback
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def draws(self, samples: int, n: int) -> Tensor:
        """Uniform numbers in (0, 1) for this device's samples of the training batch, the same on however many devices it is.

        Args:
            samples: how many there are here.
            n: numbers to a sample.

        Returns:
            ``(samples, n)``.
        """
        trainer: Any = self.trainer
        place = self.global_rank + trainer.world_size * torch.arange(samples, device=self.device)
        return uniform(sample_keys(hash(self._batch), 0, place), n)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits, loss = self.logits_and_loss(images, labels)
        if self.is_logging_step:  # scoring every batch would slow small networks down
            together: dict[str, Any] = {"batch_size": len(images), "sync_dist": True}
            self.log("train/loss", loss.detach(), prog_bar=True, **together)
            errors = self.errors(logits.detach(), labels)
            self.log_dict({f"train/{name}": values.mean() for name, values in errors.items()}, **together)
        return loss

    def logits_and_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the network gives for a training batch, and the loss whose gradient trains it."""
        transformer = getattr(self.network, "transformer", None)
        if self.theta_noise and transformer is not None and "theta" in inspect.signature(self.network.forward).parameters:
            theta = transformer.localisation(images)
            logits = self.network(images, theta + self.theta_noise * torch.randn_like(theta))
        else:
            logits = self.network(images)
        return logits, self.losses(logits, labels).mean()

    @property
    def is_logging_step(self) -> bool:
        """Whether the loggers take figures of the step that is under way."""
        trainer: Any = self.trainer
        return (self.global_step + 1) % trainer.log_every_n_steps == 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.val_scores)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self._evaluate(batch, self.test_scores)
        self._is_wrong.append(self.errors(logits, batch[1])["error"] > 0)
        return logits

    def on_validation_epoch_end(self) -> None:
        self._log_scores(self.val_scores)

    def on_test_epoch_start(self) -> None:
        self._is_wrong = []

    def on_test_epoch_end(self) -> None:
        self.misclassified = in_order(self._is_wrong).nonzero()[:, 0].tolist()
        self._log_scores(self.test_scores)

    def _evaluate(self, batch: tuple[Tensor, Tensor], scores: MetricCollection) -> Tensor:
        """Scores a batch; returns its logits, for callbacks."""
        images, labels = batch
        logits = self.network(images)
        for name, values in (self.errors(logits, labels) | {"loss": self.losses(logits, labels)}).items():
            scores[name].update(values)
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
