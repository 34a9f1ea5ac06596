"""Sweeps with stable run directories: started again, they run only what is not finished.

Hydra imports this module in every Hydra program on the machine, so it imports nothing else of this
package until one of its sweeps runs.
"""

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf, open_dict

_HERE = "hydra_plugins.spatial_transformer_sweeps.sweeps"
_RESUME = "Rerun the same command to resume the sweep."
_POLL_SECONDS = 5


@dataclass
class GridConf:
    """Settings of :class:`Grid`."""

    _target_: str = f"{_HERE}.Grid"
    rows: list[str] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    show: bool = False


@dataclass
class JoblibConf(JobLibLauncherConf):
    """Settings of :class:`Joblib`: those of Hydra's own launcher."""

    _target_: str = f"{_HERE}.Joblib"


@dataclass
class SlurmArrayConf(SlurmQueueConf):
    """Settings of :class:`SlurmArray`: those of Hydra's own launcher."""

    _target_: str = f"{_HERE}.SlurmArray"


for _group, _name, _node in (
    ("hydra/sweeper", "grid", GridConf),
    ("hydra/launcher", "joblib", JoblibConf),
    ("hydra/launcher", "slurm", SlurmArrayConf),
):
    ConfigStore.instance().store(f"spatial_transformer_{_name}", _node, group=_group)


