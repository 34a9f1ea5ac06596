"""How far a run is, how fast it goes, and how long it will take."""

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
    """A progress bar over the whole run in a terminal; elsewhere (a log file) a line after each validation.

    Before the first step it says how many parameters each part of the network has, localisation and the rest apart.

    Args:
        every: steps between two updates of the bar.
        name: stands before each line where several runs share a terminal, in which there are lines then and no bar.
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
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
        )
        self._task = self._bar.add_task(
            "", total=trainer.max_steps, completed=trainer.global_step, rate="", figures=""
        )
        self._bar.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if self._bar is not None and (step % self.every == 0 or step == trainer.max_steps):
            self._bar.update(
                self._task,
                completed=step,
                rate=f"{self._rate(step):.1f} steps/s",
                figures=self._figures(trainer),
            )

    def on_validation_end(self, trainer, pl_module) -> None:
        if self._bar is None and self._enabled and not trainer.sanity_checking:
            step, rate = trainer.global_step, self._rate(trainer.global_step)
            left = timedelta(seconds=round((trainer.max_steps - step) / max(rate, 1e-9)))
            self._console.print(
                f"{self.name + '  ' if self.name else ''}step {step:,} of {trainer.max_steps:,}  {self._figures(trainer)}  "
                f"{rate:.1f} steps/s  {left} left",
                soft_wrap=True,
            )

    def on_train_end(self, trainer, pl_module) -> None:
        self._stop()

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self, step: int) -> float:
        return (step - self._first_step) / max(time.monotonic() - self._start, 1e-9)

    def _figures(self, trainer) -> str:
        return "  ".join(
            f"{name} {float(value):.4g}"
            for name, value in sorted(trainer.progress_bar_metrics.items())
        )


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
