"""What a run folder says of its run: finished, failed, or where to go on; and whether it is the run that is asked for."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from .errors import UsageError
from .files import replacing

_WITHOUT_EFFECT = {
    "": ("ckpt_path", "checkpoint_minutes", "run_dir", "label", "choices", "logger", "callbacks"),
    "data": ("root", "cache"),
    "task": ("root", "cache"),
    "trainer": (
        "accelerator",
        "default_root_dir",
        "devices",
        "enable_progress_bar",
        "log_every_n_steps",
        "num_nodes",
        "profiler",
        "strategy",
        "val_check_interval",  # recipe.validate_every, spread evenly
    ),
}
"""Settings that do not change what a run gives: where, with what devices, and what is shown of it."""


class State(NamedTuple):
    """How far a run is: "finished", "failed", "stopped" or "not begun", and a few words on it."""

    name: str
    detail: str


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.record = self.path / "metrics.json"
        self.error = self.path / "error.txt"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"

    def state(self) -> State:
        """How far the run is, by its files alone."""
        if self.record.is_file():
            return State("finished", f"test error {json.loads(self.record.read_text())['metrics']['test/error']:.2f} %")
        if self.error.is_file():
            return State("failed", self.error.read_text().strip().splitlines()[-1])
        if self.last.is_file() or self.previous.is_file():
            return State("stopped", "has a checkpoint to go on from")
        return State("not begun", "")

    def finished(self, config: DictConfig) -> dict[str, Any] | None:
        """The record, if this very run is finished.

        Raises:
            UsageError: the folder is another run's.
        """
        self.must_be_of(config)
        return json.loads(self.record.read_text()) if self.record.is_file() else None

    def must_be_of(self, config: DictConfig) -> None:
        """Refuses a folder that holds a run with other settings.

        Raises:
            UsageError: it does; named is the first that differs.
        """
        if not self.config.is_file():
            return
        there: Any = OmegaConf.load(self.config)
        here: Any = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        settings = [dict(_settings(node, "")) for node in (there, here)]
        for name in sorted(settings[0].keys() | settings[1].keys()):
            theirs, ours = (of.get(name) for of in settings)
            if theirs != ours:
                raise UsageError(
                    f"{self.path} holds another run: {name} is {theirs} there, {ours} here.\nWay out: another folder "
                    "(hydra.run.dir=FOLDER), the settings of its config.yaml to go on with it, or ckpt_path=null to "
                    "start anew in its place."
                )

    def clear(self) -> None:
        """Makes ready for a run from its start: no checkpoint and no record of an earlier one stays."""
        for path in (self.record, self.error, *self.checkpoints.glob("*.ckpt"), self.path / "metrics.csv"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "wandb", ignore_errors=True)  # or the new run would be a part of the old one in W&B

    def newest_checkpoint(self) -> Path | None:
        """Where to go on: the last checkpoint, or the one before it if that cannot be read; None if there is none yet.

        Raises:
            UsageError: there are checkpoints, and none can be read.
        """
        import torch

        broken = ""
        for path in (self.last, self.previous):
            if not path.is_file():
                continue
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:
                broken = f"{path} cannot be read as a checkpoint: {(str(error) or type(error).__name__).splitlines()[0]}"
                print(broken, file=sys.stderr)
                os.replace(path, path.with_suffix(".broken"))  # or it would take the place of the one before it
                continue
            if broken:
                print(f"going on from the one before it, {path}", file=sys.stderr)
            return path
        if broken:
            raise UsageError(f"{broken}\nWay out: ckpt_path=null starts this run anew.")
        return None

    def note_failure(self, text: str) -> None:
        """Keeps why the run failed; its last line is shown in a sweep's table."""
        with replacing(self.error) as path:
            path.write_text(text.strip() + "\n")


def _settings(node: DictConfig, path: str) -> list[tuple[str, Any]]:
    """All settings with an effect, by their dotted names."""
    found: list[tuple[str, Any]] = []
    for key in map(str, node):
        if key in _WITHOUT_EFFECT.get(path, ()):
            continue
        name = f"{path}.{key}" if path else key
        value = node[key]
        found += _settings(value, name) if isinstance(value, DictConfig) else [(name, value)]
    return found
