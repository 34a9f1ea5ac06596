"""What the user can put right."""


class UsageError(Exception):
    """A wrong setting, a missing file and the like: the message says what, where, and the way out.

    The command line shows it without a traceback.
    """
