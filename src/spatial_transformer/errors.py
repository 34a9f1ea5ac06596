"""What the user can put right."""


class UsageError(Exception):
    """A wrong setting, a missing file and the like: the message says what, where, and the way out.

    The command line shows it without a traceback.
    """


class Stopped(BaseException):
    """The run was asked to end before it was finished, by hand or by the cluster. No ``Exception``: a sweep ends with it.

    Args:
        message: where it stopped and how to go on.
        code: exit code of the program: 130 by hand, 143 by SIGTERM.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
