"""The data and the task of a run, built from its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torchmetrics import Metric

from ..data.base import BatchedData
from ..tasks.classification import Classification
from ..tasks.spsa import evaluation_mode
from ..utils.errors import UsageError
from .validation import accepted_names


def build(config: DictConfig) -> tuple[BatchedData, Classification]:
    """Build the data and the task with its network.

    Raises:
        UsageError: a component refuses its settings, or they cannot be trained with.
    """
    recipe = config.recipe
    optimizer = component(recipe.optimizer, "recipe.optimizer", _partial_=True)
    scheduler = recipe.scheduler
    if scheduler is not None:
        scheduler = component(scheduler, "recipe.scheduler", _partial_=True)
    data, task = build_data_and_task(config, optimizer, scheduler)
    if type(task).configure_optimizers is Classification.configure_optimizers:
        with _short_refusals("recipe", recipe.optimizer["_target_"]):
            task.configure_optimizers()  # training would refuse them later
    return data, task


def build_data_and_task(config: Any, optimizer: Any, scheduler: Any) -> tuple[Any, Any]:
    """Build the data and the task with given factories of the optimizer and the scheduler.

    The network gets ``size`` and ``classes`` of the data if it has arguments of these names. The
    task gets each setting of the recipe that it has an argument for.
    """

    def accepted(part: str, values: dict[str, Any]) -> dict[str, Any]:
        names = accepted_names(config[part]["_target_"]) - config[part].keys()
        return {name: value for name, value in values.items() if name in names}

    data = component(config["data"], "data")
    shape = accepted("model", {"size": data.input_size, "classes": data.classes})
    network = component(config["model"], "model", **shape)
    recipe = {**config["recipe"], "optimizer": optimizer, "scheduler": scheduler}
    return data, component(config["task"], "task", network=network, **accepted("task", recipe))


def check_match(config: DictConfig, data: BatchedData, task: Classification) -> None:
    """Evaluate one image, if the data, the model and the task are all of this package.

    Raises:
        UsageError: they do not match.
    """
    parts = OmegaConf.to_yaml(OmegaConf.masked_copy(config, ["data", "model", "task"]))
    targets = re.findall(r"_target_: (\S+)", parts)
    if not all(target.startswith("spatial_transformer.") for target in targets):
        return
    data.setup("fit")
    images, labels = data.samples("val", torch.arange(1))
    try:
        with torch.no_grad(), evaluation_mode(task):
            task.validation_step((images, labels), 0)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        choices = config.choices
        raise UsageError(
            f"model={choices.model} does not match the data of experiment={choices.experiment}, "
            f"with images of shape {tuple(images.shape[1:])}: {error}"
        ) from error
    for module in task.modules():
        if isinstance(module, Metric):
            module.reset()


def component(node: Any, path: str, **more: Any) -> Any:
    """Build what the part of the configuration at a dotted path names.

    Raises:
        UsageError: a component of this package, Lightning or PyTorch refuses a value or lacks a
            package. Other errors keep their type and their traceback.
    """
    for name, child in node.items():  # first, as an error is that of the innermost component
        if isinstance(child, dict | DictConfig) and "_target_" in child:
            more[name] = component(child, f"{path}.{name}")
    with _short_refusals(path, node["_target_"]):
        return instantiate(node, _convert_="all", **more)


@contextmanager
def _short_refusals(path: str, target: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        is_hydra = isinstance(error, InstantiationException) and error.__cause__ is not None
        cause: Any = error.__cause__ if is_hydra else error
        is_lightning = target.startswith("pytorch_lightning.")
        is_library = is_lightning or target.startswith(("spatial_transformer.", "torch."))
        is_refusal = isinstance(cause, MisconfigurationException | ImportError | ValueError)
        is_refusal |= is_lightning and isinstance(cause, TypeError)  # trainer.devices=two
        if is_library and is_refusal:
            raise UsageError(f"{path} ({target}): {cause}") from cause
        raise cause from cause.__cause__ or cause.__context__
