"""Programs as processes of their own, forked from one that has imported everything before."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["spatial_transformer.training.runner"])


class Program:
    """``python train.py WORDS`` in a new process, with those methods of ``Popen`` that tests use.

    Args:
        words: name of the program and its arguments.
        cwd: working directory.
        environment: variables that are added.
        prepare: ``(function, *arguments)`` to call before the program.
        merge: let standard error join the output.
    """

    def __init__(self, *words, cwd=REPOSITORY, environment=None, prepare=None, merge=False):
        pipes = [_context.Pipe(duplex=False) for _ in range(1 if merge else 2)]
        ends = [end for _, end in pipes]
        arguments = (ends, list(map(str, words)), cwd, environment or {}, prepare)
        self._process = _context.Process(target=_run, args=arguments)
        self._process.start()
        for end in ends:
            end.close()
        self.stdout, *self._stderr = [os.fdopen(os.dup(output.fileno())) for output, _ in pipes]
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=300):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("the program", timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout=300):
        """Wait for the end, and return the rest of the output, and the errors."""
        self.wait(timeout)
        return self.stdout.read(), "".join(stream.read() for stream in self._stderr)


def wait_for(condition, seconds=120):
    """Wait until a condition holds, and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return value


def _run(ends, words, cwd, environment, prepare):
    os.dup2(ends[0].fileno(), 1)
    os.dup2(ends[-1].fileno(), 2)
    for end in ends:
        end.close()
    multiprocessing.process._parent_process = None  # a program of its own, no worker of the tests
    os.chdir(cwd)
    os.environ.update(environment)
    # Another number of threads adds in another order.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # A shell lets what it starts in the background ignore interrupts, and these tests with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if prepare:
        function, *arguments = prepare
        function(*arguments)
    sys.argv = words
    try:
        runpy.run_path(str(REPOSITORY / words[0]), run_name="__main__")
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()  # which multiprocessing leaves out
