"""Co-localisation: training without labels (appendix A.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.ops import box_iou

from ..geometry import theta_to_box
from ..networks.colocalisation import Colocalisation
from ..utils.random import uniform
from .classification import Classification
from .digit_encoder import load_or_train_encoder


class ColocalisationTask(Classification):
    """Learn windows whose crops have embeddings close to each other, unlike random crops.

    The paper's loss saturates nearly everywhere if the activations of the encoder are large.
    If they are small, all windows shrink to background. Training therefore has two stages (ours).
    The first **locates**: windows have one wide scale and embeddings have length 1, which blank
    crops cannot make small. The second **fits**: the scale is free and embeddings keep their
    length, which is largest if a digit fills the crop.

    Args:
        network, optimizer, scheduler: as for :class:`.classification.Classification`.
        localisation_lr_factor: as for :class:`.classification.Classification`.
        locate: fraction of the steps in the first stage.
        narrow: fraction of the steps, after those, in which the scale becomes free.
        random_scale: half the side of the random crops, in units of half the side of the image.
        margin: margin of the hinge. The paper's is 1.
        root: directory that contains ``MNIST/raw``, to train the encoder.
        cache: directory that keeps the encoder. None is in the root or in the home directory.

    Logged:
        ``train/loss``. ``error``, the percentage of images with an IoU of at most 0.5.
        ``overlap``, the mean IoU in percent. ``val/loss`` and ``test/loss`` are 1 - IoU.
    """

    error_names = ("error", "overlap")
    network: Colocalisation

    def __init__(
        self,
        network: Colocalisation,
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
        self.locate, self.narrow = locate, narrow
        self.random_scale, self.margin = random_scale, margin
        self.root, self.cache = root, cache

    def prepare_data(self) -> None:
        # A checkpoint that is tested contains its encoder.
        if self._trainer is None or not self._trainer.testing:
            load_or_train_encoder(self.root, self.cache)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.network.encoder.load_state_dict(load_or_train_encoder(self.root, self.cache))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        done = self.global_step / self._steps() - self.locate
        freedom = float(done >= 0) if self.narrow == 0 else min(max(done / self.narrow, 0.0), 1.0)
        self.network.windows.freedom.fill_(freedom)

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        crops, windows = network.transformer(images, return_theta=True)
        with torch.no_grad():
            room = 1 - self.random_scale
            places = room * (2 * uniform(self.training_sample_keys(len(images)), 2) - 1)
            random = F.pad(places, (1, 0), value=self.random_scale)
            random_crops = network.transformer(images, theta=random)
        each = self.global_step < self.locate * self._steps()
        alike, unlike = (network.encoder.scaled(some, each) for some in (crops, random_crops))
        if self.trainer.world_size > 1:  # all pairs of the batch, also across devices
            gathered: Any = self.all_gather(torch.stack([alike, unlike], dim=1), sync_grads=True)
            alike, unlike = gathered.flatten(0, 1).unbind(1)
        return windows, triplet_loss(alike, unlike, self.margin)

    def per_sample_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 1 - paired_iou(logits, labels)

    def per_sample_errors(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        overlap = paired_iou(logits, labels)
        return {"error": 100.0 * (overlap <= 0.5), "overlap": 100.0 * overlap}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the group "localisation" alone: the encoder is frozen."""
        return super().parameter_groups()[1:]

    def _steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)


def triplet_loss(crops: Tensor, random: Tensor, margin: float = 1.0) -> Tensor:
    """Return the hinge loss of A.2, averaged over all pairs of images.

    It is max(0, |e_n - e_m|^2 - |e_n - r_n|^2 + margin) for n other than m.

    Args:
        crops: ``(B, D)`` embeddings of the crops of the transformer, at least two.
        random: ``(B, D)``, of a random crop of each image.
        margin: how much farther a random crop must be.
    """
    squares = crops.square().sum(dim=1)
    alike = squares[:, None] + squares - 2 * crops @ crops.T
    unlike = (crops - random).square().sum(dim=1)
    hinges = torch.relu(alike - unlike[:, None] + margin)
    pairs = len(crops) * (len(crops) - 1)
    return (hinges.sum() - hinges.diagonal().sum()) / pairs


def paired_iou(windows: Tensor, others: Tensor) -> Tensor:
    """Return the IoU, ``(B,)``, of each window with the window of ``others`` at its index."""
    pairs: Tensor = box_iou(theta_to_box(windows, 2), theta_to_box(others, 2))
    return pairs.diagonal()
