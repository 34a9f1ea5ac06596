"""Train and test one run, and write its result."""

from __future__ import annotations

import errno
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from ..callbacks.checkpointing import AtomicCheckpointIO, BestCheckpoint, ResumeCheckpoint
from ..data.base import check_divisible
from ..loggers.wandb import WandbRun
from ..utils.errors import UsageError
from ..utils.files import write_json
from ..utils.process import keep_freed_memory
from ..utils.text import quote_override
from .build import build, check_match, component
from .distributed import DistributedContext, slurm_plugins
from .fingerprint import fingerprint
from .result import make_result
from .run_dir import RunDir
from .signals import StopSignals
from .validation import validate
from .weights import load_start, load_weights

log = logging.getLogger(__name__)
_UNAVAILABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_WARNINGS = (  # of Lightning, where what it warns of is intended
    ".*does not have many workers.*",  # batches are made on the device
    ".*exists and is not empty.*",  # the run directory also holds metrics.csv
    ".*callbacks used to create the checkpoint.*",  # a test needs none of them
    ".*your dataloader is not resumable.*",  # it derives its position from the step
    ".*is smaller than the logging interval.*",
    ".*module.s. in eval mode.*",  # a frozen classifier
    ".*LeafSpec.*deprecated.*",
    ".*srun.*command is available.*",
)


def train(config: DictConfig) -> dict[str, Any]:
    """Train and test a run, or resume it where it was stopped.

    Args:
        config: the composed configuration.

    Returns:
        The result, as in ``metrics.json``. A finished run is not run again.

    Raises:
        UsageError: something that the user can correct, before training where possible.
        Stopped: a signal asked the run to stop.
    """
    validate(config)
    with unchanged_process(), StopSignals("Rerun the same command to resume.") as signals:
        processes = DistributedContext(build_trainer(config))
        check_divisible(config.data.batch_size, processes.world_size)
        if processes.must_launch:
            for part in build(config):  # once, not in each process
                part.prepare_data()
            signals.hint = _hint(config)
            plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
            return processes.launch(train, plain)
        return _train(config, processes, signals)


def _train(
    config: DictConfig, processes: DistributedContext, signals: StopSignals
) -> dict[str, Any]:
    processes.init_process_group()
    # Each process has its own time stamp: all take the run directory of rank zero.
    plain: Any = processes.on_rank_zero(lambda: OmegaConf.to_container(config, resolve=True))
    config = OmegaConf.create(plain)
    run_dir = RunDir(config.run_dir)
    try:
        with ExitStack() as stack:
            processes.on_rank_zero(lambda: stack.enter_context(run_dir.lock()) and None)
            if result := processes.on_rank_zero(lambda: run_dir.finished(plain)):
                processes.log(f"{run_dir.path} is already finished. ckpt_path=null starts it over.")
                return result
            return _fit_and_test(config, run_dir, processes, signals)
    except OSError as error:
        if error.errno not in _UNAVAILABLE:
            raise
        raise UsageError(
            f"{error.filename or run_dir.path} cannot be read or written: {error.strerror}.\n"
            f"The last checkpoint is kept. {_hint(config)}"
        ) from error


