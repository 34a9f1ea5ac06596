"""Trained networks: from a run directory, or from one packed file.

Such files may come from other people. So they hold tensors and plain values, name components of
this package only, and no ``${...}`` in them is resolved. Callbacks, loggers, the optimizer and most
settings of the trainer are not looked at.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from ..data.base import BatchedData
from ..tasks.classification import Classification
from ..training.build import build_data_and_task
from ..training.result import check_result, read_result
from ..training.run_dir import RunDir
from ..training.upgrade import upgrade_settings
from ..training.validation import check_component, find_target
from ..training.weights import check_fit, read_checkpoint, read_weights
from ..utils.errors import UsageError
from ..utils.serialization import save_tensors

_PACKAGES = {
    "data": "spatial_transformer.data.",
    "task": "spatial_transformer.tasks.",
    "model": "spatial_transformer.networks.",
    "model.transform": "spatial_transformer.transformer.",
}
_GROUPS = ("choices", "task", "data", "model", "recipe", "trainer")
_TRAINER = ("precision", "limit_test_batches")  # what the result of a test depends on
_MOST_VALUES = 10_000


class Trained(NamedTuple):
    """A trained network with all that it was trained as.

    Attributes:
        config: what is needed of the run's configuration, without references.
        data: the data of the run.
        task: the task with the trained weights, in evaluation mode.
        record: content of ``metrics.json``; empty if the run is not finished.
    """

    config: DictConfig
    data: BatchedData
    task: Classification
    record: dict[str, Any]


def load_trained(
    path: str | Path,
    checkpoint: str = "best",
    data_root: str | None = None,
    trust: Iterable[str] = (),
) -> Trained:
    """Load the network of a run directory, or of a file that :func:`pack` wrote.

    Args:
        path: directory or file.
        checkpoint: of a run directory: "best" on the validation set, or "last".
        data_root: where the data is, if not where the run had it.
        trust: other packages whose components the file may name. Their code is executed.

    Raises:
        UsageError: it is neither, it is damaged, or it names a component of another package.
    """
    path = Path(path)
    run_dir = RunDir(path)
    if path.is_file():
        file = source = path
        packed = _read_packed(path)
        settings, weights, record = packed["config"], packed["state_dict"], packed["record"]
    elif run_dir.config.is_file():
        file, source = run_dir.config, run_dir.checkpoints / f"{checkpoint}.ckpt"
        settings, weights = _read_config(file), read_weights(source)
        record = read_result(run_dir.result) if run_dir.result.is_file() else {}
    else:
        raise UsageError(f"{path} is not a run directory: config.yaml is missing.")
    try:
        config = _safe_config(settings, data_root, tuple(trust))
        data, task = build_data_and_task(config, partial(torch.optim.SGD, lr=0.0), None)
        if path.is_file():
            if len(packed["classes"]) != data.classes:
                raise UsageError(f"classes must be {data.classes}, got {len(packed['classes'])}.")
            data.names = packed["classes"]
    except (UsageError, RecursionError) as error:
        raise UsageError(f"{file}: {error}") from error
    check_fit(weights, task, source)
    task.load_state_dict(weights)
    return Trained(OmegaConf.create(config), data, task.eval(), record)


def pack(trained: Trained, file: Path) -> None:
    """Write all that :func:`load_trained` needs of a finished run into one small file.

    Raises:
        UsageError: the run is not finished.
        OSError: the file cannot be written.
    """
    if not trained.record:
        raise UsageError(f"{trained.config.label} is not finished: metrics.json is missing.")
    config: Any = OmegaConf.to_container(trained.config)
    for group in ("data", "task"):  # not where things were on this machine
        config[group] = {k: v for k, v in config[group].items() if k not in ("root", "cache")}
    content = {"config": config, "classes": trained.data.names, "record": trained.record}
    save_tensors({**content, "state_dict": trained.task.state_dict()}, file)


def _safe_config(settings: dict, data_root: str | None, trust: tuple[str, ...]) -> dict[str, Any]:
    """Return the parts of a run's settings that are needed, after all checks."""
    config: dict[str, Any] = {name: settings.get(name) for name in ("seed", "label", *_GROUPS)}
    for n, value in enumerate(_leaves(config)):
        if not isinstance(value, str | int | float | None) or re.search(
            r"\$\{|^\?{3}$", str(value)
        ):
            raise UsageError(f"settings must be plain values, got {str(value)[:100]!r}.")
        if n > _MOST_VALUES:
            raise UsageError(f"there must be at most {_MOST_VALUES} settings.")
    for name in _GROUPS:
        if not isinstance(config[name], dict):
            raise UsageError(f"{name} must be a group of settings, got {config[name]!r}.")
    try:
        config = upgrade_settings(config)
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"the settings of an earlier version are damaged: {error}.") from error
    trainer = {name: config["trainer"][name] for name in _TRAINER if name in config["trainer"]}
    config["trainer"] = {"_target_": "pytorch_lightning.Trainer", "use_distributed_sampler": False}
    config["trainer"] |= trainer
    for name in ("data", "task", "model"):
        if data_root is not None and (name == "data" or "root" in config[name]):
            config[name]["root"] = data_root
        _check_origin(name, config[name], trust)
        check_component(name, config[name])
    if "weights" in config["model"]:
        config["model"]["weights"] = "none"  # training started from them
    return config


def _leaves(node: Any) -> Iterator[Any]:
    """Yield all keys and values that are not mappings or lists; a key that is not text as bytes."""
    if isinstance(node, dict):
        yield from (key if isinstance(key, str) else b"" for key in node)
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _leaves(child)
    else:
        yield node


def _check_origin(path: str, node: Any, trust: tuple[str, ...]) -> None:
    """Refuse a component that is not defined where those of its kind are."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            _check_origin(f"{path}.{key}", value, trust)
    special = [key for key in node if key[:1] == "_"] if isinstance(node, dict) else []
    target = str(node["_target_"]) if "_target_" in special else "nothing"
    if not special or target.partition(".")[0] in trust:
        return
    package = _PACKAGES.get(path, "?")
    found = find_target(target) if target.startswith(package) and "._" not in target else None
    is_component = inspect.isclass(found) or inspect.isfunction(found)
    defined = f"{getattr(found, '__module__', '')}."
    if not is_component or not defined.startswith(package) or special != ["_target_"]:
        raise UsageError(
            f"{path} must be a component of this package, got {target}. If you trust the file, "
            f"set trust=[{target.partition('.')[0]}]."
        )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{file} is not the configuration of a run.")
    return settings


def _read_packed(file: Path) -> dict[str, Any]:
    packed = read_checkpoint(file)
    parts = {"config": dict, "classes": list, "record": dict, "state_dict": dict}
    try:
        for name, kind in parts.items():
            if not isinstance(packed, dict) or not isinstance(packed.get(name), kind):
                raise ValueError(f"{name} is missing or damaged")
        if not all(isinstance(name, str) for name in packed["classes"]):
            raise ValueError("classes must be names")
        check_result(packed["record"])
    except ValueError as error:
        raise UsageError(f"{file} is not a packed network: {error}.") from error
    return packed
