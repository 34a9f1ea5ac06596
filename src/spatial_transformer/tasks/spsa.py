"""Simultaneous perturbation stochastic approximation (SPSA) of a gradient (Spall 1992)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def spsa_surrogate(
    loss: Callable[[Tensor], Tensor], theta: Tensor, delta: float, uniform: Tensor
) -> Tensor:
    """Return a scalar of value 0 whose gradient is an estimate of that of the mean loss.

    The gradient that a deep stream of convolutions returns for the place of a crop is that of the
    finest detail. It is far steeper than the change of the loss over more than some pixels, and as
    often as not in another direction (docs/experiments/birds.md). SPSA measures the slope at a
    distance: all parameters of theta move by ``delta`` up or down at random, and then the opposite
    way. The difference of the two losses is the slope in that direction.

    Args:
        loss: from thetas ``(B, n)`` to the loss of each sample, ``(B,)``.
        theta: ``(B, n)``, where the gradient is estimated.
        delta: the distance, in units of theta: mostly 1 is half the side of the image.
        uniform: ``(B, n)`` random numbers in (0, 1), which choose the directions.
    """
    with torch.no_grad():
        step = delta * (2 * (uniform < 0.5).float() - 1)
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
