"""The progress of a run in a terminal."""

import re

import pytest
import torch
from conftest import SHORT

from spatial_transformer.training.runner import train


def test_a_terminal_of_80_columns_shows_count_times_and_a_line_per_validation(
    composed, drawn_mnist, monkeypatch, capsys, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    train(composed(*SHORT, "data.root=.", "logger=none", "recipe.validate_every=1"))
    output = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    lines = [line.rpartition("\r")[2] for line in output.splitlines()]
    *_, bar = [line for line in lines if re.match(r" *2/2 ", line)]
    assert re.search(r"━ [\d.]+ steps/s \d:\d\d:\d\d left \d:\d\d:\d\d", bar)
    assert len(bar.rstrip()) <= 80
    validations = [line for line in caplog.messages if line.startswith("step ")]
    assert [line.partition("  ")[0] for line in validations] == ["step 1 of 2", "step 2 of 2"]
    assert all(re.search(r"val/error [\d.]+ .* left$", line) for line in validations)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_a_cpu_that_is_slow_with_bfloat16_is_named(
    composed, drawn_mnist, monkeypatch, caplog, capability
):
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    train(composed(*SHORT, "data.root=.", "logger=none", "trainer.precision=bf16-mixed"))
    assert any("trainer.precision=32-true" in m for m in caplog.messages) == (capability == "AVX2")
