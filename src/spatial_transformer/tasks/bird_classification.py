"""Classification of bird species (section 4.3, appendix A.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ..networks.birds import BirdNetwork
from ..networks.frozen import FrozenBirdNetwork
from ..utils.errors import UsageError
from ..utils.random import uniform
from .classification import Classification
from .spsa import evaluation_mode, spsa_surrogate


class BirdClassification(Classification):
    """Fine-tune a network with pretrained backbones.

    Args:
        network, optimizer, scheduler: as for :class:`Classification`.
        localisation_lr_factor, label_smoothing: as for :class:`Classification`.
        spsa_delta: distance at which :func:`.spsa.spsa_surrogate` estimates the gradient of theta
            (ours). None trains the localisation network by the gradient of the sampler, as the
            paper does.

    Logged:
        As for :class:`Classification`. Also ``val/accuracy`` and ``test/accuracy``, as in the
        paper, and ``macro_accuracy``, the mean over species, in percent.
    """

    network: BirdNetwork | FrozenBirdNetwork

    def __init__(
        self,
        network: BirdNetwork | FrozenBirdNetwork,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        localisation_lr_factor: float = 1.0,
        label_smoothing: float = 0.0,
        spsa_delta: float | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler, localisation_lr_factor, label_smoothing)
        if network.classes < 2:
            raise UsageError("data.species must be at least two species, got one.")
        self.spsa_delta = spsa_delta
        macro = MulticlassAccuracy(network.classes, average="macro")
        self.macro_accuracy: Any = nn.ModuleDict({"val/": macro, "test/": macro.clone()})

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        transformer = self.network.transformer
        if self.spsa_delta is None or transformer is None:
            return super().compute_loss(images, labels)

        def loss(theta: Tensor) -> Tensor:
            # Without dropout, so that theta is all that differs.
            with evaluation_mode(self.network):
                return self.per_sample_loss(self.network(images, theta), labels)

        theta = transformer.localisation(images).float()
        logits = self.network(images, theta.detach())
        directions = uniform(self.training_sample_keys(len(theta)), theta.shape[1])
        surrogate = spsa_surrogate(loss, theta, self.spsa_delta, directions)
        return logits, self.per_sample_loss(logits, labels).mean() + surrogate

    def _evaluate(self, batch: tuple[Tensor, Tensor], scores: MetricCollection) -> Tensor:
        logits = super()._evaluate(batch, scores)
        if len(batch[1]):  # the last batch may have fewer samples than there are devices
            self.macro_accuracy[scores.prefix].update(logits.argmax(dim=1), batch[1])
        return logits

    def _log_scores(self, scores: MetricCollection) -> None:
        macro = self.macro_accuracy[scores.prefix]
        values = {
            f"{scores.prefix}accuracy": 100 - scores["error"].compute(),
            f"{scores.prefix}macro_accuracy": 100 * macro.compute(),
        }
        self.log_dict(values, sync_dist=True)
        macro.reset()
        super()._log_scores(scores)
