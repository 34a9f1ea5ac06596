"""Sweeps that lose nothing: runs have stable folders, finished ones are passed over, and a table tells which is which."""

import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf, open_dict

from spatial_transformer.config import check
from spatial_transformer.errors import Stopped, UsageError
from spatial_transformer.process import rank
from spatial_transformer.run_folder import RunFolder

_POLL_SECONDS = 5


@dataclass
class GridConf:
    """Settings of :class:`Grid`."""

    _target_: str = "hydra_plugins.spatial_transformer_sweeps.sweeps.Grid"
    rows: list[str] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    show: bool = False


@dataclass
class JoblibConf(JobLibLauncherConf):
    """Settings of :class:`Joblib`: those of Hydra's own launcher."""

    _target_: str = "hydra_plugins.spatial_transformer_sweeps.sweeps.Joblib"


@dataclass
class SlurmArrayConf(SlurmQueueConf):
    """Settings of :class:`SlurmArray`: those of Hydra's own launcher."""

    _target_: str = "hydra_plugins.spatial_transformer_sweeps.sweeps.SlurmArray"


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="spatial_transformer")
ConfigStore.instance().store(group="hydra/launcher", name="joblib_workers", node=JoblibConf, provider="spatial_transformer")
ConfigStore.instance().store(group="hydra/launcher", name="slurm_array", node=SlurmArrayConf, provider="spatial_transformer")


class Grid(BasicSweeper):
    """All combinations of values, as Hydra's own sweeper has them, but started again it runs only what is not finished.

    Args:
        rows: settings that go together, "model=st_fcn transform=affine" say, a run each; on the command line a value of one
            of them chooses rows.
        params: values of other settings; every combination with each row.
        show: only tells which runs there are and how far each is.
    """

    def __init__(self, rows: Sequence[str] = (), params: dict[str, str] | None = None, show: bool = False) -> None:
        super().__init__(None, dict(params or {}))
        self.show = show
        self.rows = [shlex.split(row) for row in rows]

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.launcher is not None
        if rank() > 0 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UsageError(
                "a sweep was started several times at once, by torchrun or srun. Way out: python train.py alone; it starts the "
                "processes of a run on several devices itself."
            )
        runs = self._runs(arguments)
        todo = {name: overrides for name, (overrides, folder, finished) in runs.items() if not finished}
        print(f"{len(runs)} runs, {len(runs) - len(todo)} finished before, in {self.config.hydra.sweep.dir}", flush=True)
        results: Sequence[JobReturn] = []
        if self.show:
            _show({name: folder for name, (_, folder, _) in runs.items()})
            return results
        try:
            if todo:
                results = self.launcher.launch(list(todo.values()), initial_job_idx=0)
        finally:
            for name, result in zip(todo, results):
                folder = runs[name][1]
                if result.status == JobStatus.FAILED and folder.state().name != "failed":
                    folder.note_failure(str(result._return_value) or type(result._return_value).__name__)
            _show({name: folder for name, (_, folder, _) in runs.items()})
        unfinished = Counter(folder.state().name for _, folder, _ in runs.values() if folder.state().name != "finished")
        if unfinished:
            told = ", ".join(f"{number} {name}" for name, number in unfinished.items())
            raise UsageError(
                f"of {len(runs)} runs {told}.\nWay out: the error.txt of a run that failed tells why; the same command runs "
                "what is not finished, and goes on with what was stopped."
            )
        return results

    def _runs(self, arguments: list[str]) -> dict[str, tuple[list[str], RunFolder, bool]]:
        """By the name of its folder each run's overrides, its folder, and whether it is finished.

        Raises:
            UsageError: a setting is wrong, or a folder holds another run.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = {o.get_key_element(): o for o in parser.parse_overrides(arguments)}
        rows = [dict(setting.split("=", 1) for setting in row) for row in self.rows] or [{}]
        of_rows = set().union(*rows)
        for key in of_rows & given.keys():
            override = given.pop(key)
            wanted = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(override.value())]
            there = list(dict.fromkeys(row[key] for row in rows if key in row))
            for value in wanted:
                if value not in there:
                    raise UsageError(f"no run of this ablation has {key}={value}. Way out: one of {', '.join(there)}.")
            rows = [row for row in rows if row.get(key) in wanted]
        params = {o.get_key_element(): o for o in parser.parse_overrides([f"{k}={v}" for k, v in self.params.items()])}
        rest = list((params | given).values())
        runs: dict[str, tuple[list[str], RunFolder, bool]] = {}
        for row in rows:
            settings = [f"{key}={value}" for key, value in row.items()]
            for overrides in self.split_arguments(rest, None)[0]:
                job = [*settings, *overrides]
                folder, finished = self._look(job, len(runs))
                name = os.path.relpath(folder.path, str(self.config.hydra.sweep.dir))  # a setting may be a path
                if name in runs:
                    raise UsageError(f"two runs of the sweep would share the folder {folder.path}. Way out: one of them.")
                runs[name] = (job, folder, finished)
        return runs

    def _look(self, overrides: list[str], number: int) -> tuple[RunFolder, bool]:
        assert self.config is not None
        assert self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
            HydraConfig.instance().set_config(config)  # the folder's name comes from it
            folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
            if len(folder.name.encode()) > 250:
                raise UsageError(f"the run's folder would have too long a name: {folder.name}\nWay out: fewer settings.")
            OmegaConf.set_readonly(config.hydra, False)
            config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        try:
            check(config)
            of_run = RunFolder(folder)
            finished = config.ckpt_path is not None and of_run.finished(config) is not None and of_run.goes_on(config)
            if not finished:
                from spatial_transformer.building import build  # torch, which a single run and --help do not wait for here

                build(config)
            return of_run, finished
        finally:
            HydraConfig.instance().set_config(self.config)


class Joblib(JoblibLauncher):
    """Hydra's launcher of several runs at once, but asked to end by SIGTERM it ends them; they would go on without it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        def end(number: int, frame: FrameType | None) -> None:
            raise Stopped("stopped by SIGTERM. Way out: the same command goes on from the runs' last checkpoints.", 143)

        if self.joblib["n_jobs"] == 1:  # joblib then runs them in this process, where they save at SIGTERM
            return super().launch(job_overrides, initial_job_idx)
        previous = signal.signal(signal.SIGTERM, end)
        try:
            return super().launch(job_overrides, initial_job_idx)
        finally:
            signal.signal(signal.SIGTERM, previous)


