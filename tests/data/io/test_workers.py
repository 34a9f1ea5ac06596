"""Worker processes: order of results, and what happens when the parent is killed."""

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spatial_transformer.data.io.workers import check_workers, map_in_processes
from spatial_transformer.utils.errors import UsageError

KILLED = """
import os, signal
from spatial_transformer.data.io.workers import map_in_processes
if __name__ == '__main__':
    for group in map_in_processes(os.getpgid, [0] * 9, 2, ''):
        print(group, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_results_are_in_order_with_a_long_temporary_directory(tmp_path, monkeypatch):
    temporary = tmp_path / ("x" * 100)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)  # pytest's
    numbers = list(range(100))
    found = list(map_in_processes(math.sqrt, numbers, 2, "square roots"))
    assert found == [math.sqrt(n) for n in numbers]


def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "killed.py"]
    group = int(subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True).stdout)
    end = time.monotonic() + 20
    while is_alive(group):
        assert time.monotonic() < end, "a worker is still running"
        time.sleep(0.1)


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


def test_number_of_workers_must_be_positive():
    message = r"data\.workers must be a positive integer or null, got 0"
    with pytest.raises(UsageError, match=message):
        check_workers(0)
