"""Learning rate schedules whose shape does not depend on the length of training."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR


def one_cycle(optimizer: Optimizer, total_steps: int, pct_start: float = 0.3) -> OneCycleLR:
    """Build OneCycleLR, with the learning rate of each parameter group as its peak.

    As PyTorch does by default, it also replaces the optimizer's momentum, or beta1 of Adam: from
    0.95 to 0.85 at the peak, and back.

    Args:
        optimizer: the learning rates of its groups are the peaks.
        total_steps: length of the cycle.
        pct_start: fraction of the steps in which the learning rate rises.

    Raises:
        ValueError: ``pct_start`` is outside of [0, 1].
    """
    if round(pct_start * total_steps, 9) == 1:
        pct_start /= 2  # torch divides by zero where the rise takes exactly one step
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps, pct_start=pct_start)


def multi_step_decay(
    optimizer: Optimizer,
    total_steps: int,
    milestones: Sequence[int],
    reference_steps: int,
    gamma: float = 0.1,
) -> MultiStepLR:
    """Build MultiStepLR with milestones that scale with the length of training.

    Args:
        optimizer: the learning rates of its groups are those before the first milestone.
        total_steps: length of training.
        milestones: steps of a training of ``reference_steps`` at which the learning rate falls.
        reference_steps: the length of training that ``milestones`` refers to.
        gamma: factor of the learning rate at each milestone.
    """
    scaled = [round(milestone * total_steps / reference_steps) for milestone in milestones]
    return MultiStepLR(optimizer, scaled, gamma)
