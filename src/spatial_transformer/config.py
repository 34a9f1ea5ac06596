"""The shape of a configuration, and its check before anything starts.

Hydra composes whatever YAML files say; a misspelt key would train silently, and a ``_target_`` would call anything. So the root
has a typed schema, each component (``_target_``) must be of the kind of its place and is checked against its own signature,
names and types, and errors name the place and the nearest right name.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.utils import get_class, get_object
from omegaconf import MISSING, DictConfig, ListConfig, Node, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from .errors import Stopped, UsageError
from .process import local_rank, rank

CONF = "conf"


class Kind(NamedTuple):
    """What may stand at a place of the configuration. Whatever it is, it is public and defined there, not imported."""

    name: str
    packages: tuple[str, ...]
    """Where it is defined."""
    base: str | None
    """The class that it derives from; None: it may be a function."""
    partial: bool = False
    """Whether it is completed later (``_partial_: true``)."""


_OURS, _LIGHTNING = "spatial_transformer", "pytorch_lightning"
_TRANSFORM = Kind("transform", (f"{_OURS}.transformer",), f"{_OURS}.transformer.Transform")
KINDS = {
    "data": Kind("data module", (f"{_OURS}.data",), f"{_OURS}.data.batched.BatchedData"),
    "task": Kind("task", (f"{_OURS}.tasks",), f"{_LIGHTNING}.LightningModule"),
    "transform": _TRANSFORM,
    "model": Kind("network", (f"{_OURS}.networks",), None),
    "model.transform": _TRANSFORM,
    "recipe.optimizer": Kind("optimiser", ("torch.optim",), "torch.optim.Optimizer", partial=True),
    "recipe.scheduler": Kind("schedule", (f"{_OURS}.tasks.schedules", "torch.optim.lr_scheduler"), None, partial=True),
    "trainer": Kind("trainer", (_LIGHTNING,), f"{_LIGHTNING}.Trainer"),
    "trainer.profiler": Kind("profiler", (_LIGHTNING,), f"{_LIGHTNING}.profilers.Profiler"),
    "logger.*": Kind("logger", (_OURS, _LIGHTNING), f"{_LIGHTNING}.loggers.Logger"),
    "callbacks.*": Kind("callback", (_OURS, _LIGHTNING), f"{_LIGHTNING}.Callback"),
}
"""What may stand where. A configuration names these components and nothing else, whoever wrote it."""

_HYDRA_KEYS = {"_target_", "_partial_"}
_SEEDS = 2**32
_MOST_STEPS = 10**12
_BE_PLAIN = "Way out: a plain value, or ${...} with the name of another setting."


@dataclass
class Choices:
    """The chosen option of each group that names a run."""

    experiment: str = MISSING
    model: str = MISSING
    transform: str = MISSING
    recipe: str = MISSING


@dataclass
class Recipe:
    """How long and how a network is trained."""

    max_steps: int = MISSING
    batch_size: int = MISSING
    validate_every: int = MISSING
    localisation_lr_factor: float = 1.0
    dropout: float = 0.0
    frozen_steps: int = 0
    theta_step: float | None = None
    label_smoothing: float = 0.0
    theta_noise: float = 0.0
    optimizer: dict[str, Any] = MISSING
    scheduler: dict[str, Any] | None = None


@dataclass
class Config:
    """The root of a training run's configuration."""

    seed: int = MISSING
    ckpt_path: str | None = "auto"
    checkpoint_minutes: float = 5
    run_dir: str = MISSING
    label: str = MISSING
    choices: Choices = field(default_factory=Choices)
    task: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    transform: Any = None
    model: dict[str, Any] = MISSING
    recipe: Recipe = field(default_factory=Recipe)
    trainer: dict[str, Any] = MISSING
    logger: dict[str, Any] = MISSING
    callbacks: dict[str, Any] = MISSING


@dataclass
class DataPlace:
    """Of a finished run's data, what may be told anew."""

    root: str | None = None


@dataclass
class Evaluation:
    """The root of an evaluation's configuration."""

    run: str = MISSING
    checkpoint: str = "best"
    data: DataPlace = field(default_factory=DataPlace)
    trainer: dict[str, Any] = MISSING


@dataclass
class PredictionConfig:
    """The root of a prediction's configuration."""

    run: str = MISSING
    images: str = MISSING
    out: str = MISSING
    checkpoint: str = "best"
    data: DataPlace = field(default_factory=DataPlace)