def _fit_and_test(
    config: DictConfig, run_dir: RunDir, processes: DistributedContext, signals: StopSignals
) -> dict[str, Any]:
    keep_freed_memory()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data, task = build(config)
    task.network = processes.convert_sync_batchnorm(task.network)
    plain: Any = OmegaConf.to_container(config)

    start = None if plain["ckpt_path"] in (None, "auto") else Path(plain["ckpt_path"])

    def prepare():
        data.prepare_data()
        check_match(config, data, task)
        task.prepare_data()
        if start is not None:
            load_start(task, start, plain["trainer"]["max_steps"])
        mark = fingerprint(plain, data.digest())
        return mark, run_dir.prepare(plain, mark)

    mark, resumed = processes.on_rank_zero(prepare)
    signals.hint = _hint(config)
    with _loggers(config) as loggers:
        callbacks = _callbacks(config, has_loggers=bool(loggers))
        resume = ResumeCheckpoint(run_dir, mark, config.checkpoint_minutes, signals)
        trainer = build_trainer(config, logger=loggers or False, callbacks=[*callbacks, resume])
        best = next((c for c in callbacks if isinstance(c, BestCheckpoint)), None)
        for logger in loggers:
            logger.log_hyperparams(plain)
        if resumed is not None:
            start, content = resumed
            processes.log(f"Resuming from {start}")
            resume.restore(content, loggers)
        try:
            trainer.fit(task, data, ckpt_path=start, weights_only=True)
            metrics = resume.metrics | {k: float(v) for k, v in trainer.callback_metrics.items()}
            weights = run_dir.last if best is None else run_dir.checkpoints / "best.ckpt"
            load_weights(task, weights)
            metrics |= trainer.test(task, data, verbose=False)[0]
        except SIGTERMException:
            signals.stop()
        except MisconfigurationException as error:
            raise UsageError(str(error)) from error
        if best is not None and best.best_model_score is not None and best.monitor == "val/error":
            metrics["val/best_error"] = float(best.best_model_score)
        if not math.isfinite(test_error := metrics.get("test/error", math.nan)):
            raise UsageError(f"The task must log a finite test/error, got {test_error}.")
        progress = {"steps": resume.steps, "curve": resume.curve, "seconds": resume.seconds}
        result = make_result(plain, mark, metrics, trainer, task, data, **progress)
        if processes.is_rank_zero:
            run_dir.check_present()
            write_json(result, run_dir.result, durable=True)
            for logger in loggers:
                if isinstance(logger, WandbRun):
                    logger.log_result(result, str(weights) if best else "")
            _log_result(result, run_dir, weights.stem)
    return result


def build_trainer(config: DictConfig, **parts: Any) -> pl.Trainer:
    """Return the trainer as configured; without loggers and callbacks, a silent one."""
    parts = parts or {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    steps = config.trainer.get("val_check_interval")
    if isinstance(steps, int):
        # Validations are spread evenly. If their number divides the steps, the last one sees the
        # final weights, else those of a few steps before. Lightning counts batches, of which a step
        # takes several.
        max_steps = config.trainer.max_steps
        batches = config.trainer.get("accumulate_grad_batches") or 1
        parts["val_check_interval"] = max_steps // -(-max_steps // steps) * batches
    plugins = [AtomicCheckpointIO(), *slurm_plugins()]
    return component(config.trainer, "trainer", plugins=plugins, **parts)


def _callbacks(config: DictConfig, has_loggers: bool) -> list[pl.Callback]:
    nodes = {name: node for name, node in config.callbacks.items() if node is not None}
    found = [component(node, f"callbacks.{name}") for name, node in nodes.items()]
    monitor = pl.callbacks.LearningRateMonitor  # which refuses to work without a logger
    return found if has_loggers else [c for c in found if not isinstance(c, monitor)]


@contextmanager
def _loggers(config: DictConfig) -> Iterator[list[Any]]:
    """Build the loggers; the W&B run is closed in any case."""
    code = 1
    try:
        nodes = {name: node for name, node in config.logger.items() if node is not None}
        yield [component(node, f"logger.{name}") for name, node in nodes.items()]
        code = 0
    finally:
        if "wandb" in config.logger:
            import wandb

            wandb.finish(exit_code=code)


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore the environment, the warning filters and the log levels at the end."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    environment = dict(os.environ)
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
            os.environ.clear()
            os.environ.update(environment)


def _hint(config: DictConfig) -> str:
    restart = " ckpt_path=auto" if config.ckpt_path is None else ""  # null would start it over
    return f"Rerun with {quote_override('hydra.run.dir', config.run_dir)}{restart} to resume."


def _log_result(result: dict[str, Any], run_dir: RunDir, checkpoint: str) -> None:
    path = Path(os.path.relpath(run_dir.path))
    minutes, seconds = divmod(round(result["seconds"]), 60)
    error, steps = result["metrics"]["test/error"], result["steps"]
    option = "" if checkpoint == "best" else f" checkpoint={checkpoint}"
    log.info(
        "test error  %.2f %% after %s steps in %d min %d s", error, f"{steps:,}", minutes, seconds
    )
    if (path / "crops").is_dir():
        log.info("pictures    %s", path / "crops")
    log.info("result      %s", path / "metrics.json")
    log.info("evaluate    python evaluate.py %s%s", quote_override("run", path), option)
