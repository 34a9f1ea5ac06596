"""Read the weights in a checkpoint into a network."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from ..tasks.classification import Classification
from ..utils.errors import UsageError
from ..utils.serialization import load_tensors


def load_weights(task: Classification, file: Path) -> dict[str, Any]:
    """Load the weights in a checkpoint of a run, and return its content.

    Raises:
        UsageError: the file is missing or damaged, or holds the weights of another network.
    """
    if not file.is_file():
        raise UsageError(
            f"{file} does not exist or is a directory. Restore it, or choose a checkpoint file."
        )
    content = read_checkpoint(file)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UsageError(f"{file} cannot be read as a checkpoint: it has no weights.")
    try:
        task.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        raise UsageError(f"{file} holds the weights of another network: {reason}") from error
    return content


def load_start(task: Classification, file: Path, max_steps: int) -> None:
    """Load the weights in a checkpoint from which a run of ``max_steps`` steps continues.

    Raises:
        UsageError: the checkpoint cannot be loaded, has no optimizer, or has another optimizer or
            schedule. Or the run has no more steps than it, or more than its OneCycleLR.
    """
    content = load_weights(task, file)
    if "optimizer_states" not in content:
        raise UsageError(f"{file} has no optimizer. Choose a checkpoint of a run directory.")
    steps = content["global_step"]
    if max_steps <= steps:
        raise UsageError(
            f"trainer.max_steps must be more than the {steps:,} steps of {file}, got {max_steps:,}."
        )
    if type(task).configure_optimizers is Classification.configure_optimizers:
        optimizer = task.optimizer(task.parameter_groups())
        if task.scheduler is not None:
            task.scheduler(optimizer)  # which adds settings to the optimizer
        saved = content["optimizer_states"][0]["param_groups"][0]
        if missing := optimizer.param_groups[0].keys() - saved.keys():
            raise UsageError(
                f"recipe.optimizer and recipe.scheduler must be those of {file}, which does not "
                f"have {', '.join(sorted(missing))}."
            )
    ends = [state["total_steps"] for state in content["lr_schedulers"] if "total_steps" in state]
    if max_steps > min(ends, default=max_steps):  # where OneCycleLR would raise an error
        raise UsageError(
            f"trainer.max_steps must be at most {min(ends):,}, where the learning rate schedule of "
            f"{file} ends, got {max_steps:,}."
        )


def read_checkpoint(file: Path) -> Any:
    """Return the tensors and plain values in a file.

    Raises:
        UsageError: the file cannot be read, is damaged, or holds anything else.
    """
    try:
        return load_tensors(file)
    except ValueError as error:
        raise UsageError(f"{file} cannot be read as a checkpoint: {error}.") from error
