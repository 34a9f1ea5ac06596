"""Measure the effect of applying a transformer to its own output repeatedly.

python scripts/analysis/repeated_passes.py RUN_DIRECTORY [--data-root DIRECTORY]

The run must have one transformer whose family has compose, and distortion r or rts. For one to five
passes of the localisation network, it measures the test error and the spread of the digits'
rotations within a class. Writes to results/passes/. `make tables` shows the result in
docs/experiments/iterated.md.
"""

import statistics
from pathlib import Path
from typing import Any

import torch
from class_orientation import describe, load, rotations, spreads

from spatial_transformer.networks.iterated import IteratedLocalisation
from spatial_transformer.reporting.records import measurement_cli
from spatial_transformer.utils.errors import UsageError

RESULTS = Path(__file__).parents[2] / "results" / "passes"
MAX_PASSES = 5


@torch.inference_mode()
def measure(run: Path, data_root: str | None = None) -> dict[str, Any]:
    """Return the test error and the mean spread of angles after each number of passes.

    Raises:
        UsageError: the run is not one that this module can measure.
    """
    trained = load(run, data_root)
    network, data = trained.task.network, trained.data
    transform, localisation = network.transformer.transform, network.transformer.localisation
    if not transform.is_group:
        raise UsageError(f"The transform must have compose, got {transform}.")
    trained_passes = 1
    if isinstance(localisation, IteratedLocalisation):
        trained_passes, localisation = localisation.passes, localisation.localisation
    rows = []
    for passes in range(1, MAX_PASSES + 1):
        repeated = IteratedLocalisation(localisation, transform, passes)
        network.transformer.localisation = repeated
        wrong = 0
        for index in torch.arange(data.size("test")).split(1000):
            images, labels = data.samples("test", index)
            wrong += int((network(images).argmax(dim=1) != labels).sum())
        labels, degrees = rotations(trained, repeated)
        error = 100 * wrong / len(labels)
        mean = statistics.mean(spreads(labels, degrees, data.classes))
        rows.append({"passes": passes, "error": round(error, 2), "spread": round(mean, 2)})
    return describe(trained, len(labels)) | {"trained_passes": trained_passes, "rows": rows}


if __name__ == "__main__":
    measurement_cli(__doc__, measure, RESULTS)
