"""CUB-200-2011, the birds (section 4.3 of the paper)."""

from .datamodule import CubData
from .rotated import RotatedCubData

__all__ = ["CubData", "RotatedCubData"]
