"""Spatial Transformer Networks (Jaderberg et al., NIPS 2015), reproduced.

The names below are the public interface. They are imported on first use, so that
``train.py --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .networks.localisation import (
        ConvLocalisation,
        FcLocalisation,
        JoinedLocalisation,
        Regression,
    )
    from .transformer import (
        Affine,
        Affine3d,
        Attention,
        Projective,
        SpatialTransformer,
        ThinPlateSpline,
        sample,
    )

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Affine3d",
    "Attention",
    "ConvLocalisation",
    "FcLocalisation",
    "JoinedLocalisation",
    "Projective",
    "Regression",
    "SpatialTransformer",
    "ThinPlateSpline",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        is_network = name == "Regression" or name.endswith("Localisation")
        module = ".networks.localisation" if is_network else ".transformer"
        return getattr(import_module(module, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
