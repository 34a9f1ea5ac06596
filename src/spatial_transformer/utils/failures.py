"""Failures that may cost a picture or a table, but not the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def warn_on_failure(task: str) -> Iterator[None]:
    """Log an exception as a warning, so that a picture or a table cannot stop a run.

    Works as a context manager and as a decorator. Requests to stop pass, as they are not of type
    ``Exception``. Keep collective operations outside: a process that fails before one leaves the
    others waiting.

    Args:
        task: what is lost, such as "crops_0000500.png".
    """
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0]
        _log.warning("%s failed, and the run continues: %s: %s", task, type(error).__name__, reason)
        _log.debug("Traceback of this failure", exc_info=True)
