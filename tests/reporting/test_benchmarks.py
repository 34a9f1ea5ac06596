"""Tables and chart of the benchmarks, and the benchmark itself."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from spatial_transformer.reporting.benchmarks import PARTS, benchmark_chart, benchmark_tables

RESULTS = REPOSITORY / "results" / "benchmarks"
RECIPES = REPOSITORY / "conf" / "recipe"


def test_missing_results_are_not_run(tmp_path):
    assert set(benchmark_tables(tmp_path, RECIPES).values()) == {"not run"}
    assert benchmark_chart(tmp_path) is None


@pytest.mark.parametrize("part", PARTS)
def test_table_has_every_row(part):
    rows = json.loads((RESULTS / f"{part}.json").read_text())["rows"]
    lines = benchmark_tables(RESULTS, RECIPES)[part].splitlines()
    if part == "networks":  # a column for each size
        assert len(lines) - 2 == len(rows) / 2
    else:
        n_header_lines = {"program": 0, "svhn": 5, "birds": 5}.get(part, 2)
        assert len(lines) - n_header_lines == len(rows)


def test_each_machine_has_a_line_with_its_parts(tmp_path):
    for part, cpu in (("memory", "x"), ("data", "y"), ("threads", "x")):
        machine = {"cpu": cpu, "gpu": None, "threads": 1, "packages": {}}
        (tmp_path / f"{part}.json").write_text(json.dumps({"machine": machine, "rows": []}))
    lines = benchmark_tables(tmp_path, RECIPES)["machine"].splitlines()
    assert lines == [
        "- memory, threads: x, 1 thread, no GPU; .",
        "- data: y, 1 thread, no GPU; .",
    ]


def test_chart_shows_the_warps_of_one_thread():
    axes = benchmark_chart(RESULTS).axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert "affine 256×1×28×28" in labels
    assert len(labels) == len(set(labels))


def test_time_of_table_1_is_the_sum_over_its_cells(tmp_path):
    rows = [
        {"network": "FCN", "size": size, "steps/s": speed} for size, speed in ((28, 10), (42, 5))
    ]
    machine = {"cpu": "x", "gpu": None, "threads": 1, "packages": {}}
    (tmp_path / "networks.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    hours = 150_000 * (3 / 10 + 1 / 5) / 3600
    table = benchmark_tables(tmp_path, RECIPES)["table 1"]
    assert f"- `recipe=paper`, 150,000 steps: {hours:.0f} hours" in table


def test_time_of_stacked_runs_is_the_sum_over_all_96(tmp_path):
    names = ("FCN", "ST-FCN affine", "CNN", "ST-CNN affine")
    rows = [
        {
            "network": name,
            "distortion": distortion,
            "plain steps/s": 50,
            "three stacked steps/s": 100,
        }
        for name in names
        for distortion in ("r", "rts")
    ]
    machine = {"cpu": "x", "gpu": None, "threads": 1, "packages": {}}
    (tmp_path / "stacked.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    lines = benchmark_tables(tmp_path, RECIPES)["table 1 stacked"].splitlines()
    minutes = 96 * 15_000 / 50 / 60
    assert lines[0] == f"- Lightning's loop: {minutes:.0f} minutes"
    assert lines[1] == f"- the fastest of the others: {minutes / 2:.0f} minutes"


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_benchmark_has_the_keys_of_the_results(part, tmp_path):
    script = REPOSITORY / "scripts" / "dev" / "benchmark.py"
    command = [sys.executable, script, "--quick", "--only", part, "--out", tmp_path]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    new, kept = (
        json.loads((folder / f"{part}.json").read_text()) for folder in (tmp_path, RESULTS)
    )
    assert new["machine"].keys() == kept["machine"].keys()
    assert {frozenset(row) for row in new["rows"]} == {frozenset(row) for row in kept["rows"]}
