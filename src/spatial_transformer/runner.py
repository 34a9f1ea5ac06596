"""A run from its configuration to its record: seed, data, task, callbacks, loggers, trainer, fit, test, record."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import subprocess
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from .callbacks.last_checkpoint import LastCheckpoint, WholeFiles
from .callbacks.wandb_run import WandbRun
from .config import check
from .data.batched import BatchedData
from .errors import Stopped, UsageError
from .files import replacing
from .process import keep_freed_memory
from .run_folder import RunFolder

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb")


def run(config: DictConfig) -> dict[str, Any]:
    """Trains and tests as configured, or goes on where the run folder's own run was stopped.

    Returns the record that ``metrics.json`` holds; of a finished run at once.

    Raises:
        UsageError: whatever the user can put right, before training where it can be known then.
        Stopped: the run was asked to end before it was finished.
    """
    check(config)
    folder = RunFolder(config.run_dir)
    if config.ckpt_path == "auto":
        record = folder.finished(config)
        if record is not None:
            if _is_first():
                print(_summary(record, folder.path), "  finished before; ckpt_path=null runs it anew", sep="\n")
            return record
    try:
        return _run(config, folder)
    except Exception as error:
        if _is_first() and folder.config.is_file():  # no folder for a run that never began
            with suppress(OSError):
                folder.note_failure(str(error) if isinstance(error, UsageError) else traceback.format_exc())
        raise


def _run(config: DictConfig, folder: RunFolder) -> dict[str, Any]:
    keep_freed_memory()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    _quiet()
    data, task = build(config)
    if _is_first():  # the others wait for it where they come together, at the start of training
        data.prepare_data()
        task.prepare_data()
    checkpoint = None
    if config.ckpt_path == "auto":
        checkpoint = folder.newest_checkpoint()
    elif config.ckpt_path is not None:
        checkpoint = _fitting_checkpoint(Path(config.ckpt_path), task)
    if checkpoint is not None and _is_first():
        print(f"going on from {checkpoint}")
    _validate_to_the_end(config)
    if _is_first():
        if checkpoint is None:
            folder.clear()
        folder.error.unlink(missing_ok=True)
        with replacing(folder.config) as path:
            path.write_text(OmegaConf.to_yaml(config, resolve=True))
    with _loggers(config) as loggers:
        callbacks = [_build(node, f"callbacks.{name}") for name, node in config.callbacks.items() if node is not None]
        if not loggers:
            callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]
        last = LastCheckpoint(folder.checkpoints, config.checkpoint_minutes)
        trainer = _build(config.trainer, "trainer", logger=loggers or False, callbacks=[*callbacks, last], plugins=_plugins())
        settings: Any = OmegaConf.to_container(config, resolve=True)
        for logger in loggers:
            logger.log_hyperparams(settings)
        try:
            trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as end:  # so Lightning leaves when it is interrupted
            if isinstance(end, SIGTERMException):
                reason, code = "stopped by SIGTERM", 143
            else:
                reason, code = "stopped by hand", 130
            way_out = f"the same settings with hydra.run.dir={folder.path} go on from its last checkpoint"
            if not folder.last.is_file():
                way_out = "start again; there was no checkpoint yet"
            raise Stopped(f"{reason} at step {trainer.global_step:,}. Way out: {way_out}.", code) from None
        figures = last.figures | {name: float(value) for name, value in trainer.callback_metrics.items()}
        best = trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else ""
        tested = trainer.test(task, data, ckpt_path=best or None, weights_only=True, verbose=False)[0]
        if best and trainer.checkpoint_callback.monitor == "val/error":
            figures["val/best_error"] = float(trainer.checkpoint_callback.best_model_score)
        record = _record(config, figures | tested, trainer, data, last.elapsed())
        for logger in loggers:
            if isinstance(logger, WandbRun):
                logger.log_record(record, best)
    if trainer.is_global_zero:
        with replacing(folder.record, durable=True) as path:
            path.write_text(json.dumps(record, indent=2) + "\n")
        print(_summary(record, folder.path))
    return record


def _is_first() -> bool:
    """Whether this is the first of all processes of the run, or the only one; known before they come together."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _plugins() -> list[Any]:
    """How checkpoints are written; and on SLURM, that Lightning leaves requeueing to the cluster, and resuming to us."""
    plugins: list[Any] = [WholeFiles()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def evaluate(config: DictConfig) -> dict[str, float]:
    """Tests the network of a finished run again, rebuilt from the run folder; returns the logged figures.

    Raises:
        UsageError: the folder is not that of a run, or lacks the checkpoint.
    """
    _quiet()
    folder = Path(config.run)
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UsageError(f"{folder} is not a run folder: it has no config.yaml. Way out: run=FOLDER of a run of train.py.")
    run_config = OmegaConf.load(saved)
    assert isinstance(run_config, DictConfig)
    if config.data_root is not None:
        run_config.data.root = config.data_root
    check(run_config)
    data, task = build(run_config)
    checkpoint = _fitting_checkpoint(folder / "checkpoints" / f"{config.checkpoint}.ckpt", task)
    trainer = _build(run_config.trainer, "trainer", logger=False, callbacks=[], enable_progress_bar=False)
    figures = trainer.test(task, data, ckpt_path=checkpoint, weights_only=True, verbose=False)[0]
    record = folder / "metrics.json"
    recorded = json.loads(record.read_text())["metrics"] if record.is_file() and config.checkpoint == "best" else {}
    for name, value in figures.items():
        print(f"{name} {value:.4g}" + (f"  (the run's record: {recorded[name]:.4g})" if name in recorded else ""))
    return dict(figures)


def build(config: DictConfig) -> tuple[BatchedData, pl.LightningModule]:
    """The data and the task with its network, as configured."""
    data = _build(config.data, "data")
    network = _build(config.model, "model", size=data.input_size, classes=data.classes)
    recipe = config.recipe
    task = _build(
        config.task,
        "task",
        network=network,
        optimizer=_build(recipe.optimizer, "recipe.optimizer"),
        scheduler=None if recipe.scheduler is None else _build(recipe.scheduler, "recipe.scheduler"),
        localisation_lr_factor=recipe.localisation_lr_factor,
    )
    return data, task


def _quiet() -> None:
    """Silences what Lightning says of every run, and what is meant to be as it is."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are made on the device
        ".*exists and is not empty.*",  # the run folder holds the CSV beside its other files
        ".*callbacks used to create the checkpoint.*",  # a test needs none of them
        ".*your dataloader is not resumable.*",  # it reads its place off the step
        ".*The dirpath has changed.*",  # a resumed run writes to its own folder
        ".*is smaller than the logging interval.*",  # steps are counted on through the epochs
        ".*LeafSpec.*deprecated.*",
        ".*srun.*command is available.*",  # on a cluster, where a run is started without it
        ".*__array__ implementation.*",  # matplotlib, of a tensor
    ):
        warnings.filterwarnings("ignore", message)


def _build(node: DictConfig, path: str, **more: Any) -> Any:
    try:
        return instantiate(node, **more)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        if isinstance(cause, ValueError | TypeError | pl.utilities.exceptions.MisconfigurationException):
            raise UsageError(f"{path} ({node['_target_']}): {cause}") from error
        raise


def _fitting_checkpoint(path: Path, task: pl.LightningModule) -> Path:
    """``path``, if its weights are those of this network."""
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}. Way out: one of a run folder's checkpoints/.")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{path} cannot be read as a checkpoint: {reason}\nWay out: another checkpoint, best or last."
        ) from error
    here = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    different = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if different:
        name = different[0]
        raise UsageError(
            f"{path} is the checkpoint of another network: {len(different)} of {len(here)} tensors differ, first {name} "
            f"({there.get(name, 'absent')} there, {here.get(name, 'absent')} here).\nWay out: the model, transform, width and "
            "data of the run that wrote it; they are in its config.yaml."
        )
    return path


def _validate_to_the_end(config: DictConfig) -> None:
    """Spreads the validations evenly over the run, so that the last one sees the final weights or nearly so."""
    steps, every = config.trainer.max_steps, config.trainer.val_check_interval
    if isinstance(every, int):
        config.trainer.val_check_interval = steps // math.ceil(steps / every)


@contextmanager
def _loggers(config: DictConfig) -> Iterator[list[Logger]]:
    """The configured loggers; W&B's run is closed whatever happens, and its mode is not left in the environment."""
    mode = os.environ.get("WANDB_MODE")
    try:
        yield [_build(node, f"logger.{name}") for name, node in config.logger.items()]
    finally:
        if "wandb" in config.logger:
            import wandb

            wandb.finish()
            os.environ.pop("WANDB_MODE", None)
            if mode is not None:
                os.environ["WANDB_MODE"] = mode


def _record(
    config: DictConfig, metrics: dict[str, float], trainer: pl.Trainer, data: BatchedData, seconds: float
) -> dict[str, Any]:
    """What is kept of a finished run: small, plain, enough to run it again."""
    commit, dirty = _git()
    device = trainer.strategy.root_device
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for name in ("root", "cache"):  # where the data lay says nothing of the result
        for part in ("data", "task"):
            settings[part].pop(name, None)
    return {
        "label": config.label,
        **settings["choices"],
        "seed": config.seed,
        "steps": trainer.global_step,
        "samples": {split: data.size(split) for split in ("train", "val", "test")},
        "metrics": dict(sorted(metrics.items())),
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "parameters": sum(p.numel() for p in trainer.lightning_module.parameters()),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "config": {name: settings[name] for name in ("data", "transform", "model", "recipe", "task")},
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
