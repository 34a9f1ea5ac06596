"""Classification: loss, metrics and optimizer (section 4.1)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, MetricCollection

from ..data.base import gather_in_order
from ..networks.localisation import localisation_networks
from ..transformer import find_transformers
from ..utils.errors import UsageError
from ..utils.random import mix_integers, normal, sample_keys


class Classification(pl.LightningModule):
    """Train a classifier end to end by cross-entropy, and measure its error.

    A task with other labels overrides ``error_names``, :meth:`per_sample_loss`,
    :meth:`per_sample_errors`, :meth:`predictions` and :meth:`confidences`.

    Args:
        network: from images to ``(B, classes)`` logits.
        optimizer: builds the optimizer from parameter groups.
        scheduler: builds a scheduler, stepped after every batch, from the optimizer. None keeps the
            learning rates.
        localisation_lr_factor: learning rate of all localisation networks, as a multiple of that
            of the other parameters.
        label_smoothing: as for :func:`torch.nn.functional.cross_entropy`, in training only (ours).
        theta_noise: standard deviation of Gaussian noise on theta in training (ours), in units of
            theta: mostly 1 is half the side of the image. A transformer undoes the distortions,
            which also augment the data of the classifier. The noise augments it again. A network
            without a transformer trains without noise.

    Logged:
        ``train/loss`` (with label smoothing), ``train/error`` (both of single batches),
        ``val/loss``, ``val/error``, ``test/loss``, ``test/error``. Errors are in percent.

    Attributes:
        misclassified: after a test, the indices of the misclassified test samples in ascending
            order.

    Raises:
        UsageError: the factor is out of range, or the network does not take the noisy theta.
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
                f"recipe.localisation_lr_factor must be at least 0, got {localisation_lr_factor}."
            )
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.localisation_lr_factor = localisation_lr_factor
        self.label_smoothing = label_smoothing
        self.theta_noise = theta_noise if find_transformers(network) else 0.0
        if self.theta_noise and not _takes_theta(network):
            raise UsageError(
                "recipe.theta_noise needs a network with one `transformer` and "
                f"forward(images, theta), got {type(network).__name__}. Set recipe.theta_noise=0."
            )
        names = ("loss", *self.error_names)
        scores = MetricCollection({name: MeanMetric() for name in names}, compute_groups=False)
        self.val_scores = scores.clone(prefix="val/")
        self.test_scores = scores.clone(prefix="test/")
        self.misclassified: list[int] = []
        self._is_wrong: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def per_sample_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample, ``(B,)``."""
        smoothing = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

    def per_sample_errors(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return ``(B,)`` for each of ``error_names``: 100 if a sample is wrong and 0 if right."""
        return {"error": 100.0 * (logits.argmax(dim=1) != labels)}

    def predictions(self, logits: Tensor) -> Tensor:
        """Return the predicted labels, in the shape of the labels."""
        return logits.argmax(dim=-1)

    def confidences(self, logits: Tensor) -> Tensor:
        """Return the probability of each prediction, ``(B,)``."""
        return logits.float().softmax(dim=-1).amax(dim=-1)

    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on the step and the device alone, so that a resumed run repeats it.
        self._batch = (self._seed, self.global_step, batch_idx)
        seed = mix_integers(*self._batch, self.global_rank)
        # torch.manual_seed is slow: it records a traceback.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_sample_keys(self, samples: int) -> Tensor:
        """Return a key for :mod:`..utils.random` for each sample of the batch on this device.

        A sample has the same key on any number of devices, and in a resumed run.
        """
        place = torch.arange(samples, device=self.device) * self.trainer.world_size
        place += self.global_rank
        return sample_keys(mix_integers(*self._batch), 0, place)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits, loss = self.compute_loss(images, labels)
        if self.should_log:  # scoring every batch would slow small networks down
            options: dict[str, Any] = {"batch_size": len(images), "sync_dist": True}
            self.log("train/loss", loss.detach(), prog_bar=True, **options)
            for name, values in self.per_sample_errors(logits.detach(), labels).items():
                self.log(f"train/{name}", values.mean(), **options)
        return loss

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of a training batch, and the loss whose gradient trains the network."""
        noise = None
        if self.theta_noise:
            noise = normal(self.training_sample_keys(len(images)), self.noise_size)
        logits = self.training_logits(images, noise)
        return logits, self.per_sample_loss(logits, labels).mean()

    @property
    def noise_size(self) -> int:
        """Standard normal numbers that a training sample needs: the length of theta, or 0."""
        if not self.theta_noise:
            return 0
        transformer: Any = self.network.transformer
        size: int = transformer.parallel * transformer.transform.n_params
        return size

    def training_logits(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Return the logits with ``theta_noise`` times ``(B, noise_size)`` added to theta."""
        inputs = [images]
        if noise is not None:
            transformer: Any = self.network.transformer
            inputs.append(transformer.localisation(images) + self.theta_noise * noise)
        logits: Tensor = self.network(*inputs)
        return logits

    @property
    def should_log(self) -> bool:
        """Whether the loggers record metrics for the current step."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return (self.global_step + 1) % every == 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.val_scores)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self._evaluate(batch, self.test_scores)
        self._is_wrong.append(self.per_sample_errors(logits, batch[1])["error"] > 0)
        return logits

    def on_validation_epoch_end(self) -> None:
        self._log_scores(self.val_scores)

    def on_test_epoch_start(self) -> None:
        self._is_wrong = []

    def on_test_epoch_end(self) -> None:
        self.misclassified = gather_in_order(self._is_wrong).nonzero()[:, 0].tolist()
        self._log_scores(self.test_scores)

    def _evaluate(self, batch: tuple[Tensor, Tensor], scores: MetricCollection) -> Tensor:
        """Score a batch, and return its logits for callbacks."""
        images, labels = batch
        logits: Tensor = self.network(images)
        values = self.per_sample_errors(logits, labels)
        values["loss"] = self.per_sample_loss(logits, labels)
        for name, value in values.items():
            scores[name].update(value)
        return logits

    def _log_scores(self, scores: MetricCollection) -> None:
        # Values, not metrics: reset here, so that the sanity check leaves nothing behind.
        self.log_dict(scores.compute(), prog_bar=True, sync_dist=True)
        scores.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_factor"]
        if self.scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"},
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups "network" and, if there is a transformer, "localisation"."""
        networks = localisation_networks(self.network)
        localisation = {id(p): p for network in networks for p in network.parameters()}
        rest = [p for p in self.network.parameters() if id(p) not in localisation]
        groups: list[dict[str, Any]] = [{"name": "network", "params": rest, "lr_factor": 1.0}]
        if localisation:
            params, factor = list(localisation.values()), self.localisation_lr_factor
            groups.append({"name": "localisation", "params": params, "lr_factor": factor})
        return groups


def _takes_theta(network: nn.Module) -> bool:
    """Whether a network has one transformer, and its ``forward`` takes theta."""
    is_only = find_transformers(network) == [getattr(network, "transformer", None)]
    return is_only and "theta" in inspect.signature(network.forward).parameters
