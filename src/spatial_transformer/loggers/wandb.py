"""The W&B run of a run directory, which remains a single run after a resume."""

from __future__ import annotations

import logging
import numbers
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
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
_MAX_TAG = 64  # characters
_OFFLINE = {"mode": "offline", "resume": None, "settings": {"silent": True}}
_ROOT = Path(__file__).parents[3]  # of a checkout
_ONLY_IN_FILES = re.compile(r"theta(_\d+)?/(mean|std)_\d+|test/parts_.*")
_WITHOUT_CHART = ("epoch", "lr/localisation", "test/*", "theta_*", "train/*")
"""Metrics that W&B shows in tables, and in charts on demand: a run has at most a dozen charts."""


class WandbRun(WandbLogger):
    """Lightning's logger, whose run stays one run, with each row once, when it is resumed.

    Rows have the numbers of those of ``metrics.csv`` plus 1, which tells which of them W&B lacks.
    Row 0 holds the images before training. Other images are sent with the next row of metrics. A
    run that is resumed offline writes all rows to a new file, as W&B cannot append offline and
    loses the last seconds of a process that is killed. Online it sends the missing rows.

    Without a key, or if W&B cannot be reached, the run is logged offline. With
    ``WANDB_MODE=disabled`` it is not logged.

    Args:
        run_dir: the run directory. Its ``wandb_id`` holds the id of its W&B run, so that a resumed
            run stays one run, and two runs stay two in any ``save_dir``.
        save_dir: directory of W&B's own files; None for ``run_dir``.
        offline: log to the disk only; ``wandb sync`` uploads it later. None: unless there is a key
            that W&B accepts.
        keep_model: log the best checkpoint as a model.
        save_code: log src/ and conf/ of the checkout as code.
        settings: as for ``WandbLogger``, but for ``log_model``, which does not work offline.
    """

    def __init__(
        self,
        run_dir: str | Path,
        save_dir: str | Path | None = None,
        offline: bool | None = None,
        keep_model: bool = True,
        save_code: bool = True,
        **settings: Any,
    ) -> None:
        import wandb

        self.folder = Path(run_dir)
        self.keep_model = keep_model
        self.save_code = save_code
        self.offline_reason = "set so"
        if offline is None:
            offline = not _can_log_in()
            self.offline_reason = "no API key, or no connection"
        # The command `wandb disabled` sets the mode, too.
        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode != "disabled":
            settings["id"] = _read_run_id(self.folder / "wandb_id")
            staging = Path(save_dir or run_dir).absolute() / "wandb"  # else it is in HOME
            os.environ.setdefault("WANDB_DATA_DIR", str(staging))
        # Lightning only sets the environment, which W&B may have read before.
        if mode == "disabled":
            offline, settings["mode"] = False, "disabled"
        elif offline:
            settings |= _OFFLINE
        else:  # seconds that the start and the end of training wait for a server
            settings["settings"] = {"init_timeout": 30, "finish_timeout": 120}
        super().__init__(save_dir=save_dir or run_dir, offline=offline, **settings)
        self._wandb_init.pop("anonymous", None)  # Lightning sets it, and W&B warns of it
        self._media: dict[str, Any] = {}
        self._next_row = 1

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started on first use."""
        from wandb.errors import CommError
        from wandb.errors import UsageError as WandbUsageError

        is_new = self._experiment is None
        try:
            run = super().experiment
        except WandbUsageError as error:  # such as a name that W&B does not accept
            raise UsageError(f"logger.wandb: {error}.") from error
        except CommError as error:
            _warn_offline(error)
            self._offline, self.offline_reason = True, "no connection"
            self._wandb_init |= _OFFLINE
            run = super().experiment
        if is_new:
            for name in _WITHOUT_CHART:
                run.define_metric(name, step_metric=STEP, hidden=True)
            run.define_metric("train/loss", step_metric=STEP)
            run.define_metric("val/error", step_metric=STEP, summary="min")
        return run

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Start the run with its configuration, its tags and its code.

        Args:
            params: the whole configuration, as a dict. W&B also gets ``network``, the name of the
                network in the paper, and the column of its table: ``distortion``, ``digit``,
                ``size`` or ``species``.
        """
        choices, data = params["choices"], params["data"]
        network = network_name(choices["experiment"], choices["model"], choices["transform"])
        tags = [*(self._wandb_init.get("tags") or ())]
        tags += [choices["model"], choices["transform"], choices["recipe"], *describe_data(data)]
        self._wandb_init["tags"] = [tag[:_MAX_TAG] for tag in tags if tag != "none"]
        super().log_hyperparams({**params, **data_tags(data), "network": network})
        if self.save_code:
            self._log_code()

    @warn_on_failure("Sending the code to W&B")
    def _log_code(self) -> None:
        for name in ("conf", "src"):  # W&B shows the last one as the code of the run
            self.experiment.log_code(
                root=str(_ROOT / name),
                name=f"source-{self._project}-{name}",
                include_fn=lambda path: path.endswith((".py", ".yaml")),
            )

    @rank_zero_only
    def log_result(self, result: Mapping[str, Any], checkpoint: str) -> None:
        """Log the best error, the size, the time and the model of a finished run.

        The model is called ``model-ID``, as by Lightning. Its aliases are "best" and the row and
        column of the paper, such as "st-cnn-affine-rts". W&B reads the checkpoint from its place;
        offline it does so when the run is uploaded.

        Args:
            result: as in ``metrics.json``.
            checkpoint: the best one; "" if there is none.
        """
        import wandb

        run = self.experiment
        run.summary.update({name: result[name] for name in ("parameters", "seconds")})
        best = result["metrics"].get("val/best_error")
        if best is not None:  # W&B may have seen only a part of a resumed run
            run.summary.update({"val/best_error": best, "val/error": {"min": best}})
        if checkpoint and self.keep_model:
            metadata = {name: result[name] for name in ("label", "seed", "steps", "commit")}
            for name in ("val/best_error", "test/error"):
                metadata[name] = result["metrics"].get(name)
            model = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
            path = str(Path(checkpoint).absolute())
            try:
                model.add_file(path, policy="immutable", skip_cache=True)
                run.log_artifact(model, aliases=["best", _table_cell(result)])
            except (OSError, ValueError, wandb.Error) as error:  # no staging directory, say
                log.warning("W&B did not accept the model: %s", error)

    @rank_zero_only
    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Continue a run that was stopped.

        Args:
            rows: what was logged so far, as in ``metrics.csv``. The rows that W&B lacks are sent,
                with the images of the run directory.
        """
        self._next_row = 1
        if self._remote_rows == 0:
            self._add_images(0)
            self._send({STEP: 0}, row=0)
        for row in rows:
            step = int(row["step"])
            metrics = {name: float(value) for name, value in row.items() if name != "step"}
            if "val/error" in metrics and self._next_row >= self._remote_rows:
                self._add_images(step + 1)
            self.log_metrics(metrics, step)

    def _add_images(self, step: int) -> None:
        import wandb

        for path in sorted((self.folder / "crops").glob(f"*_{step:07d}.png")):
            name = path.stem.rpartition("_")[0]
            self._media[f"pictures/{name}"] = [wandb.Image(str(path))]

    @cached_property
    def _remote_rows(self) -> int:
        """How many rows W&B had when the run started in this process."""
        return self.experiment.step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row of metrics; or images and tables, which wait for the next row."""
        if not all(isinstance(value, numbers.Number) for value in metrics.values()):
            self._media |= metrics
            if step == 0 and self._remote_rows == 0:
                self._send({STEP: 0}, row=0)
            return
        if self._next_row >= self._remote_rows:
            self._send({STEP: step, **select_metrics(metrics)}, self._next_row)
        self._media = {}
        self._next_row += 1

    def _send(self, values: dict[str, Any], row: int) -> None:
        media, self._media = self._media, {}
        is_sent = False
        with warn_on_failure("Sending images and tables to W&B"):  # staged in HOME: may be full
            self.experiment.log({**values, **media}, step=row, commit=True)
            is_sent = True
        if not is_sent:
            self.experiment.log(values, step=row, commit=True)