ConfigStore.instance().store("schema", Config)
ConfigStore.instance().store("evaluation", Evaluation)
ConfigStore.instance().store("prediction", PredictionConfig)


def check_names(config: DictConfig, schema: type[Evaluation | PredictionConfig]) -> None:
    """Refuses settings that were added with a plus, and that nothing would heed.

    Raises:
        UsageError: there are some.
    """
    added = sorted(map(str, config.keys() - schema.__dataclass_fields__.keys()))
    if added:
        raise UsageError(f"there is no setting {', '.join(added)}.\n{_way_out(added[0], list(schema.__dataclass_fields__))}")


def composed(conf: Path, *overrides: str) -> DictConfig:
    """The training configuration of the folder ``conf``, as Hydra composes it for a command line.

    A run of it (:func:`~spatial_transformer.runner.run`) needs a ``run_dir=FOLDER`` too, which Hydra names on a command line.
    """
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
    chosen = config.hydra.runtime.choices
    with open_dict(config):
        del config["hydra"]
    config.choices.update({name: chosen[name] for name in config.choices})  # no job is there to ask
    return config


def check(config: DictConfig) -> None:
    """Refuses a composed configuration that cannot be what the user meant, or that names what no configuration may.

    Raises:
        UsageError: an unknown setting of a component, a component from elsewhere, a value of another type or out of range, or
            one that refers to what does not exist.
        MissingMandatoryValue: a value is missing.
    """
    for path, schema in (("", Config), ("recipe", Recipe)):
        fields = list(schema.__dataclass_fields__)
        node = config if not path else OmegaConf.select(config, path)
        if not isinstance(node, DictConfig):
            raise UsageError(
                f"{path}={_short(node)} is no group of settings, given {_origin(config, path)}. Way out: leave it out."
            )
        for key in map(str, node):
            if key not in fields:
                key_path = f"{path}.{key}" if path else key
                raise UsageError(
                    f"there is no setting {key_path!r}, given {_origin(config, key_path)}.\n" + _way_out(key, fields)
                )
    settings = _resolved(config)
    _check_places(config, settings)
    components = [(path, node, _component(path, node)) for path, node in _components(settings, "")]
    _check_transform(config)
    _check_trainer(config)
    of_trainer = [f"trainer.{name}" for name in ("max_steps", "log_every_n_steps", "val_check_interval")]
    for path in ("recipe.max_steps", "recipe.validate_every", *of_trainer):
        value = OmegaConf.select(config, path)
        if type(value) is not int or not 1 <= value <= _MOST_STEPS:
            raise UsageError(
                f"{path}={_short(value)} is not a number of steps, given {_origin(config, path)}. Way out: 1 or more, up to "
                f"{_MOST_STEPS:,}."
            )
    if not config.run_dir.strip() or "\0" in config.run_dir:
        raise UsageError(f"run_dir={config.run_dir!r} is no folder. Way out: hydra.run.dir=FOLDER.")
    if not 0 <= config.seed < _SEEDS:
        raise UsageError(f"seed={config.seed} is not a seed. Way out: from 0 to {_SEEDS - 1:,}.")
    if not config.checkpoint_minutes >= 0:
        raise UsageError(f"checkpoint_minutes={config.checkpoint_minutes} is not a time. Way out: 0 (always) or more.")
    for path, node, component in components:
        _check_settings(config, path, node, component)
    for name in ("frozen_steps", "theta_step", "label_smoothing", "theta_noise"):
        if config.recipe.get(name) and name not in config.task:
            raise UsageError(
                f"recipe.{name} has no effect in this experiment, but is given "
                f"{_origin(config, f'recipe.{name}')}. Way out: leave it out; files in conf/experiment/ that use it name it."
            )


