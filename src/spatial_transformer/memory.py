"""How this process deals with memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory instead of handing it back to the system (Linux with glibc; elsewhere nothing).

    A training step frees and asks for the same large buffers again and again. By default each comes as fresh pages that
    the system must clear first, a good part of the time of a step on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
