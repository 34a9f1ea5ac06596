"""Stop a run on SIGTERM, SIGINT, SIGHUP or SIGUSR1, where nothing is lost.

``nohup`` lets a program ignore SIGHUP, which then does not stop a run.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from ..utils.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class StopSignals:
    """Raise :class:`Stopped` on a signal: at once, or, while training, after a checkpoint.

    A second signal stops at once, unless it comes within a second: a cluster signals a program and
    its processes, and the program its processes. Used as a context manager; outside the main
    thread, which alone can handle signals, it does nothing.

    Attributes:
        hint: how to resume; a part of the message.
        step: the optimizer step that training has reached; 0 before it.
        is_deferred: whether a signal only sets ``requested``, because a step is under way.
        requested: the signal that asked to stop, or None.
    """

    def __init__(self, hint: str) -> None:
        self.hint = hint
        self.step = 0
        self.is_deferred = False
        self.requested: int | None = None
        self._time = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals, also from Lightning, whose handler would stop within a validation."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                is_nohup = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
                if not is_nohup:
                    signal.signal(number, self._handle)

    def stop(self) -> None:
        """Raise :class:`Stopped` for the signal that asked for it, here or in another process."""
        number = self.requested or signal.SIGTERM
        where = f" at step {self.step:,}" if self.step else ""
        name = signal.Signals(number).name
        raise Stopped(f"Interrupted by {name}{where}. {self.hint}", 128 + number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self._time = time.monotonic()
        self.requested = number
        if not self.is_deferred or time.monotonic() - self._time > 1:
            self.stop()
