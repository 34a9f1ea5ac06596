"""A run from its configuration to its record: seed, data, task, callbacks, loggers, trainer, fit, test, record."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from .building import build, check_fit, component, load_trained, read_weights
from .callbacks.checkpoints import LastCheckpoint, WholeFiles
from .callbacks.wandb_run import WandbRun
from .config import Evaluation, check, check_names
from .data.batched import BatchedData, check_shares
from .devices import Devices, plugins
from .errors import Stopped, UsageError
from .files import remove_half_written, replacing, write_json
from .process import keep_freed_memory
from .run_folder import RunFolder, recorded_settings

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb")


def run(config: DictConfig) -> dict[str, Any]:
    """Trains and tests as configured, or goes on where the run folder's own run was stopped.

    Returns the record that ``metrics.json`` holds; of a finished run at once.

    Raises:
        UsageError: whatever the user can put right, before training where it can be known then.
        Stopped: the run was asked to end before it was finished.
    """
    check(config)
    _quiet()
    devices = Devices(_trainer(config))
    check_shares(config.data.batch_size, devices.count)
    if devices.to_be_started:
        for part in build(config):  # what is fetched or trained once, before there are processes to wait for it
            part.prepare_data()
        return devices.start(run, config, _go_on(config.run_dir))
    devices.meet()
    config.run_dir = devices.first(lambda: config.run_dir)  # Hydra gives each process a time stamp of its own
    folder = RunFolder(config.run_dir)
    with ExitStack() as until_the_end:
        devices.first(lambda: until_the_end.enter_context(folder.held()))
        record = devices.first(lambda: folder.finished(config) if folder.goes_on(config) else None)
        if record is None:
            devices.first(lambda: folder.must_be_free(config))
        else:
            if devices.is_first:
                print(_summary(record, folder.path), "  finished before; ckpt_path=null runs it anew", sep="\n")
            return record
        try:
            return _run(config, folder, devices)
        except Exception as error:
            if devices.is_first and folder.config.is_file():  # no folder for a run that never began
                with suppress(OSError):
                    folder.note_failure(str(error) if isinstance(error, UsageError) else traceback.format_exc())
            raise


def _run(config: DictConfig, folder: RunFolder, devices: Devices) -> dict[str, Any]:
    keep_freed_memory()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data, task = build(config)
    by_batches = config.trainer.max_steps - config.recipe.frozen_steps
    task.network = devices.share_statistics(task.network, by_batches)
    _validate_to_the_end(config)
    checkpoint = devices.first(lambda: _begun(config, folder, data, task))
    with _loggers(config) as loggers:
        callbacks = [component(node, f"callbacks.{name}") for name, node in config.callbacks.items() if node is not None]
        if not loggers:
            callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]
        last = LastCheckpoint(folder.checkpoints, config.checkpoint_minutes)
        trainer: Any = _trainer(config, logger=loggers or False, callbacks=[*callbacks, last])
        settings: Any = OmegaConf.to_container(config, resolve=True)
        for logger in loggers:
            logger.log_hyperparams(settings)

        def way_out() -> str:
            return _go_on(folder.path) if folder.has_checkpoint else "start again; there was no checkpoint yet"

        with _stoppable(trainer, way_out):
            trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
            figures = last.figures | {name: float(value) for name, value in trainer.callback_metrics.items()}
            kept = next((c for c in callbacks if isinstance(c, pl.callbacks.ModelCheckpoint)), None)
            best = kept.best_model_path if kept else ""
            tested = trainer.test(task, data, ckpt_path=best or None, weights_only=True, verbose=False)[0]
        if kept and kept.best_model_score is not None and kept.monitor == "val/error":
            figures["val/best_error"] = float(kept.best_model_score)
        record = _record(config, figures | tested, trainer, data, last)
        for logger in loggers:
            if isinstance(logger, WandbRun) and devices.is_first:
                logger.log_record(record, best)
    if devices.is_first:
        write_json(record, folder.record, durable=True)
        print(_summary(record, folder.path))
    return record


@contextmanager
def _stoppable(trainer: pl.Trainer, way_out: Callable[[], str]) -> Iterator[None]:
    """Tells that training or test was interrupted, which Lightning leaves by ``SystemExit``, of SIGTERM with 0 at that.

    Raises:
        Stopped: so it was.
    """
    try:
        yield
    except SystemExit as end:
        reason, code = ("SIGTERM", 143) if isinstance(end, SIGTERMException) else ("hand", 130)
        where = f" at step {trainer.global_step:,}" if trainer.global_step else ""
        raise Stopped(f"stopped by {reason}{where}. Way out: {way_out()}.", code) from None


def _go_on(folder: str | Path) -> str:
    """The way out of a run that was stopped."""
    return f"the same settings with hydra.run.dir={folder} go on from its last checkpoint"


def _begun(config: DictConfig, folder: RunFolder, data: BatchedData, task: pl.LightningModule) -> Path | None:
    """Makes data and run folder ready; returns the checkpoint to go on from, None for a run from its start."""
    data.prepare_data()
    task.prepare_data()
    checkpoint = folder.newest_checkpoint() if folder.goes_on(config) else None
    if checkpoint is None and config.ckpt_path not in (None, "auto"):
        checkpoint = Path(config.ckpt_path)
        check_fit(read_weights(checkpoint), task, checkpoint)
        RunFolder(checkpoint.parent.parent).must_train_as(config, checkpoint)
    if checkpoint is None or checkpoint.resolve().parent != folder.checkpoints.resolve():
        folder.clear()
    if checkpoint is not None:
        print(f"going on from {checkpoint}")
    folder.set_record_aside()
    remove_half_written(folder.path)
    folder.error.unlink(missing_ok=True)
    with replacing(folder.config) as path:
        path.write_text(OmegaConf.to_yaml(config, resolve=True))
    return checkpoint


def evaluate(config: DictConfig) -> dict[str, float]:
    """Tests the network of a finished run again, rebuilt from the run folder; returns the logged figures.

    Raises:
        UsageError: the folder is not that of a run, or lacks the checkpoint.
        Stopped: the test was asked to end before it was finished.
    """
    _quiet()
    check_names(config, Evaluation)
    trained = load_trained(Path(config.run), config.checkpoint, config.data.root)
    trained.config.trainer.update(config.trainer)
    trainer = _trainer(trained.config)
    devices = Devices(trainer)
    if devices.to_be_started:
        return devices.start(evaluate, config, "the same command")
    devices.meet()
    with _stoppable(trainer, lambda: "the same command"):
        figures = trainer.test(trained.task, trained.data, verbose=False)[0]
    recorded = trained.record.get("metrics", {}) if config.checkpoint == "best" else {}
    for name, value in figures.items() if devices.is_first else ():
        print(f"{name} {value:.4g}" + (f"  (the run's record: {recorded[name]:.4g})" if name in recorded else ""))
    return dict(figures)


def _trainer(config: DictConfig, **more: Any) -> pl.Trainer:
    """The trainer as configured; without loggers and callbacks one that shows and writes nothing."""
    silent: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return component(config.trainer, "trainer", plugins=[WholeFiles(), *plugins()], **(more or silent))


def _quiet() -> None:
    """Silences what Lightning says of every run, and what is meant to be as it is."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are made on the device
        ".*exists and is not empty.*",  # the run folder holds the CSV beside its other files
        ".*callbacks used to create the checkpoint.*",  # a test needs none of them
        ".*your dataloader is not resumable.*",  # it reads its place off the step
        ".*is smaller than the logging interval.*",  # steps are counted on through the epochs
        ".*LeafSpec.*deprecated.*",
        ".*srun.*command is available.*",  # on a cluster, where a run is started without it
        ".*__array__ implementation.*",  # matplotlib, of a tensor
        ".*use `self.log.*sync_dist=True.*",  # figures of a whole set are the same in all processes
    ):
        warnings.filterwarnings("ignore", message)


