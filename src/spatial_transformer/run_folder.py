"""What a run folder says of its run: finished, failed, or where to go on; and whether it is the run that is asked for."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import UsageError
from .files import free_path, locked, replacing

_WITHOUT_EFFECT = {
    "": ("ckpt_path", "checkpoint_minutes", "run_dir", "label", "choices", "logger", "callbacks"),
    "data": ("root", "cache", "workers", "resident", "eval_batch_size"),
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

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is one to go on from: while the last is being written, there is only the one before it."""
        return self.last.is_file() or self.previous.is_file()

    def state(self) -> State:
        """How far the run is, by its files alone: of several attempts, the last."""
        failed = self.error.is_file() and (
            not self.record.is_file() or self.error.stat().st_mtime >= self.record.stat().st_mtime
        )
        if self.record.is_file() and not failed:
            try:
                return State("finished", f"test error {read_record(self.record)['metrics']['test/error']:.2f} %")
            except UsageError as error:
                return State("failed", str(error).partition("\n")[0])
        if failed:
            lines = self.error.read_text(errors="replace").strip().splitlines() or ["for an unknown reason"]
            return State("failed", lines[-1 if lines[0].startswith("Traceback") else 0])
        if self.has_checkpoint:
            return State("stopped", "has a checkpoint to go on from")
        return State("not begun", "")

    def finished(self, config: DictConfig) -> dict[str, Any] | None:
        """The record, if this very run is finished; what failed since, in starting it anew, is forgotten.

        Raises:
            UsageError: the folder is another run's, or its files are damaged.
        """
        self.must_be_of(config)
        if not self.record.is_file():
            return None
        self.error.unlink(missing_ok=True)
        return read_record(self.record)

    def goes_on(self, config: DictConfig) -> bool:
        """Whether the run goes on with what the folder has of it, not from its start or a checkpoint that is named.

        So it is with ``ckpt_path=auto``, and where this very run began from the named checkpoint and was stopped since.

        Raises:
            UsageError: the folder's configuration is damaged.
        """
        if config.ckpt_path in (None, "auto"):
            return config.ckpt_path == "auto"
        if not self.config.is_file() or Path(config.ckpt_path).resolve().parent == self.checkpoints.resolve():
            return False
        began = read_config(self.config).get("ckpt_path")
        return began == config.ckpt_path and next(self._differences(config), None) is None

    def must_be_of(self, config: DictConfig) -> None:
        """Refuses a folder that holds a run with other settings.

        Raises:
            UsageError: it does; named is the first that differs. Or its configuration is damaged.
        """
        if not self.config.is_file():
            return
        for name, theirs, ours in self._differences(config):
            raise UsageError(
                f"{self.path} holds another run: {name} is {theirs} there, {ours} here.\nWay out: another folder "
                "(hydra.run.dir=FOLDER), the settings of its config.yaml to go on with it, or ckpt_path=null to "
                "start anew in its place."
            )

    def must_be_free(self, config: DictConfig) -> None:
        """Refuses to begin a run, from its start or a checkpoint that is named, where that would remove what is not its own.

        Raises:
            UsageError: it would.
        """
        goes_on = self.goes_on(config)
        if goes_on and self.has_checkpoint:
            return
        if not self.config.is_file():
            # Why a run could not begin a sweep keeps there, too.
            if there := [path.name for path in self._of_a_run() if path.exists() and path != self.error]:
                raise UsageError(
                    f"{self.path} has no config.yaml, so it is not a run's, and a run would remove {', '.join(there)} there.\n"
                    "Way out: another folder (hydra.run.dir=FOLDER)."
                )
        elif not goes_on and config.ckpt_path and Path(config.ckpt_path).resolve().parent != self.checkpoints.resolve():
            raise UsageError(
                f"{self.path} holds a run already, which one from {config.ckpt_path} would remove.\nWay out: another folder "
                "(hydra.run.dir=FOLDER; of a sweep, hydra.sweep.dir=FOLDER)."
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from working in the folder meanwhile; where its file system has locks.

        Raises:
            UsageError: another one is at work there.
        """
        if not self.path.is_dir():
            yield
            return
        with ExitStack() as until_the_end:
            try:
                until_the_end.enter_context(locked(self.path))
            except BlockingIOError:
                raise UsageError(
                    f"another run is at work in {self.path}. Way out: wait until it has ended; or another folder "
                    "(hydra.run.dir=FOLDER)."
                ) from None
            yield

    def must_train_as(self, config: DictConfig, checkpoint: Path) -> None:
        """Refuses to go on from a checkpoint of this folder's run with another optimiser or schedule: it holds theirs.

        Raises:
            UsageError: one of their settings differs; or the folder is not a run's.
        """
        if not self.config.is_file():
            raise UsageError(
                f"{checkpoint} does not lie in the checkpoints/ of a run folder, whose config.yaml says how it was trained.\n"
                "Way out: a checkpoint that does."
            )
        for name, theirs, ours in self._differences(config):
            if name.startswith(("recipe.optimizer.", "recipe.scheduler", "recipe.localisation_lr_factor")):
                raise UsageError(
                    f"{checkpoint} goes on with the optimiser and the schedule that it was trained with: {name} is {theirs} "
                    f"there, {ours} here.\nWay out: the settings of {self.config}, or a new run (ckpt_path=null)."
                )

    def _differences(self, config: DictConfig) -> Iterator[tuple[str, Any, Any]]:
        """The settings that are others there than here, with both values."""
        there = read_config(self.config)
        here: Any = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        settings = [dict(_settings(node, "")) for node in (there, here)]
        for name in sorted(settings[0].keys() | settings[1].keys()):
            theirs, ours = (of.get(name) for of in settings)
            if theirs != ours:
                yield name, theirs, ours

    def clear(self) -> None:
        """Makes ready for a run from its start: no checkpoint, metric or picture of an earlier one stays."""
        self.set_record_aside()
        for path in self._of_a_run():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def set_record_aside(self) -> None:
        """Rename the result of an earlier run to ``metrics.1.json``, ``metrics.2.json``, ...: no result is overwritten."""
        if self.record.is_file():
            os.replace(self.record, free_path(self.record))

    def _of_a_run(self) -> list[Path]:
        """What a run leaves and another must not find: pictures are joined to one animation, W&B goes on with a run there."""
        files = [self.record, self.error, self.path / "metrics.csv", *self.checkpoints.glob("*.ckpt")]
        return [*files, self.path / "crops", self.path / "wandb"]

    def newest_checkpoint(self) -> Path | None:
        """Where to go on: the last checkpoint, or the one before it if that cannot be read; None if there is none yet.

        Raises:
            UsageError: there are checkpoints, and none can be read.
        """
        from .saved import load_saved  # torch, which a sweep that is finished does not need

        broken = ""
        for path in (self.last, self.previous):
            if not path.is_file():
                continue
            try:
                load_saved(path)
            except ValueError as error:
                broken = f"{path} cannot be read as a checkpoint: {error}"
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
        """Keeps why the run failed; a sweep's table shows its first line, of a traceback the last."""
        with replacing(self.error) as path:
            path.write_text(text.strip() + "\n")


def read_config(path: Path) -> DictConfig:
    """The configuration of a run, as its folder has it; not checked yet.

    Raises:
        UsageError: the file cannot be read, or is damaged.
    """
    try:
        config = OmegaConf.load(path)  # by YAML's safe loader: it makes no objects
        if not isinstance(config, DictConfig):
            raise ValueError("it holds no settings")
        return config
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UsageError(
            f"{path} is not the configuration of a run: {' '.join(str(error).split())}.\nWay out: another run folder; or, for "
            "this run, ckpt_path=null to start it anew."
        ) from error


_RECORDED = {
    "label": str,
    "experiment": str,
    "model": str,
    "transform": str,
    "recipe": str,
    "seed": int,
    "steps": int,
    "metrics": dict,
    "config": dict,
}


def recorded_settings(config: DictConfig) -> dict[str, Any]:
    """The settings that a record keeps: those that change what the run gives, but for those with a field of their own."""

    def kept(group: str, *without: str) -> dict[str, Any]:
        return {name: _plain(config[group][name]) for name in config[group] or () if name not in without}

    return {
        "data": kept("data", "root", "cache"),  # where the data lay
        "transform": kept("transform"),
        "model": kept("model"),
        "recipe": kept("recipe"),
        "task": kept("task", "root", "cache"),
        "trainer": kept("trainer", *_WITHOUT_EFFECT["trainer"], "max_steps", "precision"),
        "start": {"ckpt_path": None if config.ckpt_path == "auto" else config.ckpt_path},
        "callbacks": {
            name: None if node is None else {key: _plain(node[key]) for key in node if key != "dirpath"}
            for name, node in config.callbacks.items()
            if node is None or not _only_shows(node["_target_"])
        },
    }


def _only_shows(component: str) -> bool:
    """Whether a callback shows what a run does, and does not change what comes out."""
    module = component.rpartition(".")[0]
    ours = module.startswith("spatial_transformer.callbacks.") and not module.endswith(".checkpoints")
    return ours or component.endswith(".LearningRateMonitor")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def check_record(record: Any) -> None:
    """Makes sure that something is the record of a finished run.

    Raises:
        ValueError: it is not, and why.
    """
    if not isinstance(record, dict):
        raise ValueError("it is no mapping")
    for name, kind in _RECORDED.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"it has no {name}, or not as it should be")
    for name in ("data", "model", "recipe", "task"):
        if not isinstance(record["config"].get(name), dict):
            raise ValueError(f"its config has no {name}")
    for name, value in record["metrics"].items():
        if not isinstance(value, int | float):
            raise ValueError(f"its {name} is no number")
    if not math.isfinite(record["metrics"].get("test/error", math.nan)):
        raise ValueError("it has no test/error")


def read_record(path: Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        UsageError: the file cannot be read, or is no such record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_record(record)
        return record
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not the record of a run: {error}.\nWay out: run it again (ckpt_path=null); a record in results/ comes "
            "from its run folder (scripts/make_tables.py --add RUN_FOLDER)."
        ) from error


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
