"""Co-localisation: what is trained without labels, and how it is scored (appendix A.2 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.ops import box_iou

from ..errors import UsageError
from ..networks.colocalisation import Colocalisation as Network
from ..windows import boxes_of
from .classification import Classification
from .digit_encoder import trained_encoder


class Colocalisation(Classification):
    """Learns windows whose crops are alike, and unlike random crops, as an encoder sees them; scores them by their overlap.

    The paper's loss saturates nearly everywhere where the encoder's activations are large, and everything shrinks to background
    where it does not, so training has two stages. The first **locates**: windows of one wide scale, and embeddings of
    length 1 each, which blank crops cannot make small. The second **fits**: the scale is freed, and embeddings keep their
    length, which is largest where a digit fills the crop.

    Args:
        network: a :class:`~spatial_transformer.networks.colocalisation.Colocalisation`.
        optimizer, scheduler, localisation_lr_factor: as for :class:`.classification.Classification`.
        locate: share of the steps in the first stage, 0 to 1.
        narrow: share of the steps, after those, in which the windows come to be free.
        random_scale: half the side of the random crops, in units of half the image's side.
        margin: of the hinge; the paper's is 1.
        root: folder that holds ``MNIST/raw``, for the encoder's training.
        cache: folder that keeps the encoder; None is in the root or at home.

    Logged
        ``train/loss``; ``error``, the percentage of images with an IoU of at most 0.5; ``overlap``, the mean IoU in percent;
        ``val/loss`` and ``test/loss`` are 1 - IoU.

    Raises:
        UsageError: a setting out of range.
    """

    error_names = ("error", "overlap")
    network: Network

    def __init__(
        self,
        network: Network,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        localisation_lr_factor: float = 1.0,
        locate: float = 0.5,
        narrow: float = 0.2,
        random_scale: float = 0.15,
        margin: float = 1.0,
        root: str | Path | None = None,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(network, optimizer, scheduler, localisation_lr_factor)
        for name, value in (("locate", locate), ("narrow", narrow), ("random_scale", random_scale)):
            if not 0 <= value <= 1 or (name == "random_scale" and value == 0):
                raise UsageError(f"task.{name}={value} is not a share. Way out: from 0 to 1.")
        self.locate, self.narrow, self.random_scale, self.margin = locate, narrow, random_scale, margin
        self.root, self.cache = root, cache

    def prepare_data(self) -> None:
        if self._trainer is None or not self._trainer.testing:  # a checkpoint that is tested has its encoder
            trained_encoder(self.root, self.cache)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.network.encoder.load_state_dict(trained_encoder(self.root, self.cache))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        done = self.global_step / self._steps() - self.locate
        freedom = float(done >= 0) if self.narrow == 0 else min(max(done / self.narrow, 0.0), 1.0)
        self.network.windows.freedom.fill_(freedom)

    def logits_and_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        crops, windows = network.transformer(images, return_theta=True)
        with torch.no_grad():
            room = 1 - self.random_scale
            places = room * (2 * self.draws(len(images), 2) - 1)
            random = torch.cat([torch.full_like(places[:, :1], self.random_scale), places], dim=1)
            random_crops = network.transformer(images, theta=random)
        each = self.global_step < self.locate * self._steps()
        alike, unlike = (network.encoder.scaled(some, each) for some in (crops, random_crops))
        if self.trainer.world_size > 1:  # pairs of all images of the batch, wherever they are
            everywhere: Any = self.all_gather(torch.stack([alike, unlike], dim=1), sync_grads=True)
            alike, unlike = everywhere.flatten(0, 1).unbind(1)
        return windows, triplet_loss(alike, unlike, self.margin)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 1 - overlaps(logits, labels)

    def errors(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        overlap = overlaps(logits, labels)
        return {"error": 100.0 * (overlap <= 0.5), "overlap": 100.0 * overlap}

    def predictions(self, logits: Tensor) -> Tensor:
        return logits

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The localisation network's alone: the encoder is frozen."""
        parameters = list(self.network.transformer.localisation.parameters())
        return [{"name": "localisation", "params": parameters, "lr_factor": self.localisation_lr_factor}]

    def _steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)


def triplet_loss(crops: Tensor, random: Tensor, margin: float = 1.0) -> Tensor:
    """The hinge loss of A.2, in the mean of all pairs: max(0, |e_n - e_m|^2 - |e_n - r_n|^2 + margin), n other than m.

    Args:
        crops: ``(B, D)`` embeddings of the transformer's crops, two at least.
        random: ``(B, D)``, of a random crop of each image.
        margin: how much farther a random crop must be.
    """
    squares = crops.square().sum(dim=1)
    alike = squares[:, None] + squares - 2 * crops @ crops.T
    unlike = (crops - random).square().sum(dim=1)
    hinges = torch.relu(alike - unlike[:, None] + margin)
    pairs = len(crops) * (len(crops) - 1)
    return (hinges.sum() - hinges.diagonal().sum()) / pairs


def overlaps(windows: Tensor, others: Tensor) -> Tensor:
    """IoU of each window with the other of its place: ``(B, 3)`` twice -> ``(B,)``."""
    return box_iou(boxes_of(windows, 2), boxes_of(others, 2)).diagonal()
