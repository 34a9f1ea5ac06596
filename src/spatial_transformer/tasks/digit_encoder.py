"""The encoder of co-localisation, trained on undistorted digits on first use (A.2)."""

from __future__ import annotations

import logging
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ..data.io.cache import cache_directories, open_cache
from ..data.mnist import MnistData
from ..data.mnist import files as mnist_files
from ..networks.colocalisation import DigitEncoder
from ..networks.mnist import DIGIT_SIZE
from ..utils.errors import UsageError
from ..utils.serialization import load_tensors, save_tensors
from .classification import Classification
from .schedules import one_cycle

RECIPE: dict[str, Any] = {
    "steps": 1000,
    "batch_size": 256,
    "lr": 0.002,
    "weight_decay": 0.01,
    "pct_start": 0.1,
    "seed": 1,
}
"""A shorter ``recipe=fast``: 1 % error after a minute on one core."""
_FILE = "encoder.pt"

logger = logging.getLogger(__name__)


def load_or_train_encoder(
    root: str | Path | None, cache: str | Path | None = None
) -> dict[str, Any]:
    """Return the state dict of a trained :class:`DigitEncoder`. Train it on first use.

    Args:
        root: directory that contains ``MNIST/raw``. None downloads to ``data/`` on first use.
        cache: directory that keeps the encoder. None is ``cache/`` in the root or
            ``~/.cache/spatial_transformer``.

    Raises:
        UsageError: MNIST is not available, or no directory can be written to.
    """
    source = mnist_files.prepare(root)
    width = DigitEncoder().layers[0].out_channels
    return open_cache(
        "encoder",
        {"width": width, "torch": version("torch"), **RECIPE},
        cache_directories(source, cache, "mnist"),
        write=lambda directory: _train(root, directory),
        read=lambda directory, meta: _read(directory),
    )


def _read(directory: Path) -> dict[str, Any]:
    """Return the state dict of an encoder in its cache.

    Raises:
        ValueError: it is damaged, or belongs to another network.
    """
    state: dict[str, Any] = load_tensors(directory / _FILE)
    try:
        DigitEncoder().load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{_FILE} is not the state of an encoder: {error}") from error
    return state


def _train(root: str | Path | None, directory: Path) -> dict[str, Any]:
    """Train an encoder, save it in a directory and return its metrics."""
    if torch.distributed.is_initialized():
        raise UsageError(
            "The digit encoder of co-localisation cannot be trained by several processes. Run the "
            "same command on one device first (trainer.devices=1 trainer.max_steps=1)."
        )
    logger.info("Training the digit encoder of co-localisation (once, 1 to 2 minutes)")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):  # the run has the same random numbers without it
        torch.manual_seed(RECIPE["seed"])
        encoder = DigitEncoder().requires_grad_(True)
        data = MnistData("t", DIGIT_SIZE, root, RECIPE["batch_size"])
        steps = RECIPE["steps"]
        task = Classification(
            encoder.layers,
            partial(torch.optim.AdamW, lr=RECIPE["lr"], weight_decay=RECIPE["weight_decay"]),
            partial(one_cycle, total_steps=steps, pct_start=RECIPE["pct_start"]),
        )
        trainer = pl.Trainer(
            devices=1,
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,  # Lightning's shows "Epoch 4/-2"
            enable_model_summary=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        trainer.fit(task, data)
        metrics = trainer.test(task, data, verbose=False)[0]
    with torch.inference_mode():
        encoder.cpu()
        digits, _ = data.samples("val", torch.arange(1000))
        encoder.norm = encoder(digits).square().sum(dim=1).mean().sqrt()
    save_tensors(encoder.state_dict(), directory / _FILE)
    logger.info("The encoder has a test error of %.2f %%", metrics["test/error"])
    return {"record": {**metrics, "steps": steps}}
