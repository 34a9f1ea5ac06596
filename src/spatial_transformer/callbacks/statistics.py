"""Numbers that tell what a spatial transformer does."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..transformer import localisation_networks


class ThetaStatistics(pl.Callback):
    """Logs what theta does.

    ``theta/mean_k`` and ``theta/std_k`` of each parameter over the validation set, ``theta/outside``, the share of
    points read outside the image, and ``localisation/gradient_norm`` in training.
    """

    def __init__(self) -> None:
        self._thetas: list[Tensor] = []
        self._hook: RemovableHandle | None = None

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self._thetas = []
        transformer = pl_module.network.transformer
        if transformer is not None:
            self._hook = transformer.localisation.register_forward_hook(
                lambda module, args, theta: self._thetas.append(theta.float())
            )

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        transformer = pl_module.network.transformer
        theta = torch.cat(self._thetas)
        std, mean = torch.std_mean(theta, dim=0, correction=0)
        values = {}
        for k in range(theta.shape[1]):
            values[f"theta/mean_{k}"], values[f"theta/std_{k}"] = mean[k], std[k]
        outside = [
            (transformer.transform.grid(part, transformer.output_size).abs() > 1).any(dim=-1).float().mean()
            for part in self._thetas
        ]
        values["theta/outside"] = torch.stack(outside).mean()
        pl_module.log_dict(values, sync_dist=True)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not pl_module.is_logging_step:
            return
        gradients = [p.grad for net in localisation_networks(pl_module.network) for p in net.parameters() if p.grad is not None]
        if gradients:
            pl_module.log("localisation/gradient_norm", torch.nn.utils.get_total_norm(gradients))
