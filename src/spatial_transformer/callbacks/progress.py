"""The progress that a run prints from its start to the end of training."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..loggers.wandb import WandbRun
from ..networks.localisation import localisation_networks

log = logging.getLogger(__name__)
_EVERY = 20  # steps between two updates of the bar


class RunProgress(ProgressBar):
    """Log a few lines at the start and one after each validation. Show a bar in a terminal.

    The bar fits in 80 columns.

    Args:
        bar: whether to show a bar; false where several runs share a terminal.
    """

    def __init__(self, bar: bool = True) -> None:
        super().__init__()
        self.bar = bar
        self._progress: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_fit_start(self, trainer, pl_module) -> None:
        if self._enabled:
            for line in describe_run(trainer, pl_module):
                log.info(line)

    def on_train_start(self, trainer, pl_module) -> None:
        self._start, self._first_step = time.monotonic(), trainer.global_step
        if not self._enabled or not self.bar or not Console().is_terminal:
            return
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),  # takes the width that the others leave
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            expand=True,
            transient=True,
        )
        self._task = self._progress.add_task(
            "", total=trainer.max_steps, completed=trainer.global_step, rate=""
        )
        self._progress.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if self._progress is not None and (step % _EVERY == 0 or step == trainer.max_steps):
            rate = f"{self._steps_per_second(step):.1f} steps/s"
            self._progress.update(self._task, completed=step, rate=rate)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not self._enabled or trainer.sanity_checking:
            return
        step, rate = trainer.global_step, self._steps_per_second(trainer.global_step)
        left = timedelta(seconds=round((trainer.max_steps - step) / max(rate, 1e-9)))
        line = f"step {step:,} of {trainer.max_steps:,}  {_metrics(trainer)}  {rate:.1f} steps/s"
        if self._progress is None:
            log.info("%s  %s left", line, left)
        else:  # erase the bar, which may not be on the same line
            self._progress.stop()
            log.info("%s  %s left", line, left)
            self._progress.start()

    def on_train_end(self, trainer, pl_module) -> None:
        self._stop()

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _steps_per_second(self, step: int) -> float:
        return (step - self._first_step) / max(time.monotonic() - self._start, 1e-9)


def describe_run(trainer: Any, task: Any) -> Iterator[str]:
    """Yield a line each on the run directory, device, data, parameters and W&B."""
    device = trainer.strategy.root_device.type
    sizes = [f"{trainer.datamodule.size(split):,} {split}" for split in ("train", "val", "test")]
    total = sum(p.numel() for p in task.network.parameters())
    networks = localisation_networks(task.network)
    localisation = sum(p.numel() for network in networks for p in network.parameters())
    yield f"run         {os.path.relpath(trainer.default_root_dir)}"
    yield f"device      {trainer.world_size} x {device}, precision {trainer.precision}"
    is_bfloat16 = device == "cpu" and str(trainer.precision).startswith("bf16")
    if is_bfloat16 and torch.backends.cpu.get_cpu_capability() in ("NO AVX", "AVX2"):
        yield "            This CPU has no AVX-512. trainer.precision=32-true is far faster on it."
    yield f"data        {type(trainer.datamodule).__name__}: {', '.join(sizes)} samples"
    yield f"parameters  {total:,}, of which localisation {localisation:,}"
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            run = logger.experiment
            if run.offline:
                yield f"W&B         offline ({logger.offline_reason}). Upload it with:"
                path = shlex.quote(os.path.relpath(Path(run.dir).parent))
                yield f"            wandb sync {path}"
            else:
                yield f"W&B         {run.url or 'disabled'}"


def _metrics(trainer: pl.Trainer) -> str:
    metrics = sorted(trainer.progress_bar_metrics.items())
    return "  ".join(f"{name} {float(value):.4g}" for name, value in metrics)
