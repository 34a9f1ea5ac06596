"""Worker processes: order of results, errors, and what happens when the parent is killed."""

import subprocess
import sys
from pathlib import Path

import pytest
from programs import wait_for

from spatial_transformer.data.io.workers import map_in_processes
from spatial_transformer.utils.errors import UsageError

KILLED = """
import os, signal
from spatial_transformer.data.io.workers import map_in_processes

def large(n):  # fills the pipe to the parent
    return os.getpgid(n), bytes(1 << 22)

if __name__ == '__main__':
    for group, _ in map_in_processes(large, [0] * 40, 2, ''):
        print(group, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def square(n):
    if n == 13:
        raise UsageError("13 is damaged")
    return n * n, f"{n}"


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_until_an_error(monkeypatch, workers):
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)  # pytest's
    results = map_in_processes(square, range(30), workers, "squares")
    assert [next(results) for _ in range(13)] == [(n * n, f"{n}") for n in range(13)]
    with pytest.raises(UsageError, match=r"^13 is damaged$"):
        next(results)


def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "killed.py"]
    group = int(
        subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True, timeout=60).stdout
    )
    wait_for(lambda: not is_alive(group), 20)


def is_alive(group: int) -> bool:
    """Return whether a process of a group is running, and not a zombie."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False
