"""MNIST in all experiments of the paper: distorted, added, in volumes and for co-localisation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .addition import MnistAdditionData
    from .colocalisation import ColocalisationData
    from .distorted import MnistData
    from .volumes import Mnist3dData

__all__ = ["ColocalisationData", "Mnist3dData", "MnistAdditionData", "MnistData"]

_MODULES = {
    "ColocalisationData": ".colocalisation",
    "Mnist3dData": ".volumes",
    "MnistAdditionData": ".addition",
    "MnistData": ".distorted",
}


def __getattr__(name: str) -> Any:
    """Import a data module on first use. What needs the distortions alone loads no Lightning."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
