"""Numbers that tell what a spatial transformer does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..data.batched import in_order
from ..networks.localisation import localisation_networks
from ..transformer import SpatialTransformer


class ThetaStatistics(pl.Callback):
    """Logs what theta does.

    ``theta/mean_k`` and ``theta/std_k`` of each parameter over the validation set, ``theta/outside``, the share of
    points read outside the image, and ``localisation/gradient_norm`` in training. Of several transformers, in a row or
    parallel, the second's are called ``theta_2/...``, and so on.
    """

    def __init__(self) -> None:
        self._thetas: dict[SpatialTransformer, list[Tensor]] = {}
        self._hooks: list[RemovableHandle] = []

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        transformers = [module for module in pl_module.network.modules() if isinstance(module, SpatialTransformer)]
        self._thetas = {transformer: [] for transformer in transformers}
        self._latest: dict[SpatialTransformer, Tensor] = {}
        self._hooks = [
            transformer.localisation.register_forward_hook(partial(self._keep, transformer)) for transformer in transformers
        ]

    def _keep(self, transformer: SpatialTransformer, module: nn.Module, args: tuple, theta: Tensor) -> None:
        self._latest[transformer] = theta.float()

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        # Not in the hook: other callbacks run the network for their pictures.
        for transformer, theta in self._latest.items():
            self._thetas[transformer].append(theta)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        for hook in self._hooks:
            hook.remove()
        each = [
            (transformer, theta)
            for transformer, parts in self._thetas.items()
            for theta in in_order(parts).chunk(transformer.parallel, dim=1)
        ]
        values = {}
        for n, (transformer, theta) in enumerate(each, start=1):
            name = "theta" if n == 1 else f"theta_{n}"
            std, mean = torch.std_mean(theta, dim=0, correction=0)
            for k in range(len(mean)):
                values[f"{name}/mean_{k}"], values[f"{name}/std_{k}"] = mean[k], std[k]
            # A coarse lattice: of a large crop's points every one would take long, and say the same.
            dims = transformer.transform.dims
            coarse = 32 if dims == 2 else 10
            size = [min(side, coarse) for side in transformer.output_size or (coarse,) * dims]
            outside = (transformer.transform.grid(theta, size).abs() > 1).any(dim=-1)
            values[f"{name}/outside"] = outside.float().mean()
        self._thetas = {}
        pl_module.log_dict(values, sync_dist=True)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not pl_module.is_logging_step:
            return
        gradients = [p.grad for net in localisation_networks(pl_module.network) for p in net.parameters() if p.grad is not None]
        if gradients:
            # With float16 a fused optimiser takes the loss's scale off only within its step.
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scale = scaler.get_scale() if scaler and getattr(optimizer, "_step_supports_amp_scaling", False) else 1
            pl_module.log("localisation/gradient_norm", torch.nn.utils.get_total_norm(gradients) / scale)


class AfterTest(pl.Callback, ABC):
    """Measures, after the test, what the only transformer of a network did to each test sample.

    Networks without a transformer or with several in a row are passed over.
    """

    def __init__(self) -> None:
        self._thetas: list[Tensor] = []
        self._hook: RemovableHandle | None = None

    @abstractmethod
    def measure(self, trainer: Any, pl_module: Any, transformer: SpatialTransformer, thetas: Tensor) -> None:
        """Logs what is to be said of ``thetas``, ``(N, parallel, n_params)`` on the CPU, of the first N test samples.

        It is called in the process of each device; files are the first one's to write.
        """

    def on_test_epoch_start(self, trainer, pl_module) -> None:
        transformers = [module for module in pl_module.network.modules() if isinstance(module, SpatialTransformer)]
        if len(transformers) == 1:
            self._transformer = transformers[0]
            self._thetas = []
            self._hook = self._transformer.localisation.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple, theta: Tensor) -> None:
        self._latest = theta.float()

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if self._hook is not None:  # not in the hook: other callbacks run the network for their pictures
            self._thetas.append(self._latest)

    def on_test_epoch_end(self, trainer, pl_module) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            thetas = in_order(self._thetas).cpu().unflatten(1, (self._transformer.parallel, -1))
            self.measure(trainer, pl_module, self._transformer, thetas)
