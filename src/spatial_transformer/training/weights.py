"""Read the weights in a checkpoint into a network."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ..utils.errors import UsageError
from ..utils.serialization import load_tensors


def load_weights(task: pl.LightningModule, file: Path) -> None:
    """Load the weights in a checkpoint of a run.

    Raises:
        UsageError: the file is missing or damaged, or holds the weights of another network.
    """
    if not file.is_file():
        raise UsageError(f"{file} does not exist. Restore it, or choose another checkpoint.")
    content = read_checkpoint(file)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UsageError(f"{file} cannot be read as a checkpoint: it has no weights.")
    try:
        task.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        raise UsageError(f"{file} holds the weights of another network: {reason}") from error


def read_checkpoint(file: Path) -> Any:
    """Return the tensors and plain values in a file.

    Raises:
        UsageError: the file cannot be read, is damaged, or holds anything else.
    """
    try:
        return load_tensors(file)
    except ValueError as error:
        raise UsageError(f"{file} cannot be read as a checkpoint: {error}.") from error
