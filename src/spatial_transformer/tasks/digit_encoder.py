"""The encoder of co-localisation: trained on undistorted digits when it is first needed, and kept with its record."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ..data import mnist_files
from ..data.caching import Cache, cache_folders, open_cache, say
from ..data.mnist import MnistData
from ..errors import UsageError
from ..networks.colocalisation import DigitEncoder
from ..networks.mnist import DIGIT, MnistNetwork
from ..saved import load_saved, save
from .classification import Classification
from .schedules import one_cycle

RECIPE = {"steps": 1000, "batch_size": 256, "lr": 0.002, "weight_decay": 0.01, "pct_start": 0.1, "seed": 1}
"""That of ``recipe=fast``, shorter: error 1 % after a minute on one core."""
_FILE = "encoder.pt"


def trained_encoder(root: str | Path | None, cache: str | Path | None = None) -> dict[str, Any]:
    """The state of a trained :class:`DigitEncoder`.

    Args:
        root: folder that holds ``MNIST/raw``; None downloads to ``data/`` on first use.
        cache: folder that keeps it; None is ``cache/`` in the root or ``~/.cache/spatial_transformer``.

    Raises:
        UsageError: MNIST is not to be had, or no folder can be written to.
    """
    source = mnist_files.prepare(root)
    width = DigitEncoder().layers[0].out_channels
    kept = Cache(
        dataset="MNIST",
        contents="digit encoder",
        source=source,
        name="encoder",
        settings={"width": width, "torch": version("torch"), **RECIPE},
        read=lambda folder, meta: _read(folder),
        write=lambda folder: _train(root, folder),
        place="task.cache",
    )
    return open_cache(kept, cache_folders(source, cache, "mnist"))


def _read(folder: Path) -> dict[str, Any]:
    """The state of an encoder, out of its cache.

    Raises:
        ValueError: it is damaged, or not that of an encoder.
    """
    state = load_saved(folder / _FILE)
    shapes = {name: tensor.shape for name, tensor in DigitEncoder().state_dict().items()}
    if not isinstance(state, dict) or {name: getattr(tensor, "shape", None) for name, tensor in state.items()} != shapes:
        raise ValueError(f"{_FILE} is not the state of an encoder")
    return state


def _train(root: str | Path | None, folder: Path) -> dict[str, Any]:
    """Trains an encoder into a folder; returns its record."""
    if torch.distributed.is_initialized():
        raise UsageError(
            "the digit encoder of co-localisation is trained once, and not by several processes. Way out: the same command on "
            "one device first (trainer.devices=1 trainer.max_steps=1), outside of torchrun and SLURM."
        )
    say("MNIST", "training the digit encoder of co-localisation, once: a minute or two")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):  # whether it was there already must not show in the run that needs it
        torch.manual_seed(RECIPE["seed"])
        encoder = DigitEncoder().requires_grad_(True)
        data = MnistData("t", DIGIT, root, int(RECIPE["batch_size"]))
        steps = int(RECIPE["steps"])
        task = Classification(
            MnistNetwork(encoder.layers),
            partial(torch.optim.AdamW, lr=RECIPE["lr"], weight_decay=RECIPE["weight_decay"]),
            partial(one_cycle, total_steps=steps, pct_start=RECIPE["pct_start"]),
        )
        trainer = pl.Trainer(
            devices=1,
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            use_distributed_sampler=False,
        )
        trainer.fit(task, data)
        figures = trainer.test(task, data, verbose=False)[0]
    with torch.inference_mode():
        encoder.cpu()
        digits, _ = data.samples("val", torch.arange(1000))
        encoder.norm = encoder(digits).square().sum(dim=1).mean().sqrt()
    save(encoder.state_dict(), folder / _FILE)
    say("MNIST", f"the encoder's test error is {figures['test/error']:.2f} %")
    return {"record": {**figures, "steps": steps}}
