"""Check a configuration before anything is built.

A component is what a ``_target_`` names: any importable class or function of the right kind.
"""

from __future__ import annotations

import inspect
import json
import pydoc
from typing import Any, get_args

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import StochasticWeightAveraging
from torch.optim import Optimizer

from ..data.base import BatchedData
from ..tasks.classification import Classification
from ..transformer import Transform
from ..utils.errors import UsageError, did_you_mean
from .config import NOT_FOR_TASKS, Config, Recipe
from .result import check_names

BASES: dict[str, type] = {
    "data": BatchedData,
    "model.transform": Transform,
    "task": Classification,
    "recipe.optimizer": Optimizer,
    "trainer": pl.Trainer,
    "logger.*": pl.loggers.Logger,
    "callbacks.*": pl.Callback,
}
"""The base class of a component, by its place in the configuration. Others can be any callable."""

_PRECISIONS = ("32", "32-true", "16-mixed", "bf16-mixed", "None")
_STEPS = (lambda v: type(v) is int and v > 0, "a positive integer")
_RULES = {
    "seed": (lambda v: 0 <= v < 2**32, f"from 0 to {2**32 - 1:,}"),
    "run_dir": (bool, "a directory (set hydra.run.dir)"),
    "checkpoint_minutes": (lambda v: v >= 0, "0 or more"),
    "recipe.validate_every": _STEPS,
    "trainer.max_steps": _STEPS,
    "trainer.max_epochs": (lambda v: v in (None, -1) or v > 0, "a positive integer"),
    "trainer.log_every_n_steps": _STEPS,
    "trainer.val_check_interval": _STEPS,
    "trainer.precision": (lambda v: str(v) in _PRECISIONS, "32-true, 16-mixed or bf16-mixed"),
    "trainer.limit_train_batches": (lambda v: v != 0, "positive: a run trains"),
    "trainer.limit_val_batches": (lambda v: v != 0, "positive: best.ckpt is chosen by it"),
    "trainer.limit_test_batches": (lambda v: v != 0, "positive: a run ends with a test"),
    "trainer.check_val_every_n_epoch": (lambda v: v is None, "null (set recipe.validate_every)"),
    "trainer.accumulate_grad_batches": (lambda v: v is None or v > 0, "a positive integer"),
    "trainer.fast_dev_run": (lambda v: not v, "false (use debug=fdr)"),
    "trainer.overfit_batches": (lambda v: not v, "0 (use debug=overfit)"),
}
"""For single settings, the rule and what it expects."""


def validate(config: DictConfig) -> None:
    """Check a composed configuration.

    Raises:
        UsageError: a setting is unknown, or has a wrong type or value.
        OmegaConfBaseException: a setting is missing, or refers to one that does not exist.
    """
    _check_names(config, Config)
    _check_names(config.recipe, Recipe, "recipe.")
    settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    recipe, choices, task = settings["recipe"], settings["choices"], settings["task"]
    trainer = settings["trainer"]
    try:
        check_names({**choices, "label": settings["label"]})  # or its result could not be read
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    needs_transform = "transform" in settings["model"]
    has_transform = settings["model"].get("transform") is not None
    if not needs_transform == has_transform == (choices["transform"] != "none"):
        hint = "Choose transform=affine, say" if needs_transform else "Set transform=none"
        raise UsageError(
            f"model={choices['model']} cannot have transform={choices['transform']}. {hint}."
        )
    components = {name: settings[name] for name in ("data", "model", "task", "trainer")}
    components |= {f"recipe.{name}": recipe[name] for name in ("optimizer", "scheduler")}
    for group in ("logger", "callbacks"):
        components |= {f"{group}.{name}": node for name, node in settings[group].items()}
    for path, node in components.items():
        if node is not None and check_component(path, node) is StochasticWeightAveraging:
            raise UsageError(f"{path} counts epochs, and runs count steps. Use EMAWeightAveraging.")
    for path, (is_right, expected) in _RULES.items():
        value = OmegaConf.select(config, path)
        if not is_right(value):
            raise UsageError(f"{path} must be {expected}, got {value!r}.")
    limit = trainer.get("limit_train_batches") or 1.0
    batches = trainer.get("accumulate_grad_batches") or 1
    if batches > 1 and (limit % batches if isinstance(limit, int) else limit != 1.0):
        raise UsageError(
            "trainer.limit_train_batches must be a multiple of trainer.accumulate_grad_batches, "
            f"got {limit} and {batches}."
        )
    is_mixed = str(trainer.get("precision")).endswith("-mixed")
    if is_mixed and trainer.get("gradient_clip_val") and recipe["optimizer"].get("fused"):
        raise UsageError(
            "trainer.gradient_clip_val cannot be combined with a fused optimizer and mixed "
            "precision. Set recipe.optimizer.fused=false."
        )
    used = NOT_FOR_TASKS - {"dropout"} | settings["model"].keys()
    used |= task.keys() | accepted_names(task["_target_"])
    for name, field in Recipe.__dataclass_fields__.items():
        if name not in used and recipe[name] != field.default:
            raise UsageError(
                f"recipe.{name}={recipe[name]} has no effect: neither {task['_target_']} nor "
                f"model={choices['model']} takes it. Set recipe.{name}={json.dumps(field.default)}."
            )