def select_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics that W&B gets, under their names there.

    The statistics of numbered parameters of theta are left to ``metrics.csv``, and the coverage of
    parts to a table. Learning rates are called ``lr/network`` and ``lr/localisation``.
    """
    return {
        re.sub("^lr-[^/]*", "lr", name): value
        for name, value in metrics.items()
        if not _ONLY_IN_FILES.fullmatch(name)
    }


@rank_zero_only
def _read_run_id(path: Path) -> str:
    """Return the id of the W&B run of a run directory, which the first start writes."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def _table_cell(result: Mapping[str, Any]) -> str:
    """Return the row and the column in the paper's table, such as "st-cnn-affine-rts".

    The size of a crop that is in the name of the network is not repeated.
    """

    def slug(words: str) -> str:
        return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")

    row = slug(network_name(result["experiment"], result["model"], result["transform"]))
    columns = [slug(word) for word in describe_data(result["config"]["data"])]
    return "-".join([row, *(column for column in columns if f"-{column}-" not in f"-{row}-")])


@rank_zero_only
def _can_log_in() -> bool:
    """Return whether there is a key that W&B accepts."""
    import wandb
    from wandb.errors import CommError

    try:
        return wandb.login(prompt=False)
    except CommError as error:
        _warn_offline(error)
        return False


def _warn_offline(error: Exception) -> None:
    reason = str(error).splitlines()[0]
    log.warning(
        "W&B cannot be reached (%s). The run is logged offline; upload it with `wandb sync`.",
        reason,
    )
