"""End a run whose loss is not finite."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..utils.errors import UsageError

_NEVER = torch.iinfo(torch.int64).max
_EVERY = 50  # steps between two checks on a GPU or on several devices


class NanGuard(pl.Callback):
    """End training when the loss is infinite or NaN, and name the step.

    The first bad step is stored on the device. It is read before each checkpoint and every 50
    steps, as reading it from a GPU or from several devices means waiting. A CPU reads every step.

    Raises:
        UsageError: the loss is not finite.
    """

    def __init__(self) -> None:
        self._bad_step: Tensor | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        loss, step = outputs.get("loss"), trainer.global_step
        if loss is None:  # the task optimizes manually, or skips a batch
            return
        if self._bad_step is None:
            self._bad_step = torch.full((), _NEVER, device=loss.device)
        self._bad_step = torch.where(
            loss.isfinite(), self._bad_step, self._bad_step.clamp(max=step)
        )
        is_cheap = loss.device.type == "cpu" and trainer.world_size == 1
        if is_cheap or step % _EVERY == 0:
            self._check(trainer)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict) -> None:
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        if self._bad_step is None:
            return
        step = int(trainer.strategy.reduce(self._bad_step, reduce_op="min"))
        if step < _NEVER:
            raise UsageError(
                f"The loss is not finite at step {step:,}. The last checkpoint before it is kept.\n"
                "Try a lower learning rate (recipe.optimizer.lr=...)."
            )