def _validate_to_the_end(config: DictConfig) -> None:
    """Spreads the validations evenly over the run, so that the last one sees the final weights or nearly so."""
    steps, every = config.trainer.max_steps, config.trainer.val_check_interval
    config.trainer.val_check_interval = steps // -(-steps // every)


@contextmanager
def _loggers(config: DictConfig) -> Iterator[list[Logger]]:
    """The configured loggers; W&B's run is closed whatever happens, and its mode is not left in the environment."""
    mode = os.environ.get("WANDB_MODE")
    code = 1
    try:
        yield [component(node, f"logger.{name}") for name, node in config.logger.items()]
        code = 0
    finally:
        if "wandb" in config.logger:
            import wandb

            wandb.finish(exit_code=code)
            os.environ.pop("WANDB_MODE", None)
            if mode is not None:
                os.environ["WANDB_MODE"] = mode


def _record(
    config: DictConfig, metrics: dict[str, float], trainer: pl.Trainer, data: BatchedData, last: LastCheckpoint
) -> dict[str, Any]:
    """What is kept of a finished run: small, plain, enough to run it again."""
    commit, dirty = _git()
    device = trainer.strategy.root_device
    return {
        "label": config.label,
        **config.choices,
        "seed": config.seed,
        "steps": trainer.global_step,
        "samples": {split: data.size(split) for split in ("train", "val", "test")},
        "metrics": dict(sorted(metrics.items())),
        "curve": last.curve,
        "misclassified": getattr(trainer.lightning_module, "misclassified", None),
        "seconds": round(last.elapsed(), 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "parameters": sum(p.numel() for p in trainer.lightning_module.parameters()),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "config": recorded_settings(config),
    }


def _git() -> tuple[str | None, bool | None]:
    """Commit of the code and whether it was changed since; None outside a checkout."""

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _summary(record: dict[str, Any], folder: Path) -> str:
    folder = Path(os.path.relpath(folder))
    animation = folder / "crops" / "training.gif"
    lines = [
        "",
        f"{record['label']}: test error {record['metrics']['test/error']:.2f} % after {record['steps']:,} steps in "
        f"{record['seconds'] / 60:.1f} minutes",
        f"  pictures    {folder / 'crops'}"
        + (f"  ({animation.name} shows the crops over the steps)" if animation.is_file() else ""),
        f"  record      {folder / 'metrics.json'}",
        f"  test again  python evaluate.py run={folder}",
    ]
    return "\n".join(lines)
