"""Learning rate schedules that PyTorch does not have as we need them."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR, StepLR


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> OneCycleLR:
    """torch's one-cycle schedule, peaking at the rate that each parameter group has.

    Args:
        optimizer: its groups' rates are the peaks.
        total_steps: length of the cycle.
        pct_start: share of the steps in which the rate rises.
        div_factor: the peak over the first rate.
        final_div_factor: the first rate over the last.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    if round(pct_start * total_steps, 9) == 1:
        pct_start /= 2  # torch divides by zero where the rise takes exactly one step
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(
        optimizer, peaks, total_steps, pct_start=pct_start, div_factor=div_factor, final_div_factor=final_div_factor
    )


def falling_steps(optimizer: Optimizer, total_steps: int, parts: int = 3, factor: float = 0.1) -> StepLR:
    """The rate times ``factor`` after each of ``parts`` equal parts of the training.

    As the paper's, every 50k of 150k steps, for any length.

    Args:
        optimizer: its groups' rates are those of the first part.
        total_steps: length of the training.
        parts: number of parts.
        factor: of the rate from part to part.
    """
    return StepLR(optimizer, step_size=-(-total_steps // parts), gamma=factor)


def falling_at(optimizer: Optimizer, total_steps: int, shares: Sequence[float], factor: float = 0.1) -> MultiStepLR:
    """The rate times ``factor`` at each of ``shares`` of the training, for any length.

    Args:
        optimizer: its groups' rates are those of the first part.
        total_steps: length of the training.
        shares: where in it the rate falls, each between 0 and 1.
        factor: of the rate at each.
    """
    return MultiStepLR(optimizer, [round(share * total_steps) for share in shares], gamma=factor)
