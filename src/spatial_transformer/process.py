"""How this process uses the machine. Nothing here imports torch."""

import ctypes
import os
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


def rank() -> int:
    """The number of this process among those that torchrun or SLURM has started for one run."""
    return _number("RANK", "SLURM_PROCID")


def local_rank() -> int:
    """Its number among those on this machine."""
    return _number("LOCAL_RANK", "SLURM_LOCALID")


def _number(of_torchrun: str, of_slurm: str) -> int:
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):  # a terminal, in which programs are started by hand
        return int(os.environ.get(of_torchrun, 0))
    return int(os.environ.get(of_torchrun, os.environ.get(of_slurm, 0)))


def spin_briefly() -> None:
    """Lets threads that wait for each other give way to other programs after a while, if called before torch is loaded.

    OpenMP's threads spin while they wait, for longer than most operations of a small network take. Beside another program
    on the same cores they stand in their own way. Far less does as well on an idle machine: see docs/benchmarks.md. This is
    for GNU's OpenMP, which torch's packages for Linux bring; a setting of the user's own stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
