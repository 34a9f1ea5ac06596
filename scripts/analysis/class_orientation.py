"""Measures whether a transformer turns digits upright: by how much they are turned in its input and in its output.

python scripts/analysis/class_orientation.py RUN_FOLDER [--data-root FOLDER]

On the test set, of a network with one transformer that was trained on R or RTS. How far a digit is turned in the output is
known from theta and from how it was distorted; the spread of that angle within a class is 0 where all come to one pose
(section 4.1 of the paper). The record goes to results/orientation/; `make tables` puts it in docs/reproduction.md.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_transformer.reporting.records import measurement_cli
from spatial_transformer.utils.errors import UsageError

RESULTS = Path(__file__).parents[2] / "results" / "orientation"


def spread(degrees: Tensor) -> float:
    """The circular standard deviation of angles, in degrees."""
    length = torch.polar(torch.ones_like(degrees), degrees.deg2rad()).mean().abs()
    return math.degrees(math.sqrt(-2 * math.log(min(float(length), 1.0))))


@torch.inference_mode()
def measure(run: Path, data_root: str | None) -> dict:
    """The record of a run folder or file.

    Raises:
        UsageError: it is not that of a finished run with one transformer on R or RTS.
    """
    from spatial_transformer.callbacks.pose_consistency import rotation_angle, to_digit_coordinates
    from spatial_transformer.data.mnist import MnistData
    from spatial_transformer.inference.load import load_trained

    trained = load_trained(run, data_root=data_root)
    data: Any = trained.data
    network: Any = trained.task.network
    if (
        type(data) is not MnistData
        or data.distortion.pose is None
        or getattr(network, "transformer", None) is None
    ):
        raise UsageError(f"The run must have one transformer and distortion r or rts, got {run}.")
    if not trained.record:
        raise UsageError(f"The run must be finished, got {run}.")
    data.setup()
    transformer = network.transformer
    found: list[Tensor] = []
    for index in torch.arange(data.size("test")).split(1000):
        images, labels = data.samples("test", index)
        poses = data.poses("test", index)
        thetas = (
            transformer.transform.identity().expand(len(index), -1),
            transformer.localisation(images).float(),
        )
        before, after = (
            rotation_angle(to_digit_coordinates(transformer.transform, t, poses, data.input_size))[
                :, 0
            ]
            for t in thetas
        )
        found.append(torch.stack([labels, before, after]))
    labels, before, after = torch.cat(found, dim=1)
    classes = [labels == label for label in range(data.classes)]
    rows = [
        {
            "class": n,
            "before": round(spread(before[mask]), 2),
            "after": round(spread(after[mask]), 2),
        }
        for n, mask in enumerate(classes)
    ]
    record = {name: trained.record[name] for name in ("label", "commit", "steps")}
    return record | {
        "distortion": trained.config.data.distortion,
        "samples": len(labels),
        "rows": rows,
    }


def main() -> None:
    """Measures, and writes the record."""
    measurement_cli(__doc__, measure, RESULTS)


if __name__ == "__main__":
    main()
