"""Read the weights in a checkpoint and check that they fit a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ..utils.errors import UsageError
from ..utils.serialization import load_tensors


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the weights in a checkpoint of a run.

    Raises:
        UsageError: it does not exist or is damaged.
    """
    if not file.is_file():
        raise UsageError(f"{file} does not exist. Set checkpoint=best or checkpoint=last.")
    saved = read_checkpoint(file)
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict):
        raise UsageError(f"{file} cannot be read as a checkpoint: it has no weights.")
    return saved["state_dict"]


def read_checkpoint(file: Path) -> Any:
    """Return the tensors and plain values in a file.

    Raises:
        UsageError: the file cannot be read, is damaged, or holds anything else.
    """
    try:
        return load_tensors(file)
    except ValueError as error:
        raise UsageError(f"{file} cannot be read as a checkpoint: {error}.") from error


def check_fit(weights: dict[str, Tensor], task: pl.LightningModule, file: Path) -> None:
    """Check that the weights of a file are those of this network.

    Raises:
        UsageError: they are not.
    """

    def shapes(state: dict[str, Any]) -> dict[str, str]:
        return {
            k: str(tuple(v.shape)) if isinstance(v, Tensor) else "no tensor"
            for k, v in state.items()
        }

    expected, got = shapes(task.state_dict()), shapes(weights)
    names = sorted(expected.keys() | got.keys(), key=str)
    different = [name for name in names if expected.get(name) != got.get(name)]
    if different:
        name = different[0]
        raise UsageError(
            f"{file} holds the weights of another network: {len(different)} of {len(names)} "
            f"tensors differ. {name} must be {expected.get(name)}, got {got.get(name)}."
        )