def _resolved(config: DictConfig) -> dict[str, Any]:
    """All settings as plain values: what components are built of.

    Raises:
        UsageError: one refers to what does not exist, or would refer to something once more when it is built.
        MissingMandatoryValue: a value is missing.
    """
    try:
        settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue:
        raise
    except (OmegaConfBaseException, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        missing = re.search("'([^']+)' not found", reason)
        broken = ((path, node._value()) for path, node in _references(config, "") if not _resolves(node))
        path, text = min(
            broken,
            key=lambda one: missing is not None and missing[1] not in one[1],  # another refers to it
            default=("a setting", "${...}"),
        )
        raise UsageError(
            f"{path}={_short(text)} cannot be resolved, given {_origin(config, path)}: {reason}. {_BE_PLAIN}"
        ) from error
    written = dict(_values(OmegaConf.to_container(config), ""))
    for path, value in _values(settings, ""):
        if "${" in path or "${" in str(value):  # escaped, and no longer so for whoever resolves it next
            text = _short(written.get(path, value))
            raise UsageError(
                f"{path}={text} holds ${{ after it was resolved, given {_origin(config, path)}. Way out: a plain value."
            )
    return settings


def _references(node: Any, path: str) -> Iterator[tuple[str, Node]]:
    """Every value that is ``${...}``, with its dotted path."""
    if isinstance(node, DictConfig | ListConfig) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
        keys: Iterable[Any] = node if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            yield from _references(node._get_node(key), f"{path}.{key}" if path else str(key))
    elif isinstance(node, Node) and node._is_interpolation():
        yield path, node


def _resolves(node: Node) -> bool:
    try:
        node._dereference_node()
    except (OmegaConfBaseException, RecursionError):
        return False
    return True


def _values(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping or list, with its dotted path."""
    if isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _values(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _check_places(config: DictConfig, settings: dict[str, Any]) -> None:
    """Refuses a place that must hold a component, and holds something else."""
    recipe = settings["recipe"]
    places = {name: settings[name] for name in ("data", "task", "model", "trainer")}
    places |= {"recipe.optimizer": recipe["optimizer"]}
    if recipe["scheduler"] is not None:
        places |= {"recipe.scheduler": recipe["scheduler"]}
    for group in ("logger", "callbacks"):
        if not isinstance(settings[group], dict):
            raise UsageError(f"{group}={_short(settings[group])} is no mapping of components. Way out: {group}.NAME=...")
        places |= {f"{group}.{name}": node for name, node in settings[group].items() if group == "logger" or node is not None}
    for path, node in places.items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise UsageError(
                f"{path}={_short(node)} is not a component, given {_origin(config, path)}. Way out: a mapping with "
                f"{path}._target_, as the files in {CONF}/ have it."
            )


def _check_transform(config: DictConfig) -> None:
    model, transform = config.choices.model, config.choices.transform
    wants = "transform" in config.model
    if wants and transform == "none":
        raise UsageError(
            f"model={model} needs a transform. Way out: transform=affine, attention, projective or tps; of a volume, affine3d."
        )
    if not wants and transform != "none":
        raise UsageError(
            f"model={model} has no spatial transformer, so transform={transform} would do nothing. Way out: leave transform "
            "out, or choose a model with one (model=...st_...)."
        )


def _check_trainer(config: DictConfig) -> None:
    """Refuses what Lightning takes and a run cannot: samples are float32, drawn by step, and it ends in a test."""
    precision = str(config.trainer.get("precision") or "32-true")
    if precision not in ("32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed"):
        raise UsageError(f"trainer.precision={precision} is not for these runs. Way out: 32-true, bf16-mixed or 16-mixed.")
    if config.trainer.get("check_val_every_n_epoch") is not None:
        raise UsageError("trainer.check_val_every_n_epoch: these runs count steps. Way out: recipe.validate_every=STEPS.")
    if config.trainer.get("limit_test_batches") == 0:
        raise UsageError("trainer.limit_test_batches=0 would skip the test that every run ends with. Way out: 1 or more.")
    if config.trainer.get("overfit_batches"):
        raise UsageError("trainer.overfit_batches is not for these runs. Way out: trainer.limit_train_batches, say.")


def _components(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a ``_target_``, with its dotted path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, child in node.items():
            yield from _components(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for n, child in enumerate(node):
            yield from _components(child, f"{path}.{n}")


def _component(path: str, node: dict[str, Any]) -> Callable[..., Any]:
    """What a ``_target_`` names, if it is of the kind of its place.

    Raises:
        UsageError: it is not, or there is no component at that place, or none of that name.
    """
    target = str(node["_target_"])
    place = f"{path}._target_={_short(target)}"
    group, dot, rest = path.partition(".")
    kind = KINDS.get(path) or (KINDS.get(f"{group}.*") if dot and "." not in rest else None)
    if kind is None:
        raise UsageError(f"{place}: there is no component at this place. Way out: leave it out; {', '.join(KINDS)} are such.")
    where = " or ".join(f"{package}." for package in kind.packages)
    refusal = UsageError(
        f"{place} is not a component that a configuration may name. Way out: a {kind.name} that begins with {where}"
    )
    if not any(target.startswith(f"{package}.") for package in kind.packages) or re.search(r"\._|\.\.|\.$", target):
        raise refusal  # before anything is imported
    try:
        found = get_object(target)  # as Hydra finds it
    except (ImportError, ValueError) as error:
        module, _, name = target.rpartition(".")
        near = dir(sys.modules[module]) if module in sys.modules else []
        raise UsageError(f"{place} does not exist.\n" + _way_out(name, near)) from error
    is_class, is_function = inspect.isclass(found), inspect.isfunction(found)
    defined = f"{getattr(found, '__module__', '')}."
    if not (is_class or is_function) or not any(defined.startswith(f"{package}.") for package in kind.packages):
        raise refusal
    if kind.base is not None and not (is_class and issubclass(found, get_class(kind.base))):
        raise UsageError(f"{place} is not a {kind.name}. Way out: a class that is one, as the files in {CONF}/ have it.")
    if node.get("_partial_", False) is not kind.partial:
        raise UsageError(f"{path}._partial_ must be {str(kind.partial).lower()} for a {kind.name}.")
    return found


def _check_settings(config: DictConfig, path: str, node: dict[str, Any], component: Callable[..., Any]) -> None:
    """Refuses settings that a component does not take, by name or by type."""
    try:
        parameters = inspect.signature(component, eval_str=True).parameters
    except NameError:  # annotations that only a type checker can read: of those the component itself must say what it takes
        parameters = inspect.signature(component).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in node.items():
        key_path = f"{path}.{key}"
        if key in _HYDRA_KEYS:
            continue
        if key not in parameters:
            if takes_any and str(key).isidentifier() and not str(key).startswith("_"):
                continue
            raise UsageError(
                f"{node['_target_']} has no setting {key!r}, given {_origin(config, key_path)}.\n" + _way_out(key, parameters)
            )
        if isinstance(value, dict) and "_target_" in value:
            continue
        if key_path == "logger.wandb.offline" and value is None:
            continue  # the runner decides
        reason = _misfit(value, parameters[key].annotation)
        if reason:
            raise UsageError(
                f"{key_path}={_short(value)} is of the wrong type, given {_origin(config, key_path)}: {reason}.\n"
                f"Way out: {inspect.formatannotation(parameters[key].annotation)}."
            )


def _misfit(value: Any, annotation: Any) -> str:
    """Why a value that YAML has is not what an annotation says; empty if it is."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return ""
    from pydantic import ConfigDict, TypeAdapter, ValidationError  # not for --help

    adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False))
    try:
        adapter.validate_json(json.dumps(value))  # JSON's lists may be tuples, its strings paths
    except ValidationError as error:
        return error.errors()[0]["msg"]
    return ""


