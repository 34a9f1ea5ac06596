"""What a run keeps of its weights: the best, and where it goes on after whatever stopped it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ..saved import save
from .metrics_table import MetricsTable
from .wandb_run import WandbRun


class BestCheckpoint(pl.callbacks.ModelCheckpoint):
    """Keeps ``best.ckpt``. A run that goes on finds it in its own folder, wherever that lies by now.

    (Lightning would look for it at its old place, and forget how good it was.)
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else ""

        if not Path(here(state_dict["best_model_path"])).is_file():
            return  # it goes on from a run of another folder
        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})


class LastCheckpoint(pl.callbacks.Checkpoint):
    """Keeps ``last.ckpt`` and, in case that gets lost, the one before it, ``previous.ckpt``.

    They are written after each validation, every few minutes, at the end, and when the run is asked to end by SIGTERM. A
    run that goes on from one ends with the same weights and figures as if it had not been stopped. For that the
    checkpoint also says how many rows of the table of figures were written, what was last measured, and the time spent.

    Attributes
        curve: the validation metrics so far, a list for each, and the optimizer steps (``step``) at which they were computed.

    Args:
        folder: where they go.
        minutes: longest time between two.
    """

    def __init__(self, folder: str | Path, minutes: float = 5) -> None:
        self.folder = Path(folder)
        self.minutes = minutes
        self.figures: dict[str, float] = {}
        self.curve: dict[str, list[float]] = {}
        self.seconds = 0.0
        self._rows: int | None = None
        self._asked = self._fits = False
        self._start = self._saved = time.monotonic()
        self._saved_step = -1

    def setup(self, trainer, pl_module, stage: str) -> None:
        self._fits = stage == "fit"
        if self._fits:
            self._start = self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows, "figures": self.figures, "curve": self.curve, "seconds": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._fits:  # what the best checkpoint says, which the test reads, is of the past
            self._rows, self.figures, self.seconds = state_dict["rows"], state_dict["figures"], state_dict["seconds"]
            self.curve = state_dict.get("curve", {})  # missing in checkpoints of earlier versions

    def elapsed(self) -> float:
        """Seconds spent on the run, those before it was stopped among them."""
        return self.seconds + time.monotonic() - self._start

    def on_fit_start(self, trainer, pl_module) -> None:
        for table in _tables(trainer):
            table.go_on(self._rows or 0)
            for logger in trainer.loggers:
                if isinstance(logger, WandbRun):
                    logger.go_on(table.rows)

    def on_train_start(self, trainer, pl_module) -> None:
        if trainer.world_size > 1:
            # Lightning's handler talks to the other processes wherever it interrupts this one, and they may not listen.
            signal.signal(signal.SIGTERM, self._be_asked)

    def on_test_start(self, trainer, pl_module) -> None:
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing to save

    def _be_asked(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        due = time.monotonic() - self._saved > 60 * self.minutes
        if trainer.world_size > 1:  # all processes end and save together, and agreeing on it at each step would cost
            agree = trainer.strategy.reduce_boolean_decision
            agreeing = trainer.global_step % 5 == 1
            if agreeing and agree(self._asked, all=False):
                raise SIGTERMException
            due = agreeing and agree(due, all=False)
        # Not where a validation follows, which saves, nor where this step's figures are still to be written.
        validates = (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % trainer.val_check_batch == 0
        writes = trainer.global_step % trainer.log_every_n_steps == 0
        if due and not validates and not writes and not _within_step(trainer) and not _trained(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.curve.setdefault("step", []).append(trainer.global_step)
        for name, value in metrics.items():
            self.curve.setdefault(name, []).append(float(f"{value:.6g}"))
        if not _trained(trainer):
            self._save(trainer)

    def on_train_end(self, trainer, pl_module) -> None:
        self._save(trainer)

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        # Within a validation a part of it would count twice, and from between an epoch's last step and its end Lightning goes
        # on with other samples; the checkpoint before does.
        ended = trainer.fit_loop.epoch_loop.batch_progress.current.ready >= trainer.num_training_batches or _trained(trainer)
        new = self._saved_step != trainer.global_step
        if isinstance(exception, SIGTERMException) and trainer.training and new and not ended and not _within_step(trainer):
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for table in _tables(trainer):
            table.save(durable=True)
            self._rows = len(table.rows)
        self.figures |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        path = self.folder / "last.ckpt"
        if trainer.is_global_zero and path.is_file():
            os.replace(path, self.folder / "previous.ckpt")
        trainer.save_checkpoint(path)
        self._saved, self._saved_step = time.monotonic(), trainer.global_step


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, to the disk, and only then renames it: it is whole or not there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(checkpoint, Path(path), durable=True)


def _trained(trainer: pl.Trainer) -> bool:
    """Whether the last step was taken. The epoch's last figures still come: a run that went on from here would lack them."""
    return trainer.global_step == trainer.max_steps


def _within_step(trainer: pl.Trainer) -> bool:
    """Whether a step takes several batches, and some are still to come: a checkpoint would lack their gradient so far."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches != 0


def _tables(trainer: pl.Trainer) -> list[MetricsTable]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsTable)]
