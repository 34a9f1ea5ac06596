"""Overfitting a single batch, to see whether a network can learn at all."""

from __future__ import annotations

import pytorch_lightning as pl
import torch


class OverfitBatch(pl.Callback):
    """Replace each training batch by the first ``batch_size`` training samples.

    The samples are those of epoch 0, so a resumed run sees the same.
    """

    def on_train_start(self, trainer, pl_module) -> None:
        data = trainer.datamodule
        share = range(trainer.global_rank, data.batch_size, trainer.world_size)
        self._batch = data.samples("train", torch.tensor(share, device=pl_module.device))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        for tensor, fixed in zip(batch, self._batch, strict=True):
            tensor.copy_(fixed)
