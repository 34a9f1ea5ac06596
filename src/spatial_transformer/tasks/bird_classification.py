"""Telling bird species apart: what is trained and how it is scored (section 4.3, appendix A.6 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ..errors import UsageError
from ..networks.birds import BirdNetwork
from .classification import Classification


class BirdClassification(Classification):
    """Fine-tunes a network whose backbones were trained elsewhere.

    Args:
        network: with :attr:`~spatial_transformer.networks.birds.BirdNetwork.backbones`.
        optimizer, scheduler, localisation_lr_factor, label_smoothing: as for :class:`Classification`.
        frozen_steps: steps at the start in which the backbones stay as they are, and only what is new learns (ours).
        theta_step: None trains the localisation network by the gradient of the sampler, as the paper does. A number trains it
            by differences of the loss between crops that lie this far to either side, see :meth:`logits_and_loss` (ours).

    Logged
        As for :class:`Classification`, and ``val/accuracy``, ``test/accuracy``, the paper's, and ``macro_accuracy``, the mean
        over species, in percent.
    """

    network: BirdNetwork

    def __init__(
        self,
        network: BirdNetwork,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        localisation_lr_factor: float = 1.0,
        frozen_steps: int = 0,
        theta_step: float | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(network, optimizer, scheduler, localisation_lr_factor, label_smoothing)
        if frozen_steps < 0:
            raise UsageError(f"recipe.frozen_steps={frozen_steps} is not a number of steps. Way out: 0 or more.")
        if network.classes < 2:
            raise UsageError("data.species names one species: there is nothing to tell apart. Way out: two or more, as 1-50.")
        if theta_step is not None and theta_step <= 0:
            raise UsageError(
                f"recipe.theta_step={theta_step} is not a distance. Way out: a fraction of half the image, as 0.15, or null "
                "for the gradient of the sampler."
            )
        self.frozen_steps = frozen_steps
        self.theta_step = theta_step
        macro = MulticlassAccuracy(network.classes, average="macro")
        self.val_by_species, self.test_by_species = macro.clone(), macro.clone()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        for backbone in self.network.backbones:
            backbone.train(not self._frozen)  # statistics of batch normalisation are frozen, too

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._frozen:  # without a gradient the optimiser leaves a weight alone
            for backbone in self.network.backbones:
                backbone.zero_grad()

    def logits_and_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As for :class:`Classification`, with the slope of the loss over theta measured at a distance on demand.

        The gradient that a deep stream of convolutions sends back to the place of a crop is that of the finest detail: far
        steeper than what the loss does when the crop moves by more than some pixels, and in another direction as often as not
        (docs/birds.md). With ``theta_step``, all parameters of theta go that far one way or the other at random, and back the
        opposite way; the difference of the two losses is the slope in that direction (simultaneous perturbation, Spall 1992).
        """
        transformer = self.network.transformer
        if self.theta_step is None or transformer is None:
            return super().logits_and_loss(images, labels)
        theta = transformer.localisation(images).float()
        logits = self.network(images, theta.detach())
        with torch.no_grad():
            step = self.theta_step * (2 * (self.draws(*theta.shape) < 0.5).float() - 1)
            self.network.eval()  # both sides without dropout, and by the same statistics
            there, back = (self.losses(self.network(images, theta + sign * step), labels) for sign in (1, -1))
            self.network.train()
            slope = ((there - back).float() / 2).unsqueeze(1) / step
        pull = (slope * theta).sum(dim=1).mean()  # has that slope for its gradient
        return logits, self.losses(logits, labels).mean() + pull - pull.detach()

    @property
    def _frozen(self) -> bool:
        return self.global_step < self.frozen_steps

    def _evaluate(self, batch: tuple[Tensor, Tensor], scores: MetricCollection) -> Tensor:
        logits = super()._evaluate(batch, scores)
        if len(batch[1]):  # the last batch may have fewer samples than there are devices
            self._by_species(scores).update(logits.argmax(dim=1), batch[1])
        return logits

    def _log_scores(self, scores: MetricCollection) -> None:
        macro = self._by_species(scores)
        accuracy = 100 - scores["error"].compute()
        self.log_dict({f"{scores.prefix}accuracy": accuracy, f"{scores.prefix}macro_accuracy": 100 * macro.compute()})
        macro.reset()
        super()._log_scores(scores)

    def _by_species(self, scores: MetricCollection) -> Metric:
        return self.val_by_species if scores is self.val_scores else self.test_by_species
