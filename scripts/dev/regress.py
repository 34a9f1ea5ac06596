"""Reject a change whose test errors differ from those of recorded runs.

python scripts/dev/regress.py [--seeds 101,102] [OPTION=VALUE ...]

Trains each run of ablation=regress with new seeds. Their mean test error must be inside the 99 %
prediction interval of the results in results/regress. Options are those of train.py, such as
data.root=DIRECTORY. The exit code is 1 if a mean is outside.
"""

import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spatial_transformer.reporting.records import read_records
from spatial_transformer.reporting.significance import prediction_interval
from spatial_transformer.training.result import read_result
from spatial_transformer.utils.errors import UsageError

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "results" / "regress"
LEVEL = 0.99
"""Of the interval of each cell. With four cells, 4 % of unchanged versions are rejected."""


def compare(
    recorded: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """Compare new runs with recorded ones.

    Returns:
        A line for each cell, and the names of the rejected cells.

    Raises:
        UsageError: the cells differ, a cell has fewer than three recorded runs, or a seed of a new
            run is recorded.
    """
    old_cells, new_cells = _by_cell(recorded), _by_cell(new)
    if old_cells.keys() != new_cells.keys():
        difference = ", ".join(sorted(old_cells.keys() ^ new_cells.keys()))
        raise UsageError(
            f"Recorded and new runs must have the same cells. They differ in {difference}."
        )
    lines, rejected = [], []
    for name, new_runs in new_cells.items():
        old_runs = old_cells[name]
        if len(old_runs) < 3:
            raise UsageError(f"{name} needs at least 3 recorded runs, got {len(old_runs)}.")
        if repeated := old_runs.keys() & new_runs.keys():
            seeds = ", ".join(map(str, sorted(repeated)))
            raise UsageError(f"New seeds must not be recorded ones, got {seeds} for {name}.")
        low, high = prediction_interval(list(old_runs.values()), len(new_runs), LEVEL)
        mean = statistics.fmean(new_runs.values())
        is_inside = low <= mean <= high
        verdict = "accepted" if is_inside else "REJECTED"
        lines.append(f"{name}: {mean:.2f} %, expected {low:.2f} to {high:.2f} %, {verdict}")
        if not is_inside:
            rejected.append(name)
    return lines, rejected


def _by_cell(records: Iterable[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the test errors by cell and seed."""
    cells: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        distortion = record["config"]["data"]["distortion"].upper()
        name = f"{record['model']} {record['transform']} on {distortion}, {record['steps']:,} steps"
        cells[name][record["seed"]] = record["metrics"]["test/error"]
    return cells


def main() -> None:
    """Train the cells and print the comparison."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="101,102", help="new seeds (default: 101,102)")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="of train.py")
    options = parser.parse_args()
    try:
        recorded = read_records(RECORDED)  # a damaged file is refused before the runs
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "train.py", "ablation=regress", f"seed={options.seeds}"]
            command += ["logger=csv", f"hydra.sweep.dir={folder}", *options.options]
            if subprocess.run(command, cwd=ROOT).returncode:
                raise UsageError("A run failed.")
            new = [read_result(path) for path in sorted(Path(folder).glob("*/metrics.json"))]
        lines, rejected = compare(recorded, new)
    except UsageError as error:
        sys.exit(f"error: {error}")
    print("\n".join(lines))
    if rejected:
        sys.exit(f"rejected: {'; '.join(rejected)}")


if __name__ == "__main__":
    main()
