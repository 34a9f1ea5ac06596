"""Logits, thetas and crops of a network, from one forward pass. Plain PyTorch."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..transformer import SpatialTransformer

_HOOKS = threading.RLock()


class NetworkOutputs(NamedTuple):
    """What a network returns, and what each of its spatial transformers computes on the way.

    Attributes:
        logits: output of the network.
        thetas: for each transformer, in the order of the forward pass, ``(B, n_params)``, or
            ``(B, n, n_params)`` for n transformers in parallel.
        crops: for each transformer its output, ``(B, C, H', W')``, or ``(B, n C, H', W')``.
    """

    logits: Tensor
    thetas: tuple[Tensor, ...]
    crops: tuple[Tensor, ...]


def infer(network: nn.Module, images: Tensor) -> NetworkOutputs:
    """Run a network and record theta and output of each of its spatial transformers.

    Args:
        network: module from images to logits, with any number of transformers.
        images: ``(B, C, H, W)``, or ``(B, C, D, H, W)`` for a network of volumes.

    Returns:
        The outputs. Thetas and crops are empty for a network without transformers.
    """
    thetas: list[Tensor] = []
    crops: list[Tensor] = []

    def request_theta(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "return_theta": True}

    def record(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> Tensor:
        crop, theta = output
        thetas.append(theta)
        crops.append(crop)
        return crop

    hooks = []
    with _HOOKS:  # Hooks belong to the modules, so that a second thread would call them too.
        try:
            for module in network.modules():
                if isinstance(module, SpatialTransformer):
                    hooks.append(module.register_forward_pre_hook(request_theta, with_kwargs=True))
                    # Other hooks expect the output alone.
                    hooks.append(module.register_forward_hook(record, prepend=True))
            logits = network(images)
        finally:
            for hook in hooks:
                hook.remove()
    return NetworkOutputs(logits, tuple(thetas), tuple(crops))
