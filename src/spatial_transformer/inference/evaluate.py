"""Test the network of a finished run again."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ..training.distributed import DistributedContext
from ..training.runner import build_trainer, unchanged_process
from ..training.signals import StopSignals
from .load import load_trained

log = logging.getLogger(__name__)
_HINT = "Run the same command again."


def evaluate(config: DictConfig) -> dict[str, float]:
    """Test a trained network, rebuilt from its run directory or its packed file.

    Args:
        config: with ``run``, ``checkpoint``, ``data.root`` and ``trainer``, as conf/evaluate.yaml.

    Returns:
        The metrics, name -> value.

    Raises:
        UsageError: there is no such run, or its checkpoint is missing or damaged.
        Stopped: a signal asked the program to stop.
    """
    with unchanged_process(), StopSignals(_HINT):
        trained = load_trained(
            Path(config.run), config.checkpoint, config.data.root, config.get("trust") or ()
        )
        trained.config.trainer.update(config.trainer)
        trainer = build_trainer(trained.config)
        processes = DistributedContext(trainer)
        if processes.must_launch:
            plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
            return processes.launch(evaluate, plain, _HINT)
        processes.init_process_group()
        metrics = dict(trainer.test(trained.task, trained.data, verbose=False)[0])
        recorded = trained.record.get("metrics", {}) if config.checkpoint == "best" else {}
        if processes.is_rank_zero:
            for name, value in metrics.items():
                before = f"  (in metrics.json: {recorded[name]:.4g})" if name in recorded else ""
                log.info("%s %.4g%s", name, value, before)
        return metrics
