"""Runs on several devices, with one process for each.

The processes are started by torchrun, by SLURM, or here. Lightning would start them by the command
line of this program, which in a sweep is the whole sweep.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..utils.errors import Stopped, UsageError
from .signals import SIGNALS

T = TypeVar("T")
log = logging.getLogger(__name__)


class DistributedContext:
    """The processes of a run.

    Args:
        trainer: a trainer as configured, which knows the devices.

    Attributes:
        world_size: number of devices over all nodes.

    Raises:
        UsageError: another number of processes was started than there are devices, or the devices
            are on several nodes and no process was started there.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self.world_size = trainer.num_devices * trainer.num_nodes
        started = _started_processes()
        self.must_launch = started < self.world_size
        if started > 1 and started != self.world_size:
            raise UsageError(
                f"{started} processes were started for {self.world_size} devices.\nStart "
                "trainer.devices processes on each of trainer.num_nodes nodes (torchrun "
                "--nproc-per-node, hydra.launcher.tasks_per_node)."
            )
        if self.must_launch and trainer.num_nodes > 1:
            raise UsageError(
                f"trainer.num_nodes={trainer.num_nodes}: the other nodes cannot be reached.\n"
                "Start the program by SLURM (launcher=slurm, srun) or by torchrun on each node."
            )

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes and logs."""
        return self._trainer.is_global_zero

    def log(self, text: str) -> None:
        """Log a line, once for all processes."""
        if self.is_rank_zero:
            log.info(text)

    def launch(self, function: Callable[[Any], T], argument: Any, hint: str) -> T:
        """Call ``function`` in a process for each device and return what rank zero returns.

        When one process fails, the others are ended.

        Args:
            function: a module-level function.
            argument: its argument, which can be pickled.
            hint: how to resume.

        Raises:
            UsageError: it was raised in a process, or a process was killed.
            RuntimeError: another error was raised; the message has its traceback.
            Stopped: this process received a signal, as the others then do.
        """
        for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            with tempfile.TemporaryDirectory() as logs:  # elsewhere, torch would leave it behind
                launch = LaunchConfig(
                    min_nodes=1,
                    max_nodes=1,
                    nproc_per_node=self.world_size,
                    logs_specs=DefaultLogsSpecs(log_dir=logs),
                    rdzv_backend="c10d",
                    rdzv_endpoint="localhost:0",
                    run_id="run",
                    max_restarts=0,
                    signals_to_handle=",".join(signal.Signals(number).name for number in SIGNALS),
                )
                handlers = logging.getLogger().handlers
                files = [h.baseFilename for h in handlers if isinstance(h, logging.FileHandler)]
                return elastic_launch(launch, _run_process)(function, argument, files)[0]
        except SignalException as asked:
            message = f"Interrupted by {asked.sigval.name}. {hint}"
            raise Stopped(message, 128 + asked.sigval) from None
        except ChildFailedError as failed:
            raise _cause(failed, hint) from None
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def init_process_group(self) -> None:
        """Connect all processes."""
        if self.world_size > 1:
            self._trainer.strategy.setup_environment()

    def on_rank_zero(self, function: Callable[[], T]) -> T:
        """Call ``function`` on rank zero; all processes return its value or raise its error."""
        value: Any = None
        error: Exception | None = None
        if self.is_rank_zero:
            try:
                value = function()
            except Exception as raised:
                error = raised
        value, error = self._trainer.strategy.broadcast((value, error))
        if error is not None:
            raise error
        return value

    def convert_sync_batchnorm(self, network: nn.Module) -> nn.Module:
        """Return the network with batch normalisation over the global batch.

        Lightning's ``sync_batchnorm`` would drop the activations fused into timm's layers.

        Raises:
            UsageError: the devices are processes on a CPU, where PyTorch cannot do it.
        """
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if self.world_size == 1 or not any(isinstance(m, kinds) for m in network.modules()):
            return network
        if self._trainer.strategy.root_device.type == "cpu":
            raise UsageError(
                "SyncBatchNorm needs GPUs: got several processes on a CPU.\n"
                "Use trainer.devices=1, which uses all cores."
            )
        from timm.layers.norm_act import convert_sync_batchnorm

        return convert_sync_batchnorm(network)


def slurm_plugins() -> list[Any]:
    """Return plugins that leave requeueing to SLURM and resuming to us."""
    return [SLURMEnvironment(auto_requeue=False)] if _is_slurm_task() else []


def _started_processes() -> int:
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if _is_slurm_task() else 1


def _is_slurm_task() -> bool:
    return SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()


def _run_process(function: Callable[[Any], Any], argument: Any, log_files: list[str]) -> Any:
    """Call ``function`` in a new process; the launching one reports that the run was stopped."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    for file in log_files:
        logging.getLogger().addHandler(logging.FileHandler(file))
    try:
        return function(argument)
    except Stopped as stop:
        raise SystemExit(stop.code) from None


def _cause(failed: ChildFailedError, hint: str) -> Exception:
    rank, failure = failed.get_first_failure()
    data = failure.error_file_data
    report = data.get("message") if isinstance(data, dict) else None
    if not isinstance(report, dict):
        code = failure.exitcode
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return UsageError(f"The process of device {rank} was ended {how}. {hint}")
    if report["message"].startswith("UsageError: "):
        return UsageError(report["message"].removeprefix("UsageError: "))
    return RuntimeError(
        f"device {rank}: {report['message']}\n{report['extraInfo']['py_callstack']}"
    )
