"""Run a network and get the theta and the output of its spatial transformers. Plain PyTorch."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..transformer.recorder import find_transformers

_LOCK = threading.RLock()


class NetworkOutputs(NamedTuple):
    """Outputs of a network and of its spatial transformers.

    Attributes:
        logits: output of the network.
        thetas: theta of each transformer in the order of the forward pass, ``(B, n_params)``, or
            ``(B, n, n_params)`` for n transformers in parallel.
        crops: output of each transformer, ``(B, C, H', W')``, or ``(B, n C, H', W')``.
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
    is_requested: list[bool] = []  # by the network itself, of the calls in progress

    def request_theta(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = dict(zip(("return_theta", "theta"), args[1:])) | kwargs
        is_requested.append(kwargs.get("return_theta", False))
        return args[:1], {**kwargs, "return_theta": True}

    def record(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> Any:
        crop, theta = output
        thetas.append(theta)
        crops.append(crop)
        return output if is_requested.pop() else crop

    with _LOCK, ExitStack() as stack:  # hooks would also record the calls of other threads
        for module in find_transformers(network):
            before = module.register_forward_pre_hook(request_theta, with_kwargs=True)
            after = module.register_forward_hook(record, prepend=True)  # others do not get theta
            stack.callback(before.remove)
            stack.callback(after.remove)
        logits = network(images)
    return NetworkOutputs(logits, tuple(thetas), tuple(crops))
