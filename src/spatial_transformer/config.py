"""The shape of a configuration, and its check before anything starts.

Hydra composes whatever YAML files say; a misspelt key would train silently. So the root has a typed schema, each component
(``_target_``) is checked against its own signature, and errors name the place and the nearest right name.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import Stopped, UsageError
from .process import rank

CONF = "conf"
ALLOWED_TARGETS = ("spatial_transformer.", "torch.optim.", "pytorch_lightning.")
"""Where components may come from."""

_HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


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


ConfigStore.instance().store("schema", Config)


def composed(conf: Path, *overrides: str) -> DictConfig:
    """The training configuration of the folder ``conf``, as Hydra composes it for a command line."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        return compose("train", list(overrides))


def check(config: DictConfig) -> None:
    """Refuses a composed configuration that cannot be what the user meant.

    Raises:
        UsageError: an unknown setting of a component, a component from elsewhere, a value out of range.
    """
    for path, schema in (("", Config), ("recipe", Recipe)):
        fields = list(schema.__dataclass_fields__)
        for key in map(str, OmegaConf.select(config, path) if path else config):
            if key not in fields:
                key_path = f"{path}.{key}" if path else key
                raise UsageError(
                    f"there is no setting {key_path!r}, given {_origin(config, key_path)}.\n" + _way_out(key, fields)
                )
    for path, node in _components(config, ""):
        target = str(node["_target_"])
        known = _parameters(target, path)
        if known is None:
            continue
        for key in map(str, node):
            if key not in known and key not in _HYDRA_KEYS:
                key_path = f"{path}.{key}"
                raise UsageError(
                    f"{target} has no setting {key!r}, given {_origin(config, key_path)}.\n" + _way_out(key, known)
                )
    for path in ("trainer.max_steps", "recipe.validate_every"):
        value = OmegaConf.select(config, path)
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{path}={value} is not a number of steps, given {_origin(config, path)}. Way out: 1 or more.")
    for name in ("frozen_steps", "theta_step"):
        if config.recipe.get(name) and name not in config.task:
            raise UsageError(
                f"recipe.{name} is of the birds' networks, and nothing here would heed it, given "
                f"{_origin(config, f'recipe.{name}')}. Way out: leave it out, or experiment=birds_2st, say."
            )
    _check_transform(config)


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


def _components(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Every mapping with a ``_target_``, with its dotted path."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        if "_target_" in node:
            yield path, node
        for key in map(str, node):
            if not OmegaConf.is_missing(node, key):
                yield from _components(node._get_node(key), f"{path}.{key}" if path else key)
    elif isinstance(node, ListConfig) and not node._is_none():
        for n in range(len(node)):
            yield from _components(node._get_node(n), f"{path}.{n}")


def _parameters(target: str, path: str) -> list[str] | None:
    """Names that a component takes; None if it takes any."""
    if not target.startswith(ALLOWED_TARGETS):
        raise UsageError(
            f"{path}._target_={target} is not a component that a configuration may name. Way out: one that begins with "
            f"{' or '.join(ALLOWED_TARGETS)}"
        )
    module, _, name = target.rpartition(".")
    try:
        place = import_module(module)
    except ImportError as error:
        raise UsageError(f"{path}._target_={target} does not exist: {error}") from error
    if not hasattr(place, name):
        raise UsageError(f"{path}._target_={target} does not exist.\n" + _way_out(name, dir(place)))
    parameters = inspect.signature(getattr(place, name)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return list(parameters)


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
        for override in hydra.overrides.task:
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
    if OmegaConf.select(OmegaConf.create(text), ".".join(keys), default=_ABSENT) is _ABSENT:
        return None
    name = re.compile(rf"^\s*{re.escape(keys[-1])}\s*:")
    return next((n for n, line in enumerate(text.splitlines(), 1) if name.match(line)), None)


_ABSENT = object()


def explained(main: Callable[[], None]) -> Callable[[], None]:
    """Makes a Hydra program end with one clear message, and exit code 1, on whatever the user can put right.

    HYDRA_FULL_ERROR=1 shows tracebacks instead. Of the processes that torchrun or SLURM starts for one run only the first
    speaks, and only it has a folder to write to.
    """

    @functools.wraps(main)
    def wrapper() -> None:
        if rank() > 0:
            with tempfile.TemporaryDirectory() as folder:
                sys.argv.append(f"hydra.run.dir={folder}")
                return told(io.StringIO())
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
        except (UsageError, HydraException, OmegaConfBaseException, OSError) as error:
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
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text += f"\n{str(error.__cause__).strip()}"
    option = re.search(r"Could not find '([^']+)'", text)
    if option:
        group, _, name = option[1].rpartition("/")
        return f"{group or 'config'}={name} does not exist.\n" + _way_out(name, re.findall(r"^\t(\S+)", text, re.M))
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' not in '", text)
    if key:
        name = key[1].lstrip("+~").split("@")[0]
        where = re.search(r"In '([^']+)'", text)
        place = f"in {CONF}/{where[1]}.yaml" if where else "on the command line"
        hint = (
            f"\nA setting of {name.rpartition('.')[0]} that its file leaves out is added with a plus: +{name}=..."
            if "." in name
            else ""
        )
        return f"there is no setting or group {name!r}, given {place}.\n" + _way_out(name, _known_names()) + hint
    return text


def _known_names() -> list[str]:
    """Every dotted name of the program's default configuration, and every group."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    folder = Path(sys.argv[0]).parent.absolute() / CONF
    if not (folder / "train.yaml").is_file():
        return list(Config.__dataclass_fields__)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        names = [group for group in GlobalHydra.instance().config_loader().list_groups("") if group != "hydra"]
        config = compose("train")

    def walk(node: DictConfig, prefix: str) -> None:
        for key in map(str, node):
            names.append(f"{prefix}{key}")
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none():
                walk(child, f"{prefix}{key}.")

    walk(config, "")
    return names
