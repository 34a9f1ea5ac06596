"""Data, task and network: as a configuration has them, and as a finished run left them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from .config import check
from .data.batched import BatchedData
from .errors import UsageError
from .files import replacing
from .tasks.classification import Classification

_PACKED = ("seed", "label", "choices", "task", "data", "transform", "model", "recipe", "trainer")


class Trained(NamedTuple):
    """A trained network with all that it was trained as."""

    config: DictConfig
    """The run's whole configuration."""
    data: BatchedData
    task: Classification
    """With the trained weights, in evaluation mode."""
    record: dict[str, Any]
    """What ``metrics.json`` holds; empty where the run was not finished."""


def build(config: DictConfig) -> tuple[BatchedData, Classification]:
    """The data and the task with its network, as configured.

    Raises:
        UsageError: a component refuses its settings.
    """
    data = component(config.data, "data")
    network = component(config.model, "model", size=data.input_size, classes=data.classes)
    recipe = config.recipe
    task = component(
        config.task,
        "task",
        network=network,
        optimizer=component(recipe.optimizer, "recipe.optimizer"),
        scheduler=None if recipe.scheduler is None else component(recipe.scheduler, "recipe.scheduler"),
        localisation_lr_factor=recipe.localisation_lr_factor,
    )
    return data, task


def component(node: DictConfig, path: str, **more: Any) -> Any:
    """Builds what a part of the configuration, at the dotted ``path``, names.

    Raises:
        UsageError: it refuses its settings.
    """
    try:
        return instantiate(node, **more)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UsageError):
            raise cause from None
        if isinstance(cause, ValueError | TypeError | pl.utilities.exceptions.MisconfigurationException):
            raise UsageError(f"{path} ({node['_target_']}): {cause}") from error
        raise


def load_trained(path: Path, checkpoint: str = "best", data_root: str | None = None) -> Trained:
    """The network of a run folder, or of a file that :func:`pack` made.

    Args:
        path: folder or file.
        checkpoint: of a run folder: "best" on the validation set, or "last".
        data_root: where the data lies, if not where the run had it.

    Raises:
        UsageError: it is neither, or lacks the checkpoint.
    """
    if path.is_file():
        saved = _read_packed(path)
        config, record, weights, source = OmegaConf.create(saved["config"]), saved["record"], saved["state_dict"], path
    else:
        if not (path / "config.yaml").is_file():
            raise UsageError(
                f"{path} is not a run folder: it has no config.yaml. Way out: run=FOLDER of a run of train.py, or a file that "
                "scripts/export.py packed, as those in checkpoints/."
            )
        config = OmegaConf.load(path / "config.yaml")
        metrics = path / "metrics.json"
        record = json.loads(metrics.read_text()) if metrics.is_file() else {}
        source = path / "checkpoints" / f"{checkpoint}.ckpt"
        weights = read_weights(source)
    assert isinstance(config, DictConfig)
    if data_root is not None:
        config.data.root = data_root
    if "weights" in config.model:
        config.model.weights = "none"  # those that training started from need not be fetched
    check(config)
    data, task = build(config)
    if path.is_file():
        data.names = saved["classes"]
    check_fit(weights, task, source)
    task.load_state_dict(weights)
    return Trained(config, data, task.eval(), record)


def pack(trained: Trained, file: Path) -> None:
    """Puts all that :func:`load_trained` needs of a finished run into one small file of plain values and tensors.

    Raises:
        UsageError: the run was not finished, so that the file would have no figure.
    """
    if not trained.record:
        raise UsageError(f"{trained.config.label} has no metrics.json. Way out: a run that came to its end.")
    config: Any = OmegaConf.to_container(trained.config, resolve=True)
    config = {name: config[name] for name in _PACKED}
    for part, name in (
        ("data", "root"),
        ("data", "cache"),
        ("task", "root"),
        ("task", "cache"),
        ("trainer", "default_root_dir"),
    ):
        config[part].pop(name, None)  # where things lay
    content = {
        "config": config,
        "classes": trained.data.names,
        "record": trained.record,
        "state_dict": trained.task.state_dict(),
    }
    with replacing(file) as path:
        torch.save(content, path)


def _read_packed(path: Path) -> dict[str, Any]:
    saved = _read(path)
    if not isinstance(saved, dict) or not {"config", "classes", "record", "state_dict"} <= saved.keys():
        raise UsageError(
            f"{path} is no file of a trained network. Way out: one that scripts/export.py packed; or of a checkpoint, the "
            "run folder that it lies in."
        )
    return saved


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of a run.

    Raises:
        UsageError: it does not exist or cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}. Way out: one of a run folder's checkpoints/.")
    saved = _read(path)
    if not isinstance(saved, dict) or "state_dict" not in saved:
        raise UsageError(f"{path} cannot be read as a checkpoint: it has no weights. Way out: another one, best or last.")
    return saved["state_dict"]


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{path} cannot be read as a checkpoint: {reason}\nWay out: another checkpoint, best or last."
        ) from error


def check_fit(weights: dict[str, Tensor], task: pl.LightningModule, path: Path) -> None:
    """Makes sure that the weights of the file ``path`` are those of this network.

    Raises:
        UsageError: they are another's.
    """
    here = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    different = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if different:
        name = different[0]
        raise UsageError(
            f"{path} is the checkpoint of another network: {len(different)} of {len(here)} tensors differ, first {name} "
            f"({there.get(name, 'absent')} there, {here.get(name, 'absent')} here).\nWay out: the model, transform, width and "
            "data of the run that wrote it; they are in its config.yaml."
        )
