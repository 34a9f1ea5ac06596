"""Registration of pairs of images without labels. Ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from ..networks.registration import RegistrationNetwork
from ..utils.errors import UsageError
from .classification import Classification


class Registration(Classification):
    """Learn to warp a moving image onto a fixed one by their mean squared difference.

    Args: as for :class:`.classification.Classification`. ``label_smoothing`` has no effect.

    Logged:
        ``train/loss``, ``val/loss`` and ``test/loss``. For validation and test also ``error``,
        which is 100 (1 - correlation of the pixels) and before the warp ``error_before``. ``dice``
        and ``dice_before``, the overlap of the ink in percent. ``folding``, the percentage of
        pixels with a negative Jacobian. ``inverse_px``, the mean distance in pixels between the
        inverse of the transformation and the one that is predicted for the swapped pair (families
        with ``inverse`` only).

    Raises:
        UsageError: ``theta_noise`` is not 0.
    """

    network: RegistrationNetwork

    def __init__(self, network: RegistrationNetwork, *args: Any, **kwargs: Any) -> None:
        names = ["error", "error_before", "dice", "dice_before", "folding"]
        if network.transformer.transform.is_group:
            names.append("inverse_px")
        self.error_names = tuple(names)
        super().__init__(network, *args, **kwargs)
        if self.theta_noise:
            raise UsageError("recipe.theta_noise has no effect on registration. Set it to 0.")

    def compute_loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        warped = self.network(images)
        return warped, (warped - images[:, :1]).square().mean()

    def per_sample_errors(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {}  # of a training batch: they need both images

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.test_scores)

    def on_test_epoch_end(self) -> None:
        self._log_scores(self.test_scores)

    def _evaluate(self, batch: tuple[Tensor, Tensor], scores: MetricCollection) -> Tensor:
        pair, _ = batch
        fixed, moving = pair.split(1, dim=1)
        transformer = self.network.transformer
        transform, size = transformer.transform, pair.shape[2:]
        # First, as callbacks read the theta of the last call.
        swapped = transformer.localisation(pair.flip(1)) if transform.is_group else None
        theta = transformer.localisation(pair)
        warped: Tensor = self.network(pair, theta)
        values = {
            "loss": (warped - fixed).square().mean((1, 2, 3)),
            "error": 100 * (1 - correlation(fixed, warped)),
            "error_before": 100 * (1 - correlation(fixed, moving)),
            "dice": 100 * dice(fixed, warped),
            "dice_before": 100 * dice(fixed, moving),
            "folding": 100 * (jacobian(transform.grid(theta, size)) < 0).float().mean((1, 2)),
        }
        if swapped is not None:
            inverse = transform.grid(transform.inverse(theta), size)
            offset = (inverse - transform.grid(swapped, size)) * pair.shape[-1] / 2
            values["inverse_px"] = offset.square().sum(-1).sqrt().mean((1, 2))
        for name, value in values.items():
            scores[name].update(value)
        return warped


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of the pixels of two images, ``(B,)``; 0 for a flat image."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    norms = a.square().sum(1) * b.square().sum(1)
    return (a * b).sum(1) / norms.clamp(min=1e-12).sqrt()


def dice(a: Tensor, b: Tensor) -> Tensor:
    """Return the Dice coefficient of what is brighter than 0.5 in two images, ``(B,)``."""
    a, b = (x.flatten(1) > 0.5 for x in (a, b))
    return 2 * (a & b).sum(1) / (a.sum(1) + b.sum(1)).clamp(min=1)


def jacobian(grid: Tensor) -> Tensor:
    """Return the Jacobian determinant of a grid ``(B, H, W, 2)`` up to a factor: ``(B, H, W)``."""
    dy, dx = torch.gradient(grid, dim=(1, 2))
    return dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]
