"""Data, task and network: as a configuration has them, and as a finished run left them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from .config import Config, check
from .data.batched import BatchedData
from .errors import UsageError
from .run_folder import RunFolder, check_record, read_config, read_record
from .saved import load_saved, save
from .tasks.classification import Classification

_NOT_PACKED: dict[str, Any] = {"run_dir": ".", "logger": {}, "callbacks": {}}
_ANOTHER_FILE = "Way out: one that scripts/export.py packed; or of a checkpoint, the run folder that it lies in."
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
    with _told("recipe.optimizer", recipe.optimizer):  # made anew for training, when it is too late to learn what is wrong
        optimizer = task.optimizer(task.parameter_groups())
    if task.scheduler is not None:
        with _told("recipe.scheduler", recipe.scheduler):
            task.scheduler(optimizer)
    return data, task


def component(node: DictConfig, path: str, **more: Any) -> Any:
    """Builds what a part of the configuration, at the dotted ``path``, names.

    Raises:
        UsageError: it refuses its settings.
    """
    with _told(path, node):
        return instantiate(node, **more)


@contextmanager
def _told(path: str, node: DictConfig) -> Iterator[None]:
    """What a component raises because of its settings, told as such."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, UsageError):
            raise cause from None
        # Arithmetic, memory and PyTorch's runtime: sizes that no machine has.
        if isinstance(cause, ValueError | TypeError | ArithmeticError | RuntimeError | MemoryError | MisconfigurationException):
            reason = str(cause).strip() or type(cause).__name__
            if isinstance(cause, RuntimeError):
                reason = reason.partition("\n")[0]  # what follows are places in PyTorch's own code
            way_out = "" if "Way out" in reason else f"\nWay out: other settings of {path}."
            raise UsageError(f"{path} ({node['_target_']}): {reason}{way_out}") from error
        raise


def load_trained(
    path: str | Path,
    checkpoint: str = "best",
    data_root: str | None = None,
) -> Trained:
    """The network of a run folder, or of a file that :func:`pack` made.

    Args:
        path: folder or file.
        checkpoint: of a run folder: "best" on the validation set, or "last".
        data_root: where the data lies, if not where the run had it.

    Raises:
        UsageError: it is neither, or lacks the checkpoint.
    """
    path = Path(path)
    if path.is_file():
        saved = _read_packed(path)
        config, data, task = _rebuilt({**_NOT_PACKED, **saved["config"]}, data_root, path)
        if len(saved["classes"]) != data.classes:
            raise UsageError(f"{path} names {len(saved['classes'])} of {data.classes} classes. {_ANOTHER_FILE}")
        data.names = saved["classes"]
        record, weights, source = saved["record"], saved["state_dict"], path
    else:
        folder = RunFolder(path)
        if not folder.config.is_file():
            raise UsageError(
                f"{path} is not a run folder: it has no config.yaml. Way out: run=FOLDER of a run of train.py, or a file that "
                "scripts/export.py packed, as those in checkpoints/."
            )
        config, data, task = _rebuilt(read_config(folder.config), data_root, folder.config)
        record = read_record(folder.record) if folder.record.is_file() else {}
        source = folder.checkpoints / f"{checkpoint}.ckpt"
        weights = read_weights(source)
    check_fit(weights, task, source)
    task.load_state_dict(weights)
    return Trained(config, data, task.eval(), record)


def _rebuilt(saved: DictConfig | dict, data_root: str | None, file: Path) -> tuple[DictConfig, BatchedData, Classification]:
    """The configuration of a run, whoever wrote it to ``file``, with the data and the task that it has."""
    try:
        config: Any = OmegaConf.merge(OmegaConf.structured(Config), saved)
        if data_root is not None:
            config.data.root = data_root
            if "root" in config.task:  # that of co-localisation reads digits, too
                config.task.root = data_root
        if "weights" in config.model:
            config.model.weights = "none"  # those that training started from need not be fetched
        check(config)
        return config, *build(config)
    except UsageError as error:
        raise error if str(file) in str(error) else UsageError(f"{file}: {error}") from error
    except (OmegaConfBaseException, OverflowError, RecursionError) as error:  # what the root's schema does not allow
        reason = str(error).partition("\n    full_key")[0]
        raise UsageError(f"{file}: {reason}\nWay out: the file as the run wrote it, or another run.") from error


def pack(trained: Trained, file: Path) -> None:
    """Puts all that :func:`load_trained` needs of a finished run into one small file of plain values and tensors.

    Raises:
        UsageError: the run was not finished, so that the file would have no figure.
        OSError: the file cannot be written.
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
    save(content, file)


def _read_packed(path: Path) -> dict[str, Any]:
    saved = _read(path)
    if not isinstance(saved, dict) or not {"config", "classes", "record", "state_dict"} <= saved.keys():
        raise UsageError(f"{path} is no file of a trained network. {_ANOTHER_FILE}")
    try:
        check_record(saved["record"])
        for name, kind in (("config", dict), ("classes", list), ("state_dict", dict)):
            if not isinstance(saved[name], kind):
                raise ValueError(f"its {name} is not as it should be")
        if not all(isinstance(name, str) for name in saved["classes"]):
            raise ValueError("its classes have no names")
    except ValueError as error:
        raise UsageError(f"{path} is no file of a trained network: {error}. {_ANOTHER_FILE}") from error
    return saved


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of a run.

    Raises:
        UsageError: it does not exist or cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}. Way out: one of a run folder's checkpoints/.")
    saved = _read(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict):
        raise UsageError(f"{path} cannot be read as a checkpoint: it has no weights. Way out: another one, best or last.")
    return saved["state_dict"]


def _read(path: Path) -> Any:
    try:
        return load_saved(path)
    except ValueError as error:
        raise UsageError(
            f"{path} cannot be read as a checkpoint: {error}\nWay out: another checkpoint, best or last."
        ) from error


def check_fit(weights: dict[str, Tensor], task: pl.LightningModule, path: Path) -> None:
    """Makes sure that the weights of the file ``path`` are those of this network.

    Raises:
        UsageError: they are another's.
    """
    here = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    there = {name: tuple(tensor.shape) if isinstance(tensor, Tensor) else "no tensor" for name, tensor in weights.items()}
    different = sorted((name for name in here.keys() | there.keys() if here.get(name) != there.get(name)), key=str)
    if different:
        name = different[0]
        raise UsageError(
            f"{path} is the checkpoint of another network: {len(different)} of {len(here)} tensors differ, first {name} "
            f"({there.get(name, 'absent')} there, {here.get(name, 'absent')} here).\nWay out: the model, transform, width and "
            "data of the run that wrote it; they are in its config.yaml."
        )
