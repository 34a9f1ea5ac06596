"""The directory of a run: which run it holds, its state, and what it resumes from."""

from __future__ import annotations

import logging
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import yaml

from ..utils.errors import RunInProgressError, UsageError
from ..utils.files import atomic_write, free_path, remove_temporary_files
from .fingerprint import first_difference, training_settings
from .result import read_result

log = logging.getLogger(__name__)
_CHOOSE = "Choose another directory with hydra.run.dir=DIRECTORY."


class State(NamedTuple):
    """How far a run is: "finished", "failed", "stopped" or "not started", with a detail."""

    name: str
    detail: str


class RunDir:
    """The files of one run.

    A directory belongs to a run of ours if its ``config.yaml`` has a fingerprint. Nothing in any
    other directory is ever removed.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.result = self.path / "metrics.json"
        self.error = self.path / "error.txt"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from working in the directory, if its file system has locks.

        Raises:
            RunInProgressError: another process works there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunInProgressError(
                f"Another run is working in {self.path}. Wait until it has ended.\n{_CHOOSE}"
            ) from None
        except NotImplementedError:
            log.warning("%s has no file locks: do not start a second run in it.", self.path)
        try:
            yield
        finally:
            lock.release()

    def state(self) -> State:
        """Return how far the run is, judged by its files alone."""
        if self.error.is_file():
            text = self.error.read_text(errors="replace")
            lines = text.strip().splitlines() or ["unknown reason"]
            return State("failed", lines[-1 if lines[0].startswith("Traceback") else 0])
        if self.result.is_file():
            try:
                test_error = read_result(self.result)["metrics"]["test/error"]
                return State("finished", f"test error {test_error:.2f} %")
            except UsageError as damaged:
                return State("failed", str(damaged).partition("\n")[0])
        if self.last.is_file() or self.previous.is_file():
            return State("stopped", "has a checkpoint to resume from")
        return State("not started", "")

    def finished(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """Return the result if this very run is finished, with data from the same place.

        Args:
            config: the resolved configuration.

        Raises:
            UsageError: the directory holds a run with other settings, or the result is damaged.
        """
        if config["ckpt_path"] is None or not self.config.is_file():
            return None
        saved = self.read_config()
        self._check_same_run(saved, config)
        if not self.result.is_file() or _test_settings(saved) != _test_settings(config):
            return None
        result = read_result(self.result)
        self.error.unlink(missing_ok=True)  # of an attempt to start over
        return result

    def prepare(
        self, config: dict[str, Any], fingerprint: dict[str, str]
    ) -> tuple[Path, dict[str, Any]] | None:
        """Write ``config.yaml`` and return the checkpoint to resume from, with its contents.

        None means a new run, for which the directory is cleared of an earlier run of ours.

        Raises:
            UsageError: the directory is not that of a run of ours, holds another run, or none of
                its checkpoints can be read.
        """
        checkpoint = None
        if self.config.is_file():
            saved = self.read_config()
            if config["ckpt_path"] is not None:
                self._check_same_run(saved, config, fingerprint)
                checkpoint = self.newest_checkpoint(fingerprint)
        elif foreign := [path.name for path in self._outputs() if path.exists()]:
            raise UsageError(
                f"{self.path} has no config.yaml but {', '.join(foreign)}, which a run would "
                f"overwrite.\n{_CHOOSE}"
            )
        if self.result.is_file():
            os.replace(self.result, free_path(self.result))  # no result is overwritten
        if checkpoint is None:
            self._clear()
        remove_temporary_files(self.path)
        self.error.unlink(missing_ok=True)
        with atomic_write(self.config) as path:
            text = yaml.safe_dump({**config, "fingerprint": fingerprint}, sort_keys=False)
            path.write_text(text)
        return checkpoint

    def read_config(self) -> dict[str, Any]:
        """Return the configuration of the run, which nobody has checked, as plain values.

        Raises:
            UsageError: the file is damaged, or was not written by a run of ours.
        """
        try:
            config = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            if not isinstance(config["fingerprint"], dict):
                raise ValueError("its fingerprint is not a mapping")
            training_settings(config)  # raises an error unless it is a configuration
            return config
        except Exception as error:  # it can be anything
            reason = " ".join(str(error).split())
            raise UsageError(
                f"{self.config} is not the configuration of a run: {reason}.\n{_CHOOSE}"
            ) from error

    def check_present(self) -> None:
        """Raise a UsageError if the directory was moved or removed while the run worked in it."""
        if not self.config.is_file():
            raise UsageError(
                f"{self.path} was moved or removed during the run.\n"
                "Rerun with hydra.run.dir=DIRECTORY, where it is now, to resume."
            )

    def write_error(self, error: Exception) -> None:
        """Write why the run failed, for the table of a sweep."""
        is_usage = isinstance(error, UsageError)
        with atomic_write(self.error) as path:
            path.write_text(str(error) if is_usage else "".join(traceback.format_exception(error)))

    def _check_same_run(
        self, saved: dict[str, Any], config: dict[str, Any], mark: dict[str, str] | None = None
    ) -> None:
        """Raise a UsageError if the run of the directory is not that of ``config`` and ``mark``."""
        difference = first_difference(saved, config)
        for name, text in (("data", "other data"), ("start", "another checkpoint")):
            if mark and saved["fingerprint"].get(name) != mark[name]:
                difference = difference or f"it was trained from {text}"
        if difference:
            raise UsageError(
                f"{self.path} holds another run: {difference}.\n"
                f"{_CHOOSE[:-1]}, or overwrite it with ckpt_path=null."
            )

    def newest_checkpoint(self, fingerprint: dict[str, str]) -> tuple[Path, dict[str, Any]] | None:
        """Return the last intact checkpoint of this run and its contents; None if there is none.

        Raises:
            UsageError: there are checkpoints, and none of them can be read.
        """
        from ..utils.serialization import load_tensors  # torch, which a finished sweep can spare

        broken = ""
        for path in filter(Path.is_file, (self.last, self.previous)):
            try:
                content = load_tensors(path)
                if not isinstance(content, dict) or content.get("fingerprint") != fingerprint:
                    raise ValueError("it is not a checkpoint of this run")
                return path, content
            except ValueError as error:
                broken = f"{path} cannot be read as a checkpoint: {error}."
                log.warning(broken)
                os.replace(path, path.with_suffix(".broken"))  # or it would replace previous.ckpt
        if broken:
            raise UsageError(f"{broken}\nUse ckpt_path=null to train again from the start.")
        return None

    def _outputs(self) -> list[Path]:
        """Return what a run leaves behind and another run must not find."""
        names = ("metrics.json", "metrics.csv", "crops", "wandb", "wandb_id")
        return [*self.checkpoints.glob("*.ckpt"), *(self.path / name for name in names)]

    def _clear(self) -> None:
        for path in self._outputs():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _test_settings(config: dict[str, Any]) -> tuple[Any, ...]:
    """Return the settings that change the result of a run without changing its training."""
    limit = config["trainer"].get("limit_test_batches")
    return limit, config["data"].get("root"), config["ckpt_path"] or "auto"
