"""Measures whether the digits that a network misreads are hard to read, or only unfavourably placed.

python scripts/analysis/error_consistency.py RUN_FOLDER [--data-root FOLDER]

Reads each test digit of distorted MNIST under several other draws of the distortion, and counts how often it is misread.
What a transformer undoes makes no digit hard any more; what is left then are digits that are misread wherever they lie. The
record goes to results/redraws/; `make tables` puts it in docs/reproduction.md.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_transformer.reporting.records import measurement_cli
from spatial_transformer.utils.errors import UsageError

RESULTS = Path(__file__).parents[2] / "results" / "redraws"
DRAWS = 8


@torch.inference_mode()
def measure(run: Path, data_root: str | None) -> dict:
    """The record of a run folder or file: how many digits are misread in none of the draws, in one, ..., in all.

    Raises:
        UsageError: it is not that of a finished run on distorted MNIST.
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
    misread: list[Tensor] = []
    for index in torch.arange(data.size("test")).split(1000):
        draws = (data.redrawn("test", index, draw) for draw in range(1, DRAWS + 1))
        misread.append(
            torch.stack(
                [trained.task.network(images).argmax(1) != labels for images, labels in draws]
            ).sum(0)
        )
    counts = torch.bincount(torch.cat(misread), minlength=DRAWS + 1).tolist()
    record = {name: trained.record[name] for name in ("label", "commit", "steps")}
    rows = [{"misread": times, "digits": digits} for times, digits in enumerate(counts)]
    return record | {
        "distortion": trained.config.data.distortion,
        "samples": sum(counts),
        "rows": rows,
    }


def main() -> None:
    """Measures, and writes the record."""
    measurement_cli(__doc__, measure, RESULTS)


if __name__ == "__main__":
    main()
