"""Statistics of theta, and the base class of callbacks that measure theta after the test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..data.base import gather_in_order
from ..networks.localisation import localisation_networks
from ..transformer import SpatialTransformer, ThetaRecorder, find_transformers


class _ThetaCollector:
    """Collect theta of all samples of a set.

    Theta is read after each batch, as other callbacks run the network for their images.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self._recorder = ThetaRecorder(network)
        self._thetas: dict[SpatialTransformer, list[Tensor]] = defaultdict(list)

    def add_batch(self) -> None:
        """Add the thetas of the latest forward pass."""
        for transformer, theta in self._recorder.latest.items():
            self._thetas[transformer].append(theta)

    def close(self) -> dict[SpatialTransformer, Tensor]:
        """Stop, and return theta of each transformer and sample, ``(N, parallel, n_params)``.

        Every process has to call it: it gathers the samples of all devices.
        """
        self._recorder.close()
        return {
            transformer: gather_in_order(self._thetas[transformer]).unflatten(
                1,
                (transformer.parallel, -1),
            )
            for transformer in self._recorder.transformers
        }


class ThetaStatistics(pl.Callback):
    """Log statistics of theta.

    ``theta/mean_k`` and ``theta/std_k`` of each parameter over the validation set,
    ``theta/outside``, the share of points read outside the image, and
    ``localisation/gradient_norm`` in training. Of several transformers, in a row or parallel, the
    second has ``theta_2/...``, and so on.
    """

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._collector = _ThetaCollector(pl_module.network)

    def on_validation_batch_end(
        self,
        trainer,
        pl_module,
        outputs,
        batch,
        batch_idx,
        dataloader_idx=0,
    ) -> None:
        self._collector.add_batch()

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        thetas: list[tuple[SpatialTransformer, Tensor]] = []
        for transformer, parallel in self._collector.close().items():
            thetas += [(transformer, theta) for theta in parallel.unbind(1)]
        values = {}
        for n, (transformer, theta) in enumerate(thetas, start=1):
            name = "theta" if n == 1 else f"theta_{n}"
            std, mean = torch.std_mean(theta, dim=0, correction=0)
            for k in range(len(mean)):
                values[f"{name}/mean_{k}"], values[f"{name}/std_{k}"] = mean[k], std[k]
            # All points of a large crop would take long and give the same share.
            dims = transformer.transform.dims
            coarse = 32 if dims == 2 else 10
            size = [min(side, coarse) for side in transformer.output_size or (coarse,) * dims]
            outside = (transformer.transform.grid(theta, size).abs() > 1).any(dim=-1)
            values[f"{name}/outside"] = outside.float().mean()
        pl_module.log_dict(values, sync_dist=True)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not pl_module.should_log:
            return
        networks = localisation_networks(pl_module.network)
        gradients = [p.grad for net in networks for p in net.parameters() if p.grad is not None]
        if gradients:
            # With float16 a fused optimizer removes the scale of the loss only within its step.
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
            scale = scaler.get_scale() if scaler and is_fused else 1
            norm = torch.nn.utils.get_total_norm(gradients) / scale
            pl_module.log("localisation/gradient_norm", norm)


class ThetaTestCallback(pl.Callback, ABC):
    """Base class: measure, after the test, what the only transformer of a network did.

    Networks without a transformer or with several in a row are skipped.
    """

    @abstractmethod
    def measure(
        self,
        trainer: Any,
        pl_module: Any,
        transformer: SpatialTransformer,
        thetas: Tensor,
    ) -> None:
        """Log metrics of ``thetas``, ``(N, parallel, n_params)`` on the CPU, of the test samples.

        In a short test they are the first N of the set. It is called in every process. Only the
        first one may write files.
        """

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        is_only = len(find_transformers(pl_module.network)) == 1
        self._collector = _ThetaCollector(pl_module.network) if is_only else None

    def on_test_batch_end(
        self,
        trainer,
        pl_module,
        outputs,
        batch,
        batch_idx,
        dataloader_idx=0,
    ) -> None:
        if self._collector is not None:
            self._collector.add_batch()

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        if self._collector is not None:
            ((transformer, thetas),) = self._collector.close().items()
            self.measure(trainer, pl_module, transformer, thetas.cpu())
