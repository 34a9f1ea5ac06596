"""Measure the effect of applying a transformer to its own output repeatedly.

python scripts/analysis/repeated_passes.py RUN_DIRECTORY [--data-root DIRECTORY]

The run must have one transformer whose family has compose, and distortion r or rts. For one to five
passes of the localisation network, it measures the test error, the spread of the digits' rotations
within a class, and the share of the distortion's rotation that is left. Writes to results/passes/.
`make tables` shows the result in docs/experiments/iterated.md.
"""

import statistics
from pathlib import Path
from typing import Any

import torch
from class_orientation import describe, load, output_poses, rotations_left, spreads

from spatial_transformer.networks.iterated import IteratedLocalisation
from spatial_transformer.reporting.records import measurement_cli
from spatial_transformer.utils.errors import UsageError

RESULTS = Path(__file__).parents[2] / "results" / "passes"
MAX_PASSES = 5


@torch.inference_mode()
def measure(run: Path, data_root: str | None = None) -> dict[str, Any]:
    """Return error, mean spread of angles and mean rotation left after each number of passes.

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
    identity = transform.identity()
    _, before, *_ = output_poses(trained, lambda images: identity.expand(len(images), -1))
    rows = []
    for passes in range(1, MAX_PASSES + 1):
        repeated = IteratedLocalisation(localisation, transform, passes)
        network.transformer.localisation = repeated
        wrong = 0
        for index in torch.arange(data.size("test")).split(1000):
            images, labels = data.samples("test", index)
            wrong += int((network(images).argmax(dim=1) != labels).sum())
        labels, degrees, *_ = output_poses(trained, repeated)
        error = 100 * wrong / len(labels)
        spread = statistics.mean(spreads(labels, degrees, data.classes))
        left = statistics.mean(rotations_left(labels, before, degrees, data.classes))
        row = {"error": error, "spread": spread, "left": left}
        rows.append({"passes": passes} | {name: round(value, 2) for name, value in row.items()})
    return describe(trained, len(labels)) | {"trained_passes": trained_passes, "rows": rows}


if __name__ == "__main__":
    measurement_cli(__doc__, measure, RESULTS)