class SlurmArray(SlurmLauncher):
    """Hydra's launcher for SLURM, but it waits for the whole array, whatever becomes of single jobs.

    How far the runs are is read off the queue and the run folders, so that no accounting is needed.
    """

    def __call__(self, sweep_overrides: list[str], *arguments: Any) -> JobReturn:
        """Runs a job, as a task on the cluster; of several tasks to a job only the first writes down the configuration.

        One that SLURM has queued again goes on, also where it was to start anew.
        """
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0):
            sweep_overrides = [override for override in sweep_overrides if override != "ckpt_path=null"]
        return super().__call__([*sweep_overrides, *(["hydra.output_subdir=null"] if rank() > 0 else [])], *arguments)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import submitit

        assert self.config is not None
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        queued = [line.split("|", 1) for line in _queue("%F|%k")]
        for number in sorted({number for number, comment in queued if comment == str(folder)}):
            raise UsageError(
                f"this sweep is in the queue already, as job {number}.\nWay out: wait until it has ended (squeue --me), or "
                f"end it (scancel {number}); then the same command runs what is left."
            )
        keys = {"submitit_folder", "max_num_timeout"}
        executor = submitit.AutoExecutor(
            folder=self.params["submitit_folder"], cluster="slurm", slurm_max_num_timeout=self.params["max_num_timeout"]
        )
        common = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"}
        common |= {"stderr_to_stdout"}
        parameters = {k if k in common else f"slurm_{k}": v for k, v in self.params.items() if k not in keys}
        executor.update_parameters(**parameters | {"slurm_comment": str(folder)})
        count = len(job_overrides)
        numbers = range(initial_job_idx, initial_job_idx + count)
        jobs = executor.map_array(
            self,
            [list(overrides) for overrides in job_overrides],
            ["hydra.sweep.dir"] * count,
            numbers,
            [str(number) for number in numbers],
            [Singleton.get_state()] * count,
        )
        self._wait(jobs[0].job_id.split("_")[0])
        return []

    def _wait(self, number: str) -> None:
        print(f"job {number} is queued; interrupting this program leaves it there", flush=True)
        told = ""
        while True:
            states = Counter(_queue("%T", "--array", f"--jobs={number}"))
            if not states:
                return
            now = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
            if now != told:
                print(f"job {number}: {now}", flush=True)
                told = now
            time.sleep(_POLL_SECONDS)


def _queue(columns: str, *which: str) -> list[str]:
    """Lines of SLURM's queue; none of a job that it knows no more."""
    command = ["squeue", "--me", "--noheader", f"--format={columns}", *which]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("cluster=slurm: there is no SLURM here (no squeue). Way out: cluster=local or joblib.") from None
    if result.returncode and "Invalid job id" not in result.stderr:
        raise UsageError(f"cluster=slurm: {result.stderr.strip()}. Way out: ask whether the cluster is up (sinfo).")
    return result.stdout.split("\n")[:-1]


def _show(folders: dict[str, RunFolder]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    if not console.is_terminal:
        console.width = 1_000  # a line for each run in a log file, however long its name
    table = Table(Column("run", overflow="fold"), "state", "", box=None)
    for name, folder in folders.items():
        state = folder.state()
        table.add_row(name, state.name, state.detail)
    console.print(table)
