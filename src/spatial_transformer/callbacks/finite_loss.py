"""Stops a run whose loss is no longer a number."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..errors import UsageError

_NEVER = torch.iinfo(torch.int64).max


class FiniteLoss(pl.Callback):
    """Ends training when the loss is infinite or not a number, and names the step.

    The loss is looked at on the device; the host asks every ``every`` steps on a GPU or several devices, where asking means
    waiting, and before each checkpoint is written, so that the last good checkpoint stays. On several devices all end together.

    Args:
        every: steps between two looks; 1 on a CPU.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self._bad_step: Tensor | None = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        loss = outputs["loss"].detach()
        step = trainer.global_step
        if self._bad_step is None:
            self._bad_step = torch.full((), _NEVER, device=loss.device)
        self._bad_step = torch.where(torch.isfinite(loss), self._bad_step, self._bad_step.clamp(max=step))
        asks = loss.device.type == "cpu" and trainer.world_size == 1
        if asks or step % self.every == 0:
            self._look(trainer)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict) -> None:
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        if self._bad_step is None:
            return
        step = int(trainer.strategy.reduce(self._bad_step, reduce_op="min"))
        if step < _NEVER:
            raise UsageError(
                f"the loss is not finite at step {step}. The last checkpoint before it is kept in the run folder.\nWay out: "
                "another run with a lower learning rate (recipe.optimizer.lr=...)."
            )
