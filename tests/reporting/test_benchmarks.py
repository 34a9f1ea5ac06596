"""Tables and chart of speed; the benchmark itself, shortly."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from spatial_transformer.reporting.benchmarks import PARTS, benchmark_chart, benchmark_tables

RECORDS = REPOSITORY / "results" / "benchmarks"
RECIPES = REPOSITORY / "conf" / "recipe"


def test_without_records_everything_is_not_run(tmp_path):
    assert set(benchmark_tables(tmp_path, RECIPES).values()) == {"not run"}
    assert benchmark_chart(tmp_path) is None


@pytest.mark.parametrize("part", PARTS)
def test_a_table_has_every_row_of_its_record(part):
    rows = json.loads((RECORDS / f"{part}.json").read_text())["rows"]
    lines = benchmark_tables(RECORDS, RECIPES)[part].splitlines()
    if part == "networks":  # a column for each size
        assert len(lines) - 2 == len(rows) / 2
    else:
        heads = {"program": 0, "svhn": 5, "birds": 5}.get(part, 2)  # two tables, and an empty line
        assert len(lines) - heads == len(rows)


def test_the_chart_shows_the_warps_of_one_thread():
    bars, *_ = benchmark_chart(RECORDS).axes
    labels = [label.get_text() for label in bars.get_yticklabels()]
    assert "affine 256×1×28×28" in labels
    assert len(labels) == len(set(labels))


def test_the_time_of_table_1_is_the_sum_over_its_cells(tmp_path):
    rows = [
        {"network": name, "size": size, "steps/s": speed}
        for name, size, speed in (("FCN", 28, 10), ("FCN", 42, 5))
    ]
    (tmp_path / "networks.json").write_text(
        json.dumps(
            {"machine": {"cpu": "x", "gpu": None, "threads": 1, "packages": {}}, "rows": rows}
        )
    )
    hours = 150_000 * (3 / 10 + 1 / 5) / 3600
    assert (
        f"- `recipe=paper`, 150,000 steps: {hours:.0f} hours"
        in benchmark_tables(tmp_path, RECIPES)["table 1"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_benchmark_runs(part):
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "benchmark.py"),
        "--quick",
        "--only",
        part,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("{") >= 3
