"""The W&B run of a run folder: one and the same, however often the run is stopped and goes on."""

from __future__ import annotations

import logging
import numbers
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from ..paper import data_tags, describe_data, network_name
from ..utils.errors import UsageError
from ..utils.failures import warn_on_failure

log = logging.getLogger(__name__)

STEP = "trainer/global_step"
"""The axis of all curves, as Lightning calls it."""
_LONGEST_TAG = 64  # that W&B takes
_OFFLINE = {"mode": "offline", "resume": None, "settings": {"silent": True}}


class WandbRun(WandbLogger):
    """Lightning's logger, but a run that goes on stays one run in W&B, without missing rows and without double ones.

    Rows are numbered as those of ``metrics.csv``, so that what W&B has and what it lacks can be told. Pictures travel with
    the next row of figures. A run that goes on offline writes all rows anew, into a file that is complete by itself: W&B
    cannot append offline, and loses the last seconds of a process that is killed. Online it sends the rows that are not
    there yet.

    Without a key, or where W&B cannot be reached, the run is recorded offline; with ``WANDB_MODE=disabled``, nowhere.

    Args:
        run_dir: the run directory. Its ``wandb_id`` holds the id of its W&B run, so that a resumed run stays one run, and two
            runs stay two wherever W&B's own files are.
        save_dir: where W&B's own files are; None for ``run_dir``.
        offline: record on the disk only; ``wandb sync`` sends it later. None: as there is a key that W&B takes.
        keep_model: the best checkpoint is kept as a model, too.
        settings: as for Lightning's ``WandbLogger``, whose ``log_model`` cannot be had offline.
    """

    def __init__(
        self,
        run_dir: str | Path,
        save_dir: str | Path | None = None,
        offline: bool | None = None,
        keep_model: bool = True,
        **settings: Any,
    ) -> None:
        import wandb

        self.folder = Path(run_dir)
        self.keep_model = keep_model
        self.offline_reason = "set so"
        if offline is None:
            offline = not _can_log_in()
            self.offline_reason = "no API key, or no connection"
        mode = (
            os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        )  # the command `wandb disabled`
        if mode != "disabled":
            settings["id"] = _run_id(self.folder / "wandb_id")
        # The mode too: Lightning only sets the environment, and W&B may have read it by now.
        if mode == "disabled":
            offline, settings["mode"] = False, "disabled"
        elif offline:
            settings |= _OFFLINE
        else:  # in seconds: training does not wait for a server for long, nor does its end
            settings["settings"] = {"init_timeout": 30, "finish_timeout": 120}
        super().__init__(save_dir=save_dir or run_dir, offline=offline, **settings)
        self._wandb_init.pop(
            "anonymous", None
        )  # W&B warns of it, though it is Lightning that sets it
        self._pictures: dict[str, Any] = {}
        self._next = 0
        self._there: int | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun on first use."""
        from wandb.errors import CommError
        from wandb.errors import UsageError as WandbUsageError

        begins = self._experiment is None
        try:
            run = super().experiment
        except WandbUsageError as error:  # a name that W&B does not take
            raise UsageError(f"logger.wandb: {error}.") from error
        except CommError as error:
            _say_offline(error)
            self._offline, self.offline_reason = True, "no connection"
            self._wandb_init |= _OFFLINE
            run = super().experiment
        if begins:
            run.define_metric("val/error", step_metric=STEP, summary="min")
        return run

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Begins the run: its configuration, tags of what was chosen, and keys by which to group and to filter.

        Args:
            params: the whole configuration, as a dict. Beside it, ``network`` is the paper's name of the network, and what
                tells the columns of its table apart is there by a plain name: ``distortion``, ``digit``, ``size`` or
                ``species``.
        """
        choices, data = params["choices"], params["data"]
        network = network_name(choices["experiment"], choices["model"], choices["transform"])
        tags = [
            *(self._wandb_init.get("tags") or ()),
            choices["model"],
            choices["transform"],
            choices["recipe"],
        ]
        self._wandb_init["tags"] = [
            tag[:_LONGEST_TAG] for tag in [*tags, *describe_data(data)] if tag != "none"
        ]
        super().log_hyperparams({**params, **data_tags(data), "network": network})

    @rank_zero_only
    def log_result(self, record: Mapping[str, Any], checkpoint: str) -> None:
        """What no row has of a run that is finished: the best error, size, time, and the model.

        The model is called ``model-ID``, as Lightning calls it, with the aliases "best" and the paper's row and column,
        such as "st-cnn-affine-rts". W&B reads the checkpoint where it lies, offline when the run is sent.

        Args:
            record: as in ``metrics.json``.
            checkpoint: the best one; "" if there is none.
        """
        import wandb

        run = self.experiment
        run.summary.update({name: record[name] for name in ("parameters", "seconds")})
        best = record["metrics"].get("val/best_error")
        if (
            best is not None
        ):  # in W&B's own place, too, as of a run that went on it may have seen only a part
            run.summary.update({"val/best_error": best, "val/error": {"min": best}})
        if checkpoint and self.keep_model:
            told = {name: record[name] for name in ("label", "seed", "steps", "commit")}
            told |= {name: record["metrics"].get(name) for name in ("val/best_error", "test/error")}
            model = wandb.Artifact(f"model-{run.id}", type="model", metadata=told)
            try:
                model.add_file(
                    str(Path(checkpoint).absolute()), policy="immutable", skip_cache=True
                )
                run.log_artifact(model, aliases=["best", _row(record)])
            except (
                OSError,
                ValueError,
                wandb.Error,
            ) as error:  # no place for W&B's staging directory, say
                log.warning("W&B did not take the model: %s", error)

    @rank_zero_only
    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes up a run that was stopped.

        Args:
            rows: what was logged so far, as ``metrics.csv`` has it; what W&B lacks of it is sent, with its pictures.
        """
        self._next = 0
        for row in rows:
            step = int(row["step"])
            figures = {name: float(value) for name, value in row.items() if name != "step"}
            if self._is_lacking and (self._next == 0 or "val/error" in figures):
                self._add_pictures(
                    step + 1 if self._next else 0
                )  # those before training go with the first row
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
            row = {STEP: step, **metrics}
            with warn_on_failure(
                "Sending images and tables to W&B"
            ):  # tables are staged below HOME, which may be full
                self.experiment.log({**row, **self._pictures}, step=self._next, commit=True)
                row = {}
            if row:
                self.experiment.log(row, step=self._next, commit=True)
        self._pictures = {}
        self._next += 1


@rank_zero_only
def _run_id(path: Path) -> str:
    """Return the id of the W&B run of a run directory, which the first start writes."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def _row(record: Mapping[str, Any]) -> str:
    """The paper's row and column, "st-cnn-affine-rts"; a crop's size that is in the network's name is not repeated."""

    def plain(words: str) -> str:
        return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")

    row = plain(network_name(record["experiment"], record["model"], record["transform"]))
    columns = [plain(word) for word in describe_data(record["config"]["data"])]
    return "-".join([row, *(column for column in columns if f"-{column}-" not in f"-{row}-")])


@rank_zero_only
def _can_log_in() -> bool:
    """Whether there is a key and W&B takes it."""
    from wandb.errors import CommError

    import wandb

    try:
        return wandb.login(prompt=False)
    except CommError as error:
        _say_offline(error)
        return False


def _say_offline(error: Exception) -> None:
    reason = str(error).splitlines()[0]
    log.warning(
        "W&B cannot be reached (%s). The run is logged offline; upload it with `wandb sync`.",
        reason,
    )
