"""The W&B run of a run folder: one and the same, however often the run is stopped and goes on."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

STEP = "trainer/global_step"
"""The axis of all curves, as Lightning calls it."""
_OFFLINE = {"mode": "offline", "resume": None, "settings": {"silent": True}}


class WandbRun(WandbLogger):
    """Lightning's logger, but a run that goes on stays one run in W&B, without missing rows and without double ones.

    Rows are numbered as those of ``metrics.csv``, so that what W&B has and what it lacks can be told. Pictures travel with
    the next row of figures. A run that goes on offline writes all rows anew, into a file that is complete by itself: W&B
    cannot append offline, and loses the last seconds of a process that is killed. Online it sends the rows that are not
    there yet.

    Without a key, or where W&B cannot be reached, the run is recorded offline.

    Args:
        save_dir: the run folder; its ``wandb/`` tells the run's id, where an earlier process has been at work.
        offline: record on the disk only; ``wandb sync`` sends it later. None: as there is a key that W&B takes.
        settings: as for Lightning's ``WandbLogger``.
    """

    def __init__(self, save_dir: str | Path, offline: bool | None = None, **settings: Any) -> None:
        self.folder = Path(save_dir)
        earlier = sorted(path.name for path in (self.folder / "wandb").glob("*run-*-*"))
        if earlier:
            settings["id"] = earlier[-1].rsplit("-", 1)[1]
        if offline is None:
            offline = not _can_log_in()
        if offline:  # the mode too: Lightning only sets the environment, and W&B may have read it by now
            settings |= _OFFLINE
        else:  # in seconds: training does not wait for a server for long, nor does its end
            settings["settings"] = {"init_timeout": 30, "finish_timeout": 120}
        super().__init__(save_dir=save_dir, offline=offline, **settings)
        self._pictures: dict[str, Any] = {}
        self._next = 0
        self._there: int | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun on first use."""
        from wandb.errors import CommError

        try:
            return super().experiment
        except CommError as error:
            _say_offline(error)
            self._offline = True
            self._wandb_init |= _OFFLINE
            return super().experiment

    @rank_zero_only
    def go_on(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes up a run that was stopped.

        Args:
            rows: what was logged so far, as ``metrics.csv`` has it; what W&B lacks of it is sent, with its pictures.
        """
        self._next = 0
        for row in rows:
            step = int(row["step"])
            figures = {name: float(value) for name, value in row.items() if name != "step"}
            if self._is_lacking and (self._next == 0 or "val/error" in figures):
                self._add_pictures(step + 1 if self._next else 0)  # those before training go with the first row
            self.log_metrics(figures, step)

    def _add_pictures(self, step: int) -> None:
        import wandb

        for path in sorted((self.folder / "crops").glob(f"*_{step:07d}.png")):
            self._pictures[f"pictures/{path.stem.rsplit('_', 1)[0]}"] = wandb.Image(str(path))

    @property
    def _is_lacking(self) -> bool:
        """Whether W&B has not got the next row; how many it has of an earlier process it says when the run begins."""
        if self._there is None:
            self._there = self.experiment.step
        return self._next >= self._there

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """A row of figures; or what else W&B shows, which waits for the next row."""
        if not all(isinstance(value, numbers.Number) for value in metrics.values()):
            self._pictures |= metrics
            return
        if self._is_lacking:
            self.experiment.log({STEP: step, **metrics, **self._pictures}, step=self._next, commit=True)
        self._pictures = {}
        self._next += 1


@rank_zero_only
def _can_log_in() -> bool:
    """Whether there is a key and W&B takes it."""
    import wandb
    from wandb.errors import CommError

    try:
        return wandb.login(prompt=False)
    except CommError as error:
        _say_offline(error)
        return False


def _say_offline(error: Exception) -> None:
    reason = str(error).splitlines()[0]
    print(f"no connection to W&B ({reason}): recording offline; `wandb sync` sends it later", file=sys.stderr)
