"""Load trained networks from run directories and packed files.

These files may come from other people. They may hold only tensors and plain values, may name only
components of this package, and no ``${...}`` in them is resolved. Callbacks, loggers, the optimizer
and most settings of the trainer are ignored.
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
from ..training.result import check_result, is_file_name, read_result
from ..training.run_dir import RunDir
from ..training.upgrade import upgrade_settings
from ..training.validation import check_component, find_target
from ..training.weights import load_weights, read_checkpoint
from ..utils.errors import UsageError
from ..utils.serialization import save_tensors

_PACKAGES: dict[str, str | tuple[str, ...]] = {
    "data": "spatial_transformer.data.",
    "task": "spatial_transformer.tasks.",
    "model": "spatial_transformer.networks.",
    "model.localisation": "spatial_transformer.networks.localisation.",
    "model.transform": (
        "spatial_transformer.transformer.",
        "spatial_transformer.networks.rotated.",
    ),
}
_GROUPS = ("choices", "task", "data", "model", "recipe", "trainer")
_TRAINER_SETTINGS = ("precision", "limit_test_batches")  # those that change the result of a test
_MAX_SETTINGS = 10_000


class Trained(NamedTuple):
    """A trained network with its data and configuration.

    Attributes:
        config: the parts of the run's configuration that are needed, without interpolations.
        data: data module of the run.
        task: task with the trained weights, in evaluation mode.
        record: content of ``metrics.json``. Empty if the run is not finished, or if the weights are
            not those of its best checkpoint.
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
    """Load a trained network.

    Args:
        path: run directory, one of its checkpoints, or a file that :func:`pack` wrote.
        checkpoint: "best" (on the validation set) or "last", for a run directory.
        data_root: directory of the data, if it has moved.
        trust: other packages whose components the file may name. Their code is executed.

    Raises:
        UsageError: the file is missing or damaged, or names a component of another package.
    """
    path = Path(str(path))  # the command line makes a number of 7
    if path.suffix == ".ckpt":
        path, checkpoint = path.absolute().parent.parent, path.stem
    run_dir = RunDir(path)
    packed = _read_packed(path) if path.is_file() else None
    if packed is not None:
        file = source = path
        settings, record = packed["config"], packed["record"]
    elif run_dir.config.is_file():
        file, source = run_dir.config, run_dir.checkpoints / f"{checkpoint}.ckpt"
        settings = _read_config(file)
        has_record = checkpoint == "best" and run_dir.result.is_file()
        record = read_result(run_dir.result) if has_record else {}
    else:
        problem = (
            "is not a run directory: config.yaml is missing" if path.exists() else "does not exist"
        )
        raise UsageError(f"{path} {problem}.")
    try:
        config = _safe_config(settings, data_root, tuple(trust))
        data, task = build_data_and_task(config, partial(torch.optim.SGD, lr=0.0), None)
        if packed is not None:
            if len(packed["classes"]) != data.classes:
                raise UsageError(f"classes must be {data.classes}, got {len(packed['classes'])}.")
            data.names = packed["classes"]
    except (UsageError, RecursionError) as error:
        raise UsageError(f"{file}: {error}") from error
    load_weights(task, source)
    return Trained(OmegaConf.create(config), data, task.eval(), record)


def pack(trained: Trained, file: Path) -> None:
    """Write a trained network, its configuration and its result to one small file.

    Raises:
        UsageError: the network is not the best checkpoint of a finished run.
        OSError: the file cannot be written.
    """
    if not trained.record:
        raise UsageError(f"{trained.config.label} is not the best checkpoint of a finished run.")
    config: Any = OmegaConf.to_container(trained.config)
    for group in ("data", "task"):  # the paths of this machine stay out
        config[group] = {k: v for k, v in config[group].items() if k not in ("root", "cache")}
    content = {"config": config, "classes": trained.data.names, "record": trained.record}
    save_tensors({**content, "state_dict": trained.task.state_dict()}, file)


def _safe_config(settings: dict, data_root: str | None, trust: tuple[str, ...]) -> dict[str, Any]:
    """Check the settings of a run and return those that are needed."""
    config: dict[str, Any] = {name: settings.get(name) for name in ("seed", "label", *_GROUPS)}
    for n, value in enumerate(_leaves(config)):
        is_plain = isinstance(value, str | int | float | None)
        if not is_plain or re.search(r"\$\{|^\?{3}$", str(value)):
            raise UsageError(f"settings must be plain values, got {str(value)[:100]!r}.")
        if n > _MAX_SETTINGS:
            raise UsageError(f"there must be at most {_MAX_SETTINGS} settings.")
    if not is_file_name(config["label"]):  # an export is called after it
        raise UsageError(f"label must be the name of a file, got {config['label']!r}.")
    for name in _GROUPS:
        if not isinstance(config[name], dict):
            raise UsageError(f"{name} must be a group of settings, got {config[name]!r}.")
    config = upgrade_settings(config)
    config["trainer"] = {
        "_target_": "pytorch_lightning.Trainer",
        "use_distributed_sampler": False,
        **{k: v for k, v in config["trainer"].items() if k in _TRAINER_SETTINGS},
    }
    for name in ("data", "task", "model"):
        if data_root is not None and (name == "data" or "root" in config[name]):
            config[name]["root"] = data_root
        _check_origin(name, config[name], trust)
        check_component(name, config[name])
    model = config["model"]
    is_ours = model["_target_"].startswith(_PACKAGES["model"])
    if is_ours and model.get("weights"):
        model["weights"] = "none"  # pretrained weights, replaced by the trained ones
    return config


def _leaves(node: Any) -> Iterator[Any]:
    """Yield all keys and values except mappings and lists. A key that is not text becomes bytes."""
    if isinstance(node, dict):
        yield from (key if isinstance(key, str) else b"" for key in node)
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _leaves(child)
    else:
        yield node


def _check_origin(path: str, node: Any, trust: tuple[str, ...]) -> None:
    """Refuse components that are not defined in the package of their kind."""
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
    module = f"{getattr(found, '__module__', '')}."
    if not is_component or not module.startswith(package) or special != ["_target_"]:
        raise UsageError(
            f"{path} must be a component of this package, got {target}. If you trust the file, "
            f"set trust=[{target.partition('.')[0]}], or --trust for scripts/export.py."
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
