"""The typed configuration of a training run, and how it is composed without a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, open_dict


@dataclass
class Choices:
    """The chosen option of each group that names a run."""

    experiment: str = MISSING
    model: str = MISSING
    transform: str = MISSING
    recipe: str = MISSING


@dataclass
class Recipe:
    """How, and for how many steps, a network is trained.

    The task gets each field that its constructor has a parameter for.
    """

    max_steps: int = MISSING
    batch_size: int = MISSING
    validate_every: int = MISSING
    localisation_lr_factor: float = 1.0
    dropout: float = 0.0
    spsa_delta: float | None = None
    label_smoothing: float = 0.0
    theta_noise: float = 0.0
    optimizer: dict[str, Any] = MISSING
    scheduler: dict[str, Any] | None = None


NOT_FOR_TASKS = {"max_steps", "batch_size", "validate_every", "dropout", "optimizer", "scheduler"}
"""The fields of :class:`Recipe` that other components get."""


@dataclass
class Config:
    """The root of the configuration of ``train.py``."""

    seed: int = MISSING
    ckpt_path: str | None = "auto"
    checkpoint_minutes: float = 5
    run_dir: str | None = MISSING  # None for --cfg job --resolve, which has no directory
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


# Every Hydra program of the process shares the store.
ConfigStore.instance().store("spatial_transformer_train", Config)


def compose_config(conf_dir: Path, *overrides: str) -> DictConfig:
    """Compose the configuration of a training run, as ``train.py`` does for a command line.

    Args:
        conf_dir: directory of the YAML files.
        overrides: settings, each ``name=value``. A run needs ``run_dir=DIRECTORY`` among them,
            which Hydra chooses on a command line.
    """
    with initialize_config_dir(str(conf_dir.absolute()), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
    chosen = config.hydra.runtime.choices
    with open_dict(config):
        del config["hydra"]
    # Their interpolations need a running Hydra program.
    config.choices.update({name: chosen[name] for name in config.choices})
    return config
