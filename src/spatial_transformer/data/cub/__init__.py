"""CUB-200-2011, the birds (section 4.3 of the paper)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datamodule import CubData

__all__ = ["CubData"]


def __getattr__(name: str) -> Any:
    """Import the data module on first use. Worker processes start faster without Lightning."""
    if name != "CubData":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .datamodule import CubData

    return CubData
