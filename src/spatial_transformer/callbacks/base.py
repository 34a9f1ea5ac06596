"""The base class of callbacks that only draw."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from ..utils.failures import warn_on_failure


class DrawingCallback(pl.Callback):
    """Base class of callbacks that only show what a run does and change nothing in it.

    Every hook (``on_*``) of a subclass is wrapped in
    :func:`~spatial_transformer.utils.failures.warn_on_failure`: neither a full disk nor a bug in a
    picture stops or loses a run. Metrics do not belong here, as a lost metric would go unnoticed;
    use ``warn_on_failure`` around the drawing part of such a callback.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, hook in list(vars(cls).items()):
            if name.startswith("on_"):
                setattr(cls, name, warn_on_failure(f"{cls.__name__}.{name}")(hook))
