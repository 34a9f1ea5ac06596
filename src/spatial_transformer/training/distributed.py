"""Runs on several devices, with one process for each.

The processes are started by torchrun, by SLURM, or here. Lightning would start them by the command
line of this program, which in a sweep is the whole sweep.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import nn

from ..utils.errors import Stopped, UsageError
from ..utils.process import end_with_parent

T = TypeVar("T")
log = logging.getLogger(__name__)


class DistributedContext:
    """The processes of a run.

    Args:
        trainer: a trainer as configured, which knows the devices.

    Attributes:
        world_size: number of devices over all nodes.

    Raises:
        UsageError: another number of processes was started than there are devices.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self.world_size = trainer.num_devices * trainer.num_nodes
        started = _started_processes()
        self.must_launch = started < self.world_size
        if started != self.world_size and (started > 1 or trainer.num_nodes > 1):
            raise UsageError(
                f"{started} processes were started for {self.world_size} devices.\nStart "
                "trainer.devices processes on each of trainer.num_nodes nodes (torchrun "
                "--nproc-per-node, hydra.launcher.tasks_per_node)."
            )

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the process that writes and logs."""
        return self._trainer.is_global_zero

    def log(self, text: str) -> None:
        """Log a line, once for all processes."""
        if self.is_rank_zero:
            log.info(text)

    def launch(self, function: Callable[[Any], T], argument: Any) -> T:
        """Call ``function`` in a process for each device and return what rank zero returns.

        When one process fails, the others are ended.

        Args:
            function: a module-level function.
            argument: its argument, which can be pickled.

        Raises:
            UsageError: a process was killed.
            Stopped: this process or another one received a signal.
            Exception: what ``function`` raised first.
        """
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        handlers = logging.getLogger().handlers
        files = [h.baseFilename for h in handlers if isinstance(h, logging.FileHandler)]
        others = set(multiprocessing.active_children())
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.world_size, mp_context=spawn) as pool:
            ranks = [
                pool.submit(_run_process, rank, self.world_size, port, files, function, argument)
                for rank in range(self.world_size)
            ]
            workers = set(multiprocessing.active_children()) - others
            try:
                for rank in as_completed(ranks):
                    rank.result()
                return ranks[0].result()
            except Stopped:
                for worker in workers:
                    worker.terminate()
                wait(ranks)  # until they have saved
                raise
            except BrokenProcessPool:
                raise UsageError(
                    "A process was killed, often for lack of memory. Rerun the same command to "
                    "resume."
                ) from None
            finally:
                if any(not rank.done() or rank.exception() for rank in ranks):
                    for worker in workers:  # which may wait for the one that failed
                        worker.kill()

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
            UsageError: there are several processes on CPUs.
        """
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if self.world_size == 1 or not any(isinstance(m, kinds) for m in network.modules()):
            return network
        if self._trainer.strategy.root_device.type == "cpu":
            raise UsageError(
                "Batch normalisation over several devices needs GPUs. Set trainer.devices=1."
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


def _run_process(
    rank: int,
    world_size: int,
    port: int,
    log_files: list[str],
    function: Callable[[Any], T],
    argument: Any,
) -> T:
    """Call ``function`` in a new process, as if torchrun had started it."""
    end_with_parent()
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update({"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "run"})
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    for file in log_files:
        logging.getLogger().addHandler(logging.FileHandler(file))
    return function(argument)
