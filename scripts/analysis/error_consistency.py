"""Measure whether a network misclassifies certain digits, or certain placements of digits.

python scripts/analysis/error_consistency.py RUN_DIRECTORY [--data-root DIRECTORY]

The run must be of experiment=mnist. Each test digit is classified under several other draws of its
distortion. If the transformer undoes the distortion, the remaining errors are of digits that are
misclassified in most draws. Writes to results/redraws/. `make tables` shows the result in
docs/reproduction.md.
"""

from pathlib import Path
from typing import Any

import torch

from spatial_transformer.reporting.records import measurement_cli
from spatial_transformer.utils.errors import UsageError

RESULTS = Path(__file__).parents[2] / "results" / "redraws"
DRAWS = 8


@torch.inference_mode()
def measure(run: Path, data_root: str | None = None) -> dict[str, Any]:
    """Return how many digits are misclassified in none of the draws, in one, and so on.

    Raises:
        UsageError: the run is not finished, or not of distorted MNIST.
    """
    from spatial_transformer.data.mnist import MnistData
    from spatial_transformer.inference.load import load_trained

    trained = load_trained(run, data_root=data_root)
    data: Any = trained.data
    if type(data) is not MnistData:
        raise UsageError(f"The run must be of experiment=mnist, got {run}.")
    if not trained.record:
        raise UsageError(f"The run must be finished, got {run}.")
    data.setup()
    counts = torch.zeros(DRAWS + 1, dtype=torch.long)
    for index in torch.arange(data.size("test")).split(1000):
        times = torch.zeros(len(index), dtype=torch.long)
        for draw in range(1, DRAWS + 1):
            images, labels = data.redraw("test", index, draw)
            times += trained.task.network(images).argmax(1) != labels
        counts += torch.bincount(times, minlength=DRAWS + 1)
    record = {name: trained.record[name] for name in ("label", "commit", "steps")}
    record |= {"distortion": trained.config.data.distortion, "samples": int(counts.sum())}
    rows = [{"misread": times, "digits": digits} for times, digits in enumerate(counts.tolist())]
    return record | {"rows": rows}


if __name__ == "__main__":
    measurement_cli(__doc__, measure, RESULTS)
