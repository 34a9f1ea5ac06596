"""Street View House Numbers (section 4.2 of the paper)."""

from .datamodule import SvhnData

__all__ = ["SvhnData"]
