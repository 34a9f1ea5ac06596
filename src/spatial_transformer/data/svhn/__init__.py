"""Street View House Numbers (section 4.2 of the paper)."""

from .datamodule import SvhnData
from .pairs import SvhnPairs

__all__ = ["SvhnData", "SvhnPairs"]
