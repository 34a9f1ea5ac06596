"""Errors that the user can correct, and the hints in their messages."""

import difflib
from collections.abc import Iterable


class UsageError(Exception):
    """A wrong setting, a missing file or a similar error.

    The message says what is wrong and what is expected. The command line shows it without a
    traceback.
    """


class RunInProgressError(UsageError):
    """Another process is using the run directory."""


class Stopped(BaseException):
    """The run was interrupted before it was finished.

    Not an ``Exception``: a sweep ends with it.

    Args:
        message: where it stopped and how to resume.
        code: exit code of the program: 128 + the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)  # both, or it cannot be unpickled in another process
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return a hint for an unknown name, to be appended to a message.

    Args:
        name: the unknown name.
        known: all names to choose from.

    Returns:
        " Did you mean ...?" for one or two similar names, else " Choose one of ...". Empty if
        there are no names, or too many to list.
    """
    names = sorted({str(candidate) for candidate in known})
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(map(repr, near))}?"
    return f" Choose one of {', '.join(names)}." if 0 < len(names) <= 40 else ""
