"""A run on several devices: a process for each, all at the same configuration, that agree on what concerns all of them.

Where torchrun or SLURM has started the processes they meet here; else they are started here. (Lightning would start them by the
command line of this program once more, which in a sweep is the whole sweep.)
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import nn
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from .errors import Stopped, UsageError

T = TypeVar("T")


class Devices:
    """The devices of a run, and its processes.

    Args:
        trainer: as configured; it trains nothing, but knows the devices.

    Attributes
        count: number of devices, over all nodes.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self.count = trainer.num_devices * trainer.num_nodes  # world_size is what was started

    @property
    def is_first(self) -> bool:
        """Whether this is the first of all processes, the one that writes and speaks."""
        return self._trainer.is_global_zero

    @property
    def to_be_started(self) -> bool:
        """Whether there are several devices and nobody has started processes for them.

        Raises:
            UsageError: other processes were started than there are devices, or the devices are on several nodes.
        """
        started = _started()
        if started == self.count:
            return False
        if started > 1:
            raise UsageError(
                f"{started} processes were started for {self.count} devices. Way out: as many processes on each node as "
                "trainer.devices (torchrun --nproc-per-node, hydra.launcher.tasks_per_node), and as many nodes as "
                "trainer.num_nodes."
            )
        if self._trainer.num_nodes > 1:
            raise UsageError(
                f"trainer.num_nodes={self._trainer.num_nodes}: from here the other nodes cannot be reached. Way out: start the "
                "program by SLURM (cluster=slurm, srun) or on each node by torchrun."
            )
        return True

    def start(self, function: Callable[[DictConfig], T], config: DictConfig, way_out: str) -> T:
        """Calls ``function`` with the resolved configuration in a process for each device; returns what the first gives.

        When one process fails the others are ended.

        Args:
            function: found by its name in its module.
            config: its argument.
            way_out: what to do when it is stopped.

        Raises:
            UsageError: it was raised in a process, or a process was ended from outside.
            RuntimeError: another error was; the message has its traceback.
            Stopped: this process was asked to end; the others were, too.
        """
        for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        launch = LaunchConfig(1, 1, self.count, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="run", max_restarts=0)
        numbers = [signal.Signals[name] for name in launch.signals_to_handle.split(",")]
        handlers = {number: signal.getsignal(number) for number in numbers}
        try:
            return elastic_launch(launch, _ending_quietly)(function, plain)[0]
        except SignalException as asked:
            raise Stopped(f"stopped by {asked.sigval.name}. Way out: {way_out}.", 128 + asked.sigval) from None
        except ChildFailedError as failed:
            raise _cause(failed, way_out) from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def meet(self) -> None:
        """Waits until all processes are here."""
        if self.count > 1:
            self._trainer.strategy.setup_environment()

    def first(self, function: Callable[[], T]) -> T:
        """Calls ``function`` in the first process alone; all return what it gives, or raise what it raises."""
        result: Any = None
        error: Exception | None = None
        if self.is_first:
            try:
                result = function()
            except Exception as raised:
                error = raised
        result, error = self._trainer.strategy.broadcast((result, error))
        if error is not None:
            raise error
        return result

    def share_statistics(self, network: nn.Module, steps: int) -> nn.Module:
        """The network with batch normalisation over the whole batch, not each device's share. Names of weights stay.

        (Lightning's ``sync_batchnorm`` would drop the activations that are fused into timm's layers.)

        Args:
            network: any.
            steps: how many are trained by statistics of batches.

        Raises:
            UsageError: it would have to be done on a CPU, where PyTorch cannot.
        """
        normalises = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
        if self.count == 1 or not normalises or steps <= 0:
            return network
        if self._trainer.strategy.root_device.type == "cpu":
            raise UsageError(
                "the network normalises by the whole batch, which PyTorch can do over several GPUs, but not over several "
                "processes on a CPU.\nWay out: trainer.devices=1, which uses all cores; or GPUs."
            )
        from timm.layers.norm_act import convert_sync_batchnorm

        return convert_sync_batchnorm(network)


def plugins() -> list[Any]:
    """On SLURM: that Lightning leaves requeueing to the cluster, and resuming to us."""
    return [SLURMEnvironment(auto_requeue=False)] if _is_slurm_task() else []


def _started() -> int:
    """How many processes torchrun or SLURM has started for this run."""
    if TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if _is_slurm_task() else 1


def _is_slurm_task() -> bool:
    return SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()


def _ending_quietly(function: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Calls ``function``; a run that was asked to end says nothing here: the process that started this one does."""
    try:
        return function(config)
    except Stopped as stop:
        sys.exit(stop.code)


def _cause(failed: ChildFailedError, way_out: str) -> Exception:
    rank, failure = failed.get_first_failure()
    told = failure.error_file_data.get("message") if isinstance(failure.error_file_data, dict) else None
    if not isinstance(told, dict):
        how = f"by signal {-failure.exitcode}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"
        return UsageError(f"the process of device {rank} was ended from outside, {how}. Way out: {way_out}.")
    if told["message"].startswith("UsageError: "):
        return UsageError(told["message"].removeprefix("UsageError: "))
    return RuntimeError(f"device {rank}: {told['message']}\n{told['extraInfo']['py_callstack']}")