def _check_names(node: DictConfig, schema: Any, prefix: str = "") -> None:
    """Raise a UsageError for a setting that is not a field of a schema."""
    fields = schema.__dataclass_fields__
    for name in map(str, node):
        if name not in fields:
            raise UsageError(f"Unknown setting {prefix}{name}.{did_you_mean(name, fields)}")


def find_target(target: str) -> Any:
    """Import what a dotted path names. Errors inside its module keep their traceback.

    Raises:
        UsageError: it does not exist.
    """
    parent, _, name = str(target).rpartition(".")
    try:
        found, module = pydoc.locate(str(target)), pydoc.locate(parent)
    except pydoc.ErrorDuringImport as error:
        raise error.value from None  # type: ignore[misc]
    if found is None:
        known = vars(module) if module else ()
        raise UsageError(f"{target} does not exist.{did_you_mean(name, known)}")
    return found


def accepted_names(target: str) -> set[str]:
    """Return the names of a component's arguments, and of those that it passes to its bases."""
    found = find_target(target)
    names: set[str] = set()
    for owner in inspect.getmro(found) if inspect.isclass(found) else [found]:
        parameters = inspect.signature(owner).parameters.values()
        names |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def check_component(path: str, node: Any, base: type | None = None) -> Any:
    """Check what a ``_target_`` names, and the names and types of its settings.

    Args:
        path: place of the component, such as "recipe.optimizer".
        node: its settings.
        base: its base class; by default that of its place.

    Returns:
        The class or function.

    Raises:
        UsageError: something is wrong.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise UsageError(f"{path} must be a component with a _target_, got {node!r}.")
    target = find_target(node["_target_"])
    base = base or BASES.get(path) or BASES.get(f"{path.partition('.')[0]}.*", object)
    is_right = issubclass(target, base) if inspect.isclass(target) else base in (object, Optimizer)
    if not callable(target) or not is_right:
        kind = "callable" if base is object else f"a {base.__module__}.{base.__qualname__}"
        raise UsageError(f"{path}._target_={node['_target_']} is not {kind}.")
    try:
        parameters = inspect.signature(target, eval_str=True).parameters
    except Exception:  # from an annotation that only a type checker can evaluate
        parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        child = f"{path}.{key}"
        if isinstance(value, dict) and "_target_" in value:
            check_component(child, value, BASES.get(child, object))
        elif key in parameters:
            _check_type(child, value, parameters[key].annotation)
        if key not in parameters and not takes_any and not key.startswith("_"):
            hint = did_you_mean(key, parameters) or f" Remove it with ~{child}."
            raise UsageError(f"Unknown setting {child} of {node['_target_']}.{hint}")
    return target


def _check_type(path: str, value: Any, annotation: Any) -> None:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return
    options = ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)
    try:
        # As JSON, whose lists may be tuples and whose strings paths.
        TypeAdapter(annotation, config=options).validate_json(json.dumps(value))
    except ValidationError:
        expected = inspect.formatannotation(annotation)
        hint = did_you_mean(value, get_args(annotation)) if "Literal" in expected else ""
        raise UsageError(f"{path} must be {expected}, got {value!r}.{hint}") from None
    except Exception:  # from an annotation that pydantic cannot check
        return
