"""Street View House Numbers (section 4.2 of the paper)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datamodule import SvhnData

__all__ = ["SvhnData"]


def __getattr__(name: str) -> Any:
    """Import the data module on first use. Worker processes start faster without Lightning."""
    if name != "SvhnData":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .datamodule import SvhnData

    return SvhnData
