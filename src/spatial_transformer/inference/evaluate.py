"""Test a trained network on the test set of its data."""

from __future__ import annotations

import logging

from omegaconf import DictConfig, OmegaConf

from ..training.distributed import DistributedContext
from ..training.runner import build_trainer, unchanged_process
from ..training.signals import StopSignals
from .load import load_trained

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Test a trained network and print its metrics next to those of its result file.

    Args:
        config: as conf/evaluate.yaml: ``run``, ``checkpoint``, ``data.root`` and ``trainer``.

    Returns:
        The metrics by name.

    Raises:
        UsageError: the run or its checkpoint is missing or damaged.
        Stopped: a signal asked the program to stop.
    """
    with unchanged_process(), StopSignals("Run the same command again."):
        trust = config.get("trust") or ()
        trained = load_trained(config.run, config.checkpoint, config.data.root, trust)
        trained.config.trainer.update(config.trainer)
        trainer = build_trainer(trained.config)
        processes = DistributedContext(trainer)
        if processes.must_launch:
            plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
            return processes.launch(evaluate, plain)
        processes.init_process_group()
        metrics = dict(trainer.test(trained.task, trained.data, verbose=False)[0])
        earlier = trained.record.get("metrics", {})
        if processes.is_rank_zero:
            for name, value in metrics.items():
                note = f"  (in metrics.json: {earlier[name]:.4g})" if name in earlier else ""
                log.info("%s %.4g%s", name, value, note)
        return metrics
