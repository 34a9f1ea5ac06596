"""Simultaneous perturbation stochastic approximation (SPSA) of a gradient (Spall 1992)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..utils.errors import UsageError


class Spsa:
    """Estimate the gradient of a loss over theta from two evaluations of the loss.

    The gradient that a deep stream of convolutions sends back to the place of a crop is that of
    the finest detail. It is far steeper than what the loss does when the crop moves by more than
    some pixels, and as often as not in another direction (docs/experiments/birds.md). SPSA measures the slope
    at a distance: all parameters of theta move by ``delta`` up or down at random, and back the
    opposite way. The difference of the two losses is the slope in that direction.

    Args:
        delta: the distance, in units of theta: mostly 1 is half the side of the image.

    Raises:
        UsageError: the distance is not positive.
    """

    def __init__(self, delta: float) -> None:
        if not delta > 0:
            raise UsageError(
                f"recipe.spsa_delta must be positive, got {delta}. Set null to turn SPSA off.",
            )
        self.delta = delta

    def surrogate(self, loss: Callable[[Tensor], Tensor], theta: Tensor, uniform: Tensor) -> Tensor:
        """Return a scalar of value 0 whose gradient is the estimated gradient of the mean loss.

        Args:
            loss: from thetas ``(B, n)`` to the loss of each sample, ``(B,)``.
            theta: ``(B, n)``, where the gradient is estimated.
            uniform: ``(B, n)`` random numbers in (0, 1), which choose the directions.
        """
        with torch.no_grad():
            step = self.delta * (2 * (uniform < 0.5).float() - 1)
            difference = loss(theta + step) - loss(theta - step)
            slope = (difference.float() / 2).unsqueeze(1) / step
        product = (slope * theta).sum(dim=1).mean()
        return product - product.detach()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode, and afterwards each module back to its own mode."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