class Grid(Sweeper):
    """Run all combinations of values, except those that are finished.

    Args:
        rows: settings that go together, as "model=st_fcn transform=affine". A value of one of them
            on the command line selects rows.
        params: values of other settings. Each combination is run with each row.
        show: only print the state of each run.
    """

    hydra_context: Any
    config: Any

    def __init__(self, rows: Sequence[str], params: dict[str, str], show: bool) -> None:
        self.rows = [dict(word.split("=", 1) for word in shlex.split(row)) for row in rows] or [{}]
        self.params = [f"{name}={values}" for name, values in params.items()]
        self.show = show

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Job(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from spatial_transformer.utils.errors import Stopped, UsageError
        from spatial_transformer.utils.process import rank

        if rank() > 0 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UsageError("A sweep must be one process, and torchrun or srun started several.")
        runs = {}
        for number, job in enumerate(self._jobs(arguments)):
            run, finished = self._check(job, number)
            sweep_dir = Path(str(self.config.hydra.sweep.dir))
            name = os.path.relpath(run.path, sweep_dir)
            if name in runs:
                raise UsageError(f"Two runs of the sweep have the same directory {run.path}.")
            runs[name] = (job, run, finished)
        jobs = [job for job, _, finished in runs.values() if not finished]
        print(
            f"{len(runs)} runs, {len(runs) - len(jobs)} already finished, in {sweep_dir}",
            flush=True,
        )
        if self.show or not jobs:
            return _print_states(runs) and None
        try:
            self.launcher.launch(jobs, initial_job_idx=0)
        except KeyboardInterrupt:
            raise Stopped(f"Interrupted. {_RESUME}", 130) from None
        finally:
            states = _print_states(runs)
        if unfinished := Counter(state for state in states if state != "finished"):
            counts = ", ".join(f"{count} {state}" for state, count in unfinished.items())
            raise UsageError(
                f"{unfinished.total()} of {len(runs)} runs are not finished: {counts} (see error.txt of each). {_RESUME}"
            )

    def _jobs(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of each run.

        Raises:
            UsageError: the command line selects rows that are not there.
        """
        from spatial_transformer.utils.errors import UsageError, did_you_mean

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        values = {}
        for override in parser.parse_overrides(self.params + arguments):
            key = override.get_key_element()
            if not override.is_sweep_override():
                values[key] = [override.get_value_element_as_str()]
            elif not override.is_discrete_sweep():
                raise UsageError(f"{override.input_line} must list its values.")
            else:
                values[key] = list(override.sweep_string_iterator())
        for key in ("sweep", "ablation", "launcher"):
            if len(values.get(key, ())) > 1:
                raise UsageError(f"Choose one {key}, got {', '.join(values[key])}.")
        rows = self.rows
        for key in set().union(*rows) & values.keys():
            known = {row.get(key) for row in self.rows}
            for value in values[key]:
                if value not in known:
                    hint = did_you_mean(value, known - {None})
                    raise UsageError(f"No run of this sweep has {key}={value}.{hint}")
            rows = [row for row in rows if row.get(key) in values[key]]
            del values[key]
        settings = [[f"{key}={value}" for value in values[key]] for key in values]
        return [
            [*(f"{key}={value}" for key, value in row.items()), *rest]
            for row in rows
            for rest in itertools.product(*settings)
        ]

    def _check(self, job: list[str], number: int) -> tuple[Any, bool]:
        """Return the directory of a run, once it is checked, and whether the run is finished."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        HydraConfig.instance().set_config(config)  # the name of the directory comes from it
        directory = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
        OmegaConf.set_readonly(config.hydra, False)
        with open_dict(config):
            config.hydra.runtime.output_dir = str(directory)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        try:
            from spatial_transformer.training.run_dir import RunDir
            from spatial_transformer.training.validation import validate

            validate(config)
            run = RunDir(directory)
            plain: Any = OmegaConf.to_container(config, resolve=True)
            finished = run.finished(plain) is not None
            if not finished and not self.show:  # a listing downloads no weights
                from spatial_transformer.training.build import build

                build(config)
            return run, finished
        finally:
            HydraConfig.instance().set_config(self.config)


class Job:
    """A run of a sweep, which reports a failure at once.

    Args:
        function: trains and tests.
    """

    def __init__(self, function: TaskFunction) -> None:
        self.function = function
        self.is_worker = False

    def __call__(self, config: DictConfig) -> Any:
        from spatial_transformer.training.run_dir import RunDir
        from spatial_transformer.utils.errors import RunInProgressError, Stopped, UsageError
        from spatial_transformer.utils.process import end_with_parent

        if self.is_worker:
            end_with_parent()
        run = RunDir(HydraConfig.get().runtime.output_dir)
        try:
            return self.function(config)
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            print(f"{run.path.name} failed: {reason}", file=sys.stderr, flush=True)
            if run.state().name != "failed" and not isinstance(error, RunInProgressError):
                is_usage = isinstance(error, UsageError)
                run.write_error(str(error) if is_usage else traceback.format_exc())
            raise
        except Stopped as stop:
            if not self.is_worker:
                raise
            print(f"{run.path.name}: {stop}", file=sys.stderr, flush=True)  # the others continue


class Joblib(JoblibLauncher):
    """Hydra's launcher for several runs at once, which leaves no worker behind."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        from spatial_transformer.utils.errors import Stopped, UsageError

        def stop(number: int, frame: Any) -> None:
            name = signal.Signals(number).name
            raise Stopped(f"Interrupted by {name}. {_RESUME}", 128 + number)

        if self.joblib["n_jobs"] == 1:  # runs in this process, and handles its signals
            return super().launch(job_overrides, initial_job_idx)
        self.task_function.is_worker = True  # type: ignore[union-attr]
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        handlers = {number: signal.signal(number, stop) for number in numbers}
        try:
            return super().launch(job_overrides, initial_job_idx)
        except TerminatedWorkerError:
            raise UsageError(f"A process was killed, often for lack of memory. {_RESUME}") from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


class SlurmArray(SlurmLauncher):
    """Hydra's launcher for SLURM, which waits for the whole array even if single jobs fail.

    The state of the runs is read from the queue and their directories: no accounting is needed.
    """

    def __call__(self, sweep_overrides: list[str], *arguments: Any) -> JobReturn:
        """Run a job as a task on the cluster. Only the first task of a job writes ``.hydra``."""
        from spatial_transformer.utils.process import rank

        if int(os.environ.get("SLURM_RESTART_COUNT") or 0):  # resume, also what was started over
            sweep_overrides = [word for word in sweep_overrides if word != "ckpt_path=null"]
        extra = ["hydra.output_subdir=null"] if rank() > 0 else []
        return super().__call__([*sweep_overrides, *extra], *arguments)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        import submitit

        from spatial_transformer.utils.errors import UsageError

        sweep_dir = str(Path(str(self.config.hydra.sweep.dir)).absolute())  # type: ignore
        for line in _squeue("%F|%k"):
            number, _, comment = line.partition("|")
            if comment == sweep_dir:
                raise UsageError(
                    f"This sweep is already queued as job {number}. Wait until it has ended, or cancel it (scancel {number})."
                )
        params = dict(self.params)
        executor = submitit.AutoExecutor(
            folder=params.pop("submitit_folder"),
            cluster="slurm",
            slurm_max_num_timeout=params.pop("max_num_timeout"),
        )
        common = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb"}
        common |= {"nodes", "name", "stderr_to_stdout"}
        named = {k if k in common else f"slurm_{k}": v for k, v in params.items()}
        executor.update_parameters(**named | {"slurm_comment": sweep_dir})
        state = Singleton.get_state()
        jobs = [
            (list(overrides), "hydra.sweep.dir", number, str(number), state)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        number = executor.map_array(self, *zip(*jobs))[0].job_id.split("_")[0]
        print(f"Job {number} is queued. Interrupting this program leaves it there.", flush=True)
        shown = ""
        while states := Counter(_squeue("%T", "--array", f"--jobs={number}")):
            text = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
            if text != shown:
                print(f"job {number}: {text}", flush=True)
                shown = text
            time.sleep(_POLL_SECONDS)
        return []


def _squeue(columns: str, *options: str) -> list[str]:
    """Return the lines of SLURM's queue: none for a job that it has forgotten."""
    from spatial_transformer.utils.errors import UsageError

    command = ["squeue", "--me", "--noheader", f"--format={columns}", *options]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("launcher=slurm needs SLURM: squeue is missing on this machine.") from None
    if result.returncode and "Invalid job id" not in result.stderr:
        raise UsageError(f"launcher=slurm: {result.stderr.strip()}.")
    return result.stdout.split("\n")[:-1]


def _print_states(runs: dict[str, tuple[list[str], Any, bool]]) -> list[str]:
    """Print a table of the runs, and return the state of each."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    if not console.is_terminal:
        console.width = 1_000  # a line for each run in a log file, however long its name
    table = Table(Column("run", overflow="fold"), "state", "", box=None)
    states = {name: run.state() for name, (_, run, _) in runs.items()}
    for name, state in states.items():
        table.add_row(name, state.name, state.detail)
    console.print(table)
    return [state.name for state in states.values()]