def _short(value: Any) -> str:
    """A value as the user wrote it, or its beginning."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _way_out(name: str, known: Iterable[str]) -> str:
    known = sorted(set(map(str, known)) - {"self"})
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    if near:
        return f"Way out: did you mean {' or '.join(near)}?"
    if len(known) > 40:
        return "Way out: see its documentation."
    return f"Way out: one of {', '.join(known)}." if known else "Way out: it has no settings."


def _origin(config: DictConfig, path: str) -> str:
    """Where a setting was written: on the command line, or in which file and line."""
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(hydra.overrides.task)  # as they were written: one may refer to nothing
        for override in overrides:
            if override.lstrip("+~").split("=")[0] == path:
                return f"on the command line ({override})"
        sources = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
        choices = {group: choice for group, choice in hydra.runtime.choices.items() if not group.startswith("hydra/")}
        for source in sources:
            # An experiment speaks of the whole configuration, the file of a group of its own part.
            files = [(source / group / f"{choice}.yaml", group) for group, choice in choices.items()]
            for file, group in [*reversed(files), (source / "train.yaml", "")]:
                line = _line_of(file, path, group)
                if line:
                    return f"in {os.path.relpath(file)}, line {line}"
    return f"as {path}"


def _line_of(file: Path, path: str, group: str) -> int | None:
    """The line of ``file`` that sets the dotted ``path``, or None."""
    if not file.is_file():
        return None
    text = file.read_text()
    keys = path.split(".")
    if group and "@package _global_" not in text:
        if keys[0] != group:
            return None
        keys = keys[1:]
    if not keys:
        return None
    node: Any = OmegaConf.to_container(OmegaConf.create(text))
    for key in keys:
        if not isinstance(node, dict) or key not in node:
            return None
        node = node[key]
    name = re.compile(rf"^\s*{re.escape(keys[-1])}\s*:")
    return next((n for n, line in enumerate(text.splitlines(), 1) if name.match(line)), None)


def explained(main: Callable[[], None]) -> Callable[[], None]:
    """Makes a Hydra program end with one clear message, and exit code 1, on whatever the user can put right.

    HYDRA_FULL_ERROR=1 shows tracebacks instead. Of the processes that torchrun or SLURM starts for one run only the first
    of each machine tells errors (its data may lack), and only the first of all has a folder to write to.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        if rank() > 0:
            with tempfile.TemporaryDirectory() as folder:
                sys.argv.append(f"hydra.run.dir={folder}")
                return told(sys.stderr if local_rank() == 0 else io.StringIO())
        return told(sys.stderr)

    def told(errors: TextIO) -> None:
        if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
            return main()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing and leaving
        try:
            main()
        except Stopped as stop:
            print(f"\n{stop}", file=errors)
            sys.exit(stop.code)
        except (UsageError, HydraException, OmegaConfBaseException, OSError, OverflowError) as error:  # OmegaConf's, of 1e400
            print(f"\nError: {explanation(error)}", file=errors)
            sys.exit(1)
        finally:
            del os.environ["HYDRA_FULL_ERROR"]

    return wrapper


