"""The progress of a run: a bar in a terminal, and a line after each validation."""

from __future__ import annotations

import time
from datetime import timedelta

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
from rich.table import Table
from torch import nn

from ..networks.localisation import localisation_networks


class RunProgress(ProgressBar):
    """Print the metrics after each validation; in a terminal, show a bar over the whole run.

    The bar fits in 80 columns. Before the first step, the number of parameters of the localisation
    networks and of the rest is printed.

    Args:
        every: steps between two updates of the bar.
        name: printed before each line. Runs that share a terminal have a name, and no bar.
    """

    def __init__(self, every: int = 20, name: str | None = None) -> None:
        super().__init__()
        self.every = every
        self.name = name
        self._console = Console()
        self._bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_fit_start(self, trainer, pl_module) -> None:
        if self._enabled:
            self._console.print(_parameter_table(pl_module.network, self.name))

    def on_train_start(self, trainer, pl_module) -> None:
        self._start, self._first_step = time.monotonic(), trainer.global_step
        if not self._enabled or not self._console.is_terminal or self.name:
            return
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),  # takes the width that the others leave
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(
            "", total=trainer.max_steps, completed=trainer.global_step, rate=""
        )
        self._bar.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if self._bar is not None and (step % self.every == 0 or step == trainer.max_steps):
            rate = f"{self._steps_per_second(step):.1f} steps/s"
            self._bar.update(self._task, completed=step, rate=rate)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not self._enabled or trainer.sanity_checking:
            return
        step, rate = trainer.global_step, self._steps_per_second(trainer.global_step)
        left = timedelta(seconds=round((trainer.max_steps - step) / max(rate, 1e-9)))
        metrics = [
            f"{name} {float(value):.4g}"
            for name, value in sorted(trainer.progress_bar_metrics.items())
        ]
        parts = [f"step {step:,} of {trainer.max_steps:,}", *metrics, f"{rate:.1f} steps/s"]
        line = "  ".join([*([self.name] if self.name else []), *parts, f"{left} left"])
        self._console.print(line, soft_wrap=True, highlight=False)

    def on_train_end(self, trainer, pl_module) -> None:
        self._stop()

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _steps_per_second(self, step: int) -> float:
        return (step - self._first_step) / max(time.monotonic() - self._start, 1e-9)


def _parameter_table(network: nn.Module, name: str | None) -> Table:
    total = sum(p.numel() for p in network.parameters())
    localisation = sum(
        p.numel() for net in localisation_networks(network) for p in net.parameters()
    )
    table = Table("part", "parameters", box=None, title=name, title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("localisation", f"{localisation:,}")
    table.add_row("classifier", f"{total - localisation:,}")
    table.add_row("network", f"{total:,}")
    return table
