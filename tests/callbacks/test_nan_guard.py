"""The guard on several devices, where reading the loss means waiting."""

import math
from types import SimpleNamespace

import pytest
import torch

from spatial_transformer.callbacks.nan_guard import NanGuard
from spatial_transformer.utils.errors import UsageError


def test_first_bad_step_is_named_at_the_next_check_or_checkpoint():
    strategy = SimpleNamespace(reduce=lambda step, reduce_op: step)
    trainer = SimpleNamespace(world_size=2, global_step=3, strategy=strategy)
    guard = NanGuard()
    guard.on_save_checkpoint(trainer, None, {})
    guard.on_train_batch_end(trainer, None, {"loss": torch.tensor(math.nan)}, None, 0)
    with pytest.raises(UsageError, match="not finite at step 3"):
        guard.on_save_checkpoint(trainer, None, {})
    trainer.global_step = 50
    with pytest.raises(UsageError, match="not finite at step 3"):
        guard.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)}, None, 0)
