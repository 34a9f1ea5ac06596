"""Sweeps with stable run directories: rerun, they skip finished runs and resume stopped ones.

Hydra imports this module in every Hydra program on the machine. So torch and what needs it are
imported only when a sweep runs.
"""

import itertools
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from spatial_transformer.training.signals import StopSignals
from spatial_transformer.utils.errors import RunInProgressError, Stopped, UsageError, did_you_mean
from spatial_transformer.utils.process import end_with_parent, rank

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ImportError:  # the extra "cluster" is not installed, and Hydra does not offer its launcher
    SlurmLauncher = Launcher

_HINT = "Rerun the same command to resume the sweep."
_POLL_SECONDS = 5
_MAX_NAME = 255  # bytes of a name in most file systems


class SweepRun(NamedTuple):
    """A validated run of a sweep: overrides, configuration, :class:`RunDir` and state."""

    overrides: list[str]
    config: dict[str, Any]
    run_dir: Any
    is_finished: bool


class Grid(Sweeper):
    """Run all combinations of values, except those that are finished.

    Args:
        rows: settings that belong together, as "model=st_fcn transform=affine". A value of one of
            them on the command line selects rows.
        params: values of other settings. Each combination is run with each row.
        show: only print the state of each run.
    """

    hydra_context: HydraContext
    launcher: Launcher
    config: Any

    def __init__(self, rows: Sequence[str], params: dict[str, str], show: bool) -> None:
        self.rows = [dict(word.split("=", 1) for word in shlex.split(row)) for row in rows] or [{}]
        self.params = [f"{name}={values}" for name, values in params.items()]
        self.show = show

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config
        job = partial(run_job, task_function)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=job, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        if rank() > 0 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UsageError("A sweep must be one process, but torchrun or srun started several.")
        runs: dict[str, SweepRun] = {}
        for overrides in self._combinations(arguments):
            name, run = self._validate_run(overrides)
            if name in runs:
                raise UsageError(f"Two runs of the sweep have the same directory {name}.")
            runs[name] = run
        unfinished = [run for run in runs.values() if not run.is_finished]
        estimate = _estimate_time(unfinished) if self.show else ""
        total = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
        print(f"{total}, {len(runs) - len(unfinished)} finished{estimate}", flush=True)
        if self.show or not unfinished:
            _print_states(runs)
            return
        try:
            Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"The directory of the sweep cannot be created: {error}.") from error
        try:
            with StopSignals(_HINT):
                self.launcher.launch([run.overrides for run in unfinished], initial_job_idx=0)
        except BrokenExecutor:
            raise UsageError(f"A process was killed, often for lack of memory. {_HINT}") from None
        finally:
            states = Counter(_print_states(runs))
        if states.keys() != {"finished"}:
            counts = ", ".join(f"{count} {state}" for state, count in states.items())
            raise UsageError(f"Not all runs are finished: {counts} (see error.txt). {_HINT}")

    def _combinations(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of each run."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        values: dict[str, list[str]] = {}
        for override in parser.parse_overrides(self.params + arguments):
            key = override.get_key_element()
            if override.is_sweep_override():
                values[key] = list(override.sweep_string_iterator())
            else:
                values[key] = [override.get_value_element_as_str()]
        for key in ("sweep", "ablation", "launcher"):
            if len(values.get(key, ())) > 1:
                raise UsageError(f"Choose one {key}, got {', '.join(values[key])}.")
        rows, chosen = self.rows, []
        for key in sorted(set().union(*rows) & values.keys()):
            selected = values.pop(key)
            known = {row[key] for row in self.rows if key in row}
            for value in selected:
                if value not in known:
                    hint = did_you_mean(value, known)
                    raise UsageError(f"No run of this sweep has {key}={value}.{hint}")
            rows = [row for row in rows if row.get(key) in selected]
            chosen.append(f"{key}={','.join(selected)}")
        if not rows:
            raise UsageError(f"No run of this sweep has {' and '.join(chosen)}.")
        axes = [[f"{key}={value}" for value in values[key]] for key in values]
        return [
            [*(f"{key}={value}" for key, value in row.items()), *point]
            for row in rows
            for point in itertools.product(*axes)
        ]

    def _validate_run(self, overrides: list[str]) -> tuple[str, SweepRun]:
        """Check the configuration of a run. Return the name of its directory, and the run."""
        from spatial_transformer.training.build import build
        from spatial_transformer.training.run_dir import RunDir
        from spatial_transformer.training.validation import validate

        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the configuration
        try:
            name = str(config.hydra.sweep.subdir)
            if any(len(os.fsencode(part)) > _MAX_NAME for part in Path(name).parts):
                raise UsageError(
                    f"The name of a run directory must have at most {_MAX_NAME} bytes, got {name}. "
                    "Use 'hydra.sweep.subdir=${label}', or sweep over fewer settings."
                )
            run_dir = RunDir(Path(config.hydra.sweep.dir, name).absolute())
            with open_dict(config):
                del config["hydra"]
            config.run_dir = str(run_dir.path)
            validate(config)
            plain: Any = OmegaConf.to_container(config, resolve=True)
            is_finished = run_dir.finished(plain) is not None
            if not is_finished and not self.show:  # a listing downloads no weights
                build(config)
        finally:
            HydraConfig.instance().set_config(self.config)
        return name, SweepRun(overrides, plain, run_dir, is_finished)


def run_job(function: TaskFunction, config: DictConfig) -> Any:
    """Call ``function`` for a run of a sweep. A failure is reported at once."""
    from spatial_transformer.training.run_dir import RunDir

    is_in_worker = multiprocessing.parent_process() is not None
    if is_in_worker:
        end_with_parent()
    run_dir = RunDir(HydraConfig.get().runtime.output_dir)
    try:
        return function(config)
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        print(f"{run_dir.path.name} failed: {reason}", file=sys.stderr, flush=True)
        if not isinstance(error, RunInProgressError):
            with suppress(OSError):  # the disk may be full
                run_dir.write_error(error)
        raise
    except Stopped as stop:
        if not is_in_worker:
            raise
        print(f"{run_dir.path.name}: {stop}", file=sys.stderr, flush=True)  # the others continue


class SlurmArray(SlurmLauncher):
    """Hydra's launcher for SLURM, which waits for the whole array even if single jobs fail.

    It reads the state of the runs from the queue and their directories, without accounting.
    """

    def __call__(self, sweep_overrides: list[str], *arguments: Any) -> JobReturn:
        """Run a job as a task on the cluster."""
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0):  # resumes, even if it was started over
            sweep_overrides = [word for word in sweep_overrides if word != "ckpt_path=null"]
        return super().__call__(sweep_overrides, *arguments)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        sweep_dir = str(Path(str(self.config.hydra.sweep.dir)).absolute())  # type: ignore
        for job in _queued_jobs(sweep_dir):
            raise UsageError(f"The sweep is already queued as job {job}. Wait, or scancel {job}.")
        params = dict(self.params)
        executor = submitit.AutoExecutor(
            folder=params.pop("submitit_folder"),
            cluster="slurm",
            slurm_max_num_timeout=params.pop("max_num_timeout"),
        )
        common = BaseQueueConf.__dataclass_fields__
        params = {k if k in common else f"slurm_{k}": value for k, value in params.items()}
        executor.update_parameters(**params | {"slurm_comment": sweep_dir})
        jobs = [
            (list(overrides), "hydra.sweep.dir", number, str(number), Singleton.get_state())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        number = executor.map_array(self, *zip(*jobs))[0].job_id.split("_")[0]
        print(f"Job {number} is queued. It stays queued if you interrupt this program.", flush=True)
        while _is_queued(sweep_dir):
            time.sleep(_POLL_SECONDS)
        return []


def _queued_jobs(sweep_dir: str) -> list[str]:
    """Return the numbers of the jobs in SLURM's queue whose comment is ``sweep_dir``."""
    command = ["squeue", "--me", "--noheader", "--format=%F|%k"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise UsageError("launcher=slurm needs SLURM: squeue is missing on this machine.") from None
    except subprocess.CalledProcessError as error:
        raise UsageError(f"launcher=slurm: squeue failed: {error.stderr.strip()}") from error
    jobs = [line.split("|", 1) for line in output.splitlines()]
    return [number for number, comment in jobs if comment == sweep_dir]


def _is_queued(sweep_dir: str) -> bool:
    """Return whether a sweep is in SLURM's queue, True if SLURM is too busy to answer."""
    try:
        return bool(_queued_jobs(sweep_dir))
    except UsageError:
        return True


def _estimate_time(runs: Sequence[SweepRun]) -> str:
    """Return the time that runs will take; empty unless there are results of each network."""
    from spatial_transformer.training.result import read_result

    choices = [run.config["choices"] for run in runs]
    step_times = defaultdict(list)
    for experiment in {choice["experiment"] for choice in choices}:
        for result in map(read_result, Path("results", experiment).glob("*.json")):
            if "cpu" in result["device"] and result.get("threads") == result.get("devices") == 1:
                key = tuple(result[group] for group in choices[0])
                step_times[key].append(result["seconds"] / result["steps"])
    seconds = 0.0
    for run, choice in zip(runs, choices):
        if not (known := step_times.get(tuple(choice.values()))):
            return ""
        seconds += statistics.median(known) * run.config["trainer"]["max_steps"]
    return f"; about {seconds / 3600:.2g} h on one core, from earlier results" if runs else ""


def _print_states(runs: dict[str, SweepRun]) -> list[str]:
    """Print a line for each run and return the state of each."""
    states = {name: run.run_dir.state() for name, run in runs.items()}
    width = max(map(len, runs))
    for name, state in states.items():
        print(f" {name:{width}}  {state.name:11}  {state.detail}".rstrip(), flush=True)
    return [state.name for state in states.values()]