def explanation(error: BaseException) -> str:
    """One message for an error, with the nearest right name where a name was wrong."""
    text = str(error).strip()
    if isinstance(error, UsageError):
        return text
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return (
            f"{text}.\nWay out: check that the place exists, can be written to (hydra.run.dir=FOLDER chooses another) and "
            "has room."
        )
    if isinstance(error, MissingMandatoryValue):
        name = error.full_key or "a setting"
        return f"{name} is not given, and has no default. Way out: {name}=... on the command line; --help says what it is."
    if isinstance(error, InterpolationResolutionError):  # by Hydra, of its own settings, before ours are looked at
        reason = text.partition("\n")[0]
        given = "".join(f", with {_short(word)} on the command line" for word in sys.argv[1:] if "${" in word)
        return f"{error.full_key or 'a setting'} cannot be resolved{given}: {reason}. {_BE_PLAIN}"
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text += f"\n{str(error.__cause__).strip()}"
    if isinstance(error, OverrideParseException):
        return f"{_short(error.override)} on the command line cannot be read: {text}"
    option = re.search(r"Could not find '([^']+)'", text)
    if option:
        group, _, name = option[1].rpartition("/")
        return f"{group or 'config'}={name} does not exist.\n" + _way_out(
            name, re.findall(r"^\t(\S+)", text.partition("Config search path")[0], re.M)
        )
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' not in '", text)
    if key:
        name = key[1].lstrip("+~").split("@")[0]
        where = re.search(r"In '([^']+)'", text)
        place = f"in {CONF}/{where[1]}.yaml" if where else "on the command line"
        hint = (
            f"\nA setting of {name.rpartition('.')[0]} that its file leaves out is added with a plus: +{name}=..."
            if "." in name and Path(sys.argv[0]).stem == "train"
            else ""
        )
        return f"there is no setting or group {name!r}, given {place}.\n" + _way_out(name, _known_names()) + hint
    return text


def _known_names() -> list[str]:
    """Every dotted name of the default configuration of the program that runs, and every group."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    program = Path(sys.argv[0])
    folder = program.parent.absolute() / CONF
    if not (folder / f"{program.stem}.yaml").is_file():
        return list(Config.__dataclass_fields__)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        groups = GlobalHydra.instance().config_loader().list_groups("") if program.stem == "train" else []
        names = [group for group in groups if group != "hydra"]
        config = compose(program.stem)

    def walk(node: DictConfig, prefix: str) -> None:
        for key in map(str, node):
            names.append(f"{prefix}{key}")
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none():
                walk(child, f"{prefix}{key}.")

    walk(config, "")
    return names
