"""Record the theta of all spatial transformers of a network."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from .spatial_transformer import SpatialTransformer


def find_transformers(network: nn.Module) -> list[SpatialTransformer]:
    """Return all spatial transformers of a network, in the order of ``network.modules()``."""
    return [module for module in network.modules() if isinstance(module, SpatialTransformer)]


class ThetaRecorder:
    """Record theta during forward passes.

    Use it as a context manager, or call :meth:`close`:

    >>> with ThetaRecorder(network) as recorder:
    ...     logits = network(images)
    >>> theta = recorder.latest[recorder.transformers[0]]

    Args:
        network: module with any number of spatial transformers.

    Attributes:
        transformers: the spatial transformers of the network.
        latest: theta of the latest forward pass of each transformer, in float32:
            ``(B, n * n_params)`` for n transformers in parallel.
    """

    def __init__(self, network: nn.Module) -> None:
        self.transformers = find_transformers(network)
        self.latest: dict[SpatialTransformer, Tensor] = {}
        self._hooks = [
            transformer.localisation.register_forward_hook(partial(self._record, transformer))
            for transformer in self.transformers
        ]

    def _record(
        self, transformer: SpatialTransformer, _: nn.Module, __: Any, theta: Tensor
    ) -> None:
        self.latest[transformer] = theta.float()

    def close(self) -> None:
        """Stop recording."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> ThetaRecorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
