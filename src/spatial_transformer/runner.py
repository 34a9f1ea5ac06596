"""A run from its configuration to its record: seed, data, task, callbacks, loggers, trainer, fit, test, record."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, WandbLogger

from .building import build, check_fit, component, load_trained, read_weights
from .config import check
from .data.batched import BatchedData
from .errors import UsageError
from .files import replacing
from .process import keep_freed_memory

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb")


def run(config: DictConfig) -> dict[str, Any]:
    """Trains and tests as configured; returns the record that ``metrics.json`` holds.

    Raises:
        UsageError: whatever the user can put right, before training where it can be known then.
    """
    check(config)
    keep_freed_memory()
    start = time.monotonic()
    folder = Path(config.run_dir)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    _quiet()
    data, task = build(config)
    data.prepare_data()
    task.prepare_data()
    checkpoint = None if config.ckpt_path is None else Path(config.ckpt_path)
    if checkpoint is not None:
        check_fit(read_weights(checkpoint), task, checkpoint)
    _validate_to_the_end(config)
    with replacing(folder / "config.yaml") as path:
        path.write_text(OmegaConf.to_yaml(config, resolve=True))
    with _loggers(config) as loggers:
        callbacks = [component(node, f"callbacks.{name}") for name, node in config.callbacks.items() if node is not None]
        if not loggers:
            callbacks = [c for c in callbacks if not isinstance(c, pl.callbacks.LearningRateMonitor)]
        trainer = component(config.trainer, "trainer", logger=loggers or False, callbacks=callbacks)
        settings: Any = OmegaConf.to_container(config, resolve=True)
        for logger in loggers:
            logger.log_hyperparams(settings)
        try:
            trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # so Lightning leaves when it is interrupted
            last = folder / "checkpoints" / "last.ckpt"
            way_out = f"go on with ckpt_path={last}" if last.is_file() else "start again; there was no checkpoint yet"
            raise UsageError(f"stopped by hand at step {trainer.global_step:,}. Way out: {way_out}.") from None
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        best = trainer.checkpoint_callback.best_model_path if trainer.checkpoint_callback else ""
        tested = trainer.test(task, data, ckpt_path=best or None, weights_only=True, verbose=False)[0]
        if best and trainer.checkpoint_callback.monitor == "val/error":
            figures["val/best_error"] = float(trainer.checkpoint_callback.best_model_score)
        record = _record(config, figures | tested, trainer, data, time.monotonic() - start)
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary.update(record["metrics"])
    if trainer.is_global_zero:
        with replacing(folder / "metrics.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n")
        print(_summary(record, folder))
    return record


def evaluate(config: DictConfig) -> dict[str, float]:
    """Tests the network of a finished run again, rebuilt from the run folder; returns the logged figures.

    Raises:
        UsageError: the folder is not that of a run, or lacks the checkpoint.
    """
    _quiet()
    trained = load_trained(Path(config.run), config.checkpoint, config.data_root)
    trainer = component(trained.config.trainer, "trainer", logger=False, callbacks=[], enable_progress_bar=False)
    figures = trainer.test(trained.task, trained.data, verbose=False)[0]
    recorded = trained.record.get("metrics", {}) if config.checkpoint == "best" else {}
    for name, value in figures.items():
        print(f"{name} {value:.4g}" + (f"  (the run's record: {recorded[name]:.4g})" if name in recorded else ""))
    return dict(figures)


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
        ".*__array__ implementation.*",  # matplotlib, of a tensor
    ):
        warnings.filterwarnings("ignore", message)


def _validate_to_the_end(config: DictConfig) -> None:
    """Spreads the validations evenly over the run, so that the last one sees the final weights or nearly so."""
    steps, every = config.trainer.max_steps, config.trainer.val_check_interval
    if isinstance(every, int):
        config.trainer.val_check_interval = steps // math.ceil(steps / every)


@contextmanager
def _loggers(config: DictConfig) -> Iterator[list[Logger]]:
    """The configured loggers; W&B online if there is a key, else offline. Closed whatever happens."""
    if "wandb" not in config.logger:
        yield [component(node, f"logger.{name}") for name, node in config.logger.items()]
        return
    import wandb

    mode = os.environ.get("WANDB_MODE")
    offline = config.logger.wandb.offline
    offline = not wandb.login(prompt=False) if offline is None else offline
    # The mode too: Lightning only sets the environment, and leaves it so, and W&B may have read it by now.
    more = {"mode": "offline", "settings": wandb.Settings(silent=True)} if offline else {}
    try:
        yield [
            component(node, f"logger.{name}", **({"offline": offline} | more if name == "wandb" else {}))
            for name, node in config.logger.items()
        ]
    finally:
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
