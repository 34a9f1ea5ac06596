"""The result of a finished run, ``metrics.json``."""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ..utils.errors import UsageError
from .fingerprint import IGNORED, acting_callbacks
from .upgrade import upgrade_settings

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "wandb")
_FIELDS: dict[str, Any] = {
    "label": str,
    "experiment": str,
    "model": str,
    "transform": str,
    "recipe": str,
    "seed": int,
    "steps": int,
    "seconds": (int, float),
    "device": str,
    "metrics": dict,
    "config": dict,
}


def make_result(
    config: dict[str, Any],
    fingerprint: dict[str, str],
    metrics: dict[str, float],
    trainer: pl.Trainer,
    task: pl.LightningModule,
    data: Any,
    **progress: Any,
) -> dict[str, Any]:
    """Return the result of a finished run: plain values, enough to run it again.

    Args:
        config: the resolved configuration.
        fingerprint: of the run.
        metrics: name -> value. Those that are not finite, which JSON lacks, are left out.
        trainer, task, data: those of the run, after its test.
        progress: ``steps``, ``seconds`` and ``curve``.
    """
    commit, dirty = _git()
    device = trainer.strategy.root_device
    is_cuda = device.type == "cuda"
    return {
        "label": config["label"],
        **config["choices"],
        "seed": config["seed"],
        "samples": {split: data.size(split) for split in ("train", "val", "test")},
        "metrics": {k: v for k, v in sorted(metrics.items()) if math.isfinite(v)},
        "misclassified": getattr(task, "misclassified", None),
        **progress,
        "device": torch.cuda.get_device_name(device) if is_cuda else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "parameters": sum(p.numel() for p in task.parameters()),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "fingerprint": fingerprint,
        "config": result_settings(config),
    }


def result_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that change the result, but for those with a field of their own."""
    in_fields = {"max_steps", "precision", "val_check_interval"}
    left_out = {
        "data": {"root", "cache"},
        "task": {"root", "cache"},
        "trainer": in_fields.union(IGNORED["trainer"]) - {"limit_test_batches"},
    }
    settings = {}
    for group in ("data", "transform", "model", "recipe", "task", "trainer"):
        hidden, node = left_out.get(group, ()), config[group] or {}
        settings[group] = {name: value for name, value in node.items() if name not in hidden}
    start = None if config["ckpt_path"] == "auto" else config["ckpt_path"]
    return {**settings, "start": {"ckpt_path": start}, "callbacks": acting_callbacks(config)}


def check_result(result: Any) -> None:
    """Raise a ValueError unless ``result`` is that of a finished run."""
    if not isinstance(result, dict):
        raise ValueError("it is not a mapping")
    for name, kind in _FIELDS.items():
        if not isinstance(result.get(name), kind):
            raise ValueError(f"{name} is missing or of the wrong type")
    check_names(result)
    for name in ("data", "model", "recipe", "task"):
        if not isinstance(result["config"].get(name), dict):
            raise ValueError(f"config.{name} is missing")
    for name, value in result["metrics"].items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} is not a number")
    if not math.isfinite(result["metrics"].get("test/error", math.nan)):
        raise ValueError("test/error is missing")


def check_names(names: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the label and the chosen options are those of a result.

    Args:
        names: "label", "experiment", "model", "transform" and "recipe".
    """
    if not is_file_name(names["label"]):
        raise ValueError(
            "label must begin with a letter or a digit and have at most 200 printable characters "
            f"and no slashes, got {names['label']!r}"
        )
    for name in ("experiment", "model", "transform", "recipe"):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", names[name]):  # it becomes an override of Hydra
            raise ValueError(f"{name} must be letters, digits and underscores, got {names[name]!r}")


def is_file_name(label: Any) -> bool:
    """Return whether a label can become the name of a file and be printed."""
    is_plain = isinstance(label, str) and label.isprintable()
    return is_plain and bool(re.fullmatch(r"[^\W.][^/\\]{0,199}", label))


def read_result(path: Path) -> dict[str, Any]:
    """Return the result of a finished run.

    Raises:
        UsageError: the file cannot be read, or is not a result.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        check_result(result)
        return {**result, "config": upgrade_settings(result["config"])}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not the result of a run: {error}. "
            "In a run directory, remove it and rerun the same command to repeat the test."
        ) from error


def _git() -> tuple[str | None, bool | None]:
    """Return the commit of the code and whether it has changed since; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    options: Any = {"cwd": Path(__file__).parent, "capture_output": True, "text": True}
    try:
        text = subprocess.run(command, check=True, **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return text.removesuffix("-dirty"), text.endswith("-dirty")
