"""Classification: loss, metrics and optimizer."""

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

from ..data.base import gather_in_order
from ..networks.localisation import localisation_networks
from ..transformer import find_transformers
from ..utils.errors import UsageError
from ..utils.random import normal, sample_keys


class Classification(pl.LightningModule):
    """Train a classifier end to end by cross-entropy, and measure its error.

    A task with other labels overrides ``error_names``, :meth:`per_sample_loss`,
    :meth:`per_sample_errors`, :meth:`predictions` and :meth:`confidences`.

    Args:
        network: from images to ``(B, classes)`` logits.
        optimizer: makes the optimizer from parameter groups.
        scheduler: makes a scheduler, stepped after every batch, from the optimizer. None keeps the
            learning rates.
        localisation_lr_factor: learning rate of all localisation networks, as a multiple of that
            of the other parameters.
        label_smoothing: as for :func:`torch.nn.functional.cross_entropy`, in training only (ours).
        theta_noise: standard deviation of Gaussian noise on theta in training (ours), in units of
            theta: mostly 1 is half the side of the image. A transformer undoes the distortion of
            its images, and with it what a classifier gains from seeing each digit in ever new
            ways. The noise gives that back. A network without a transformer trains without it.

    Logged:
        ``train/loss`` (with label smoothing), ``train/error`` (both of single batches),
        ``val/loss``, ``val/error``, ``test/loss``, ``test/error``. Errors are in percent.

    Attributes:
        misclassified: after a test, the indices of the misclassified test samples in ascending
            order.

    Raises:
        UsageError: a setting is out of range, or the network cannot be warped at a noisy theta.
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
                f"recipe.localisation_lr_factor must be at least 0, got {localisation_lr_factor}.",
            )
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"recipe.label_smoothing must be in [0, 1), got {label_smoothing}.")
        if not 0 <= theta_noise < math.inf:
            raise UsageError(f"recipe.theta_noise must be at least 0, got {theta_noise}.")
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.localisation_lr_factor = localisation_lr_factor
        self.label_smoothing = label_smoothing
        self.theta_noise = theta_noise if find_transformers(network) else 0.0
        if self.theta_noise and not _takes_theta(network):
            raise UsageError(
                f"recipe.theta_noise needs a network with one `transformer` and "
                f"forward(images, theta), "
                f"got {type(network).__name__}. Set recipe.theta_noise=0."
            )
        scores = MetricCollection(
            {name: MeanMetric() for name in ("loss", *self.error_names)},
            compute_groups=False,
        )
        self.val_scores = scores.clone(prefix="val/")
        self.test_scores = scores.clone(prefix="test/")
        self.misclassified: list[int] = []
        self._is_wrong: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def per_sample_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each sample, ``(B,)``."""
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)

    @property
    def smoothing(self) -> float:
        """The label smoothing of the current mode: 0 outside of training."""
        return self.label_smoothing if self.training else 0.0

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
        torch.default_generator.manual_seed(
            seed,
        )  # torch.manual_seed is slow: it records a traceback
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_sample_keys(self, samples: int) -> Tensor:
        """Return the keys of random numbers of this device's samples of the training batch.

        A sample has the same key on any number of devices, and in a resumed run.

        Args:
            samples: number of samples on this device.

        Returns:
            ``(samples,)``, for :mod:`..utils.random`.
        """
        trainer: Any = self.trainer
        place = self.global_rank + trainer.world_size * torch.arange(samples, device=self.device)
        return sample_keys(mix_integers(*self._batch), 0, place)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits, loss = self.compute_loss(images, labels)
        if self.should_log:  # scoring every batch would slow small networks down
            options: dict[str, Any] = {"batch_size": len(images), "sync_dist": True}
            self.log("train/loss", loss.detach(), prog_bar=True, **options)
            errors = self.per_sample_errors(logits.detach(), labels)
            self.log_dict(
                {f"train/{name}": values.mean() for name, values in errors.items()},
                **options,
            )
        return loss

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of a training batch, and the loss whose gradient trains the network."""
        logits = self._noisy_logits(images) if self.theta_noise else self.network(images)
        return logits, self.per_sample_loss(logits, labels).mean()

    def _noisy_logits(self, images: Tensor) -> Tensor:
        transformer: Any = self.network.transformer
        theta = transformer.localisation(images)
        noise = normal(self.training_sample_keys(len(theta)), theta.shape[1])
        return self.network(images, theta + self.theta_noise * noise)

    @property
    def should_log(self) -> bool:
        """Whether the loggers record metrics of the current step."""
        trainer: Any = self.trainer
        return (self.global_step + 1) % trainer.log_every_n_steps == 0

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
        logits = self.network(images)
        values = self.per_sample_errors(logits, labels)
        values["loss"] = self.per_sample_loss(logits, labels)
        for name, value in values.items():
            scores[name].update(value)
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
            groups.append(
                {
                    "name": "localisation",
                    "params": list(localisation.values()),
                    "lr_factor": self.localisation_lr_factor,
                }
            )
        return groups


def mix_integers(*values: int) -> int:
    """Return a seed in [-2^63, 2^63) that depends on all bits of some integers.

    It is the variant of xxHash64 by which CPython hashes a tuple of integers below 2^61 - 1, so
    that runs of earlier versions can be repeated.
    """
    mask = 2**64 - 1
    seed = 0x27D4EB2F165667C5
    for value in values:
        seed = (seed + value * 0xC2B2AE3D27D4EB4F) & mask
        seed = (seed << 31 | seed >> 33) & mask
        seed = seed * 0x9E3779B185EBCA87 & mask
    seed = (seed + (len(values) ^ 0x27D4EB2F165667C5 ^ 3527539)) & mask
    return seed - 2**64 if seed >> 63 else seed


def _takes_theta(network: nn.Module) -> bool:
    """Whether a network has one transformer and can be told where it reads."""
    is_only = find_transformers(network) == [getattr(network, "transformer", None)]
    return is_only and "theta" in inspect.signature(network.forward).parameters
