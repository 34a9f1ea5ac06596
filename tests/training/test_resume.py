"""Runs of random settings, killed at random places and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("resume_worker.py")


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, 5), pytest.param(5, 205, marks=pytest.mark.slow)],
    ids=["5 draws", "200 draws"],
)
def test_resume_is_bit_equal(mnist_root, tmp_path, first, last):
    command = [sys.executable, WORKER, tmp_path, mnist_root, str(first), str(last)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    draws = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert len(draws) == last - first
    assert sum(draw["codes"][1] != 0 for draw in draws) > len(draws) / 2, "most were stopped"
    assert [draw for draw in draws if draw["reason"]] == []
