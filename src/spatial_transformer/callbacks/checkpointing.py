"""Checkpoints: the best weights, and the state from which a stopped run resumes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ..loggers.csv import MetricsCSV
from ..loggers.wandb import WandbRun
from ..utils.errors import UsageError, did_you_mean
from ..utils.serialization import load_tensors, save_tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically and read them with their checksums, tensors only.

    ``last.ckpt`` keeps the one before it as ``previous.ckpt``.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        keep = path.with_name("previous.ckpt") if path.name == "last.ckpt" else None
        try:
            save_tensors(checkpoint, path, durable=True, keep=keep)
        except ValueError as error:
            raise UsageError(
                f"A checkpoint cannot be written: {error}.\nChange the state_dict of the callback "
                "or optimizer, or use save_hyperparameters(ignore=[...])."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_tensors(Path(path))


class BestCheckpoint(ModelCheckpoint):
    """Keep ``best.ckpt``, also when the run directory has moved since it was written."""

    def state_dict(self) -> dict[str, Any]:
        return {"best_model_score": self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = Path(self.dirpath or "") / "best.ckpt"
        score = state_dict["best_model_score"]
        if score is None or not path.is_file():
            return  # the run starts from another run's checkpoint, or had no validation yet
        self.best_model_score = self.kth_value = score
        self.best_model_path = self.kth_best_model_path = str(path)
        self.best_k_models = {str(path): score}


class ResumeCheckpoint(pl.callbacks.Checkpoint):
    """Keep ``last.ckpt``, from which a stopped run resumes to the same weights and metrics.

    It is written after each validation, every few minutes, at the end, and when a signal asks the
    run to stop. It is always written between two optimizer steps, with finite weights.

    Args:
        run_dir: the :class:`~spatial_transformer.training.run_dir.RunDir` to write to.
        fingerprint: of the run; every checkpoint holds it.
        minutes: longest time between two checkpoints, but for steps that are logged.
        signals: a :class:`~spatial_transformer.training.signals.StopSignals`.

    Attributes:
        curve: the validation metrics so far, a list for each, and their optimizer steps (``step``).
        metrics: the metrics that were logged last.
        steps: optimizer steps so far.
        is_final: whether training has ended.
    """

    def __init__(
        self, run_dir: Any, fingerprint: dict[str, str], minutes: float, signals: Any
    ) -> None:
        self.run_dir = run_dir
        self.fingerprint = fingerprint
        self.minutes = minutes
        self.signals = signals
        self.metrics: dict[str, float] = {}
        self.curve: dict[str, list[float | None]] = {}
        self.steps = 0
        self.is_final = False
        self._rows = 0
        self._seconds = 0.0
        self._start = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds spent on the run, including those before an interruption."""
        return round(self._seconds + time.monotonic() - self._start, 1)

    def state_dict(self) -> dict[str, Any]:
        names = ("metrics", "curve", "steps", "is_final", "seconds")
        return {name: getattr(self, name) for name in names} | {"rows": self._rows}

    def restore(self, checkpoint: dict[str, Any], loggers: list[Any]) -> None:
        """Continue the run that wrote ``checkpoint``."""
        state = checkpoint["callbacks"][self.state_key]
        self.metrics, self.curve = state["metrics"], state["curve"]
        self.steps, self.is_final = state["steps"], state["is_final"]
        self._seconds = state["seconds"]
        tables = [logger for logger in loggers if isinstance(logger, MetricsCSV)]
        for table in tables:
            table.resume(state["rows"])
            for logger in loggers:
                if isinstance(logger, WandbRun):
                    logger.resume(table.read())

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        self.run_dir.check_present()
        parameters = torch.stack([p.detach().isfinite().all() for p in pl_module.parameters()])
        if not bool(parameters.all()):
            raise UsageError(
                f"The weights are not finite at step {trainer.global_step:,}. The last checkpoint "
                "before it is kept.\nTry a lower learning rate (recipe.optimizer.lr=...)."
            )
        checkpoint["fingerprint"] = self.fingerprint

    def on_fit_start(self, trainer, pl_module) -> None:
        if self.is_final:  # also of a run that has stopped early
            trainer.should_stop = True

    def on_sanity_check_start(self, trainer, pl_module) -> None:
        self.signals.install()

    def on_sanity_check_end(self, trainer, pl_module) -> None:
        """Refuse a ``monitor`` that would end the run after its first validation."""
        metrics = trainer.callback_metrics
        for callback in trainer.callbacks:
            monitor = str(getattr(callback, "monitor", None))
            if monitor.startswith(("val", "test")) and monitor not in metrics:
                name = type(callback).__name__
                raise UsageError(
                    f"{name} monitors {monitor!r}, which is not logged."
                    f"{did_you_mean(monitor, metrics)}\n"
                    "Set trainer.num_sanity_val_steps=0 if it is logged later."
                )

    def on_train_start(self, trainer, pl_module) -> None:
        self.signals.install()
        self.signals.is_deferred = True
        self.signals.step = self.steps = trainer.global_step

    def on_test_start(self, trainer, pl_module) -> None:
        self.signals.install()
        self.signals.step = self.steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.signals.step = self.steps = trainer.global_step
        is_due = time.monotonic() - self._saved > 60 * self.minutes
        is_requested = self.signals.requested is not None
        if trainer.world_size > 1:  # all processes agree, every five steps because it costs
            agree = trainer.strategy.reduce_boolean_decision
            is_agreeing = trainer.global_step % 5 == 1
            is_requested = is_agreeing and agree(is_requested, all=False)
            is_due = is_agreeing and agree(is_due, all=False)
        progress = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        is_within_step = progress % trainer.accumulate_grad_batches != 0
        is_epoch_end = progress >= trainer.num_training_batches
        is_validated = batches % trainer.val_check_batch == 0
        is_trained = trainer.global_step == trainer.max_steps
        if is_within_step or is_validated or is_trained:
            return
        if is_requested and not is_epoch_end:
            trainer._signal_connector.received_sigterm = True  # raises once the step is logged
        elif is_due and trainer.global_step % trainer.log_every_n_steps:
            self._save(trainer)

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self.curve.setdefault("step", []).append(trainer.global_step)
        for name, value in metrics.items():
            rounded = float(f"{value:.6g}") if value.isfinite() else None  # as in JSON
            self.curve.setdefault(name, []).append(rounded)
        if trainer.global_step != trainer.max_steps:
            self._save(trainer)

    def on_train_end(self, trainer, pl_module) -> None:
        self.is_final = True
        self._save(trainer)
        self.signals.is_deferred = False
        is_requested = self.signals.requested is not None
        if trainer.strategy.reduce_boolean_decision(is_requested, all=False):
            self.signals.stop()

    def on_exception(self, trainer, pl_module, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.training:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                self._rows = logger.sync() or 0
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        trainer.save_checkpoint(self.run_dir.last)
        self._saved = time.monotonic()
