"""Measure whether a transformer rotates digits upright.

python scripts/analysis/class_orientation.py RUN_DIRECTORY [--data-root FOLDER]

The run must have one transformer and distortion r or rts. The rotation of a digit in the output is
known from theta and from its distortion. Its spread within a class is 0 if all digits of the class
come to one pose (section 4.1 of the paper). Writes to results/orientation/. `make tables` shows the
result in docs/reproduction.md.
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
    """Return the circular standard deviation of angles, in degrees."""
    length = torch.polar(torch.ones_like(degrees), degrees.deg2rad()).mean().abs()
    return math.degrees(math.sqrt(-2 * math.log(min(float(length), 1.0))))


@torch.inference_mode()
def measure(run: Path, data_root: str | None = None) -> dict[str, Any]:
    """Return the spread of angles in each class, before and after the transformer.

    Raises:
        UsageError: the run is not finished, or has not one transformer on R or RTS.
    """
    from spatial_transformer.callbacks.pose_consistency import rotation_angle, to_digit_coordinates
    from spatial_transformer.data.mnist import MnistData
    from spatial_transformer.inference.load import load_trained

    trained = load_trained(run, data_root=data_root)
    data: Any = trained.data
    transformer: Any = getattr(trained.task.network, "transformer", None)
    if type(data) is not MnistData or data.distortion.pose is None or transformer is None:
        raise UsageError(f"The run must have one transformer and distortion r or rts, got {run}.")
    if not trained.record:
        raise UsageError(f"The run must be finished, got {run}.")
    data.setup()
    transform = transformer.transform
    batches = []
    for index in torch.arange(data.size("test")).split(1000):
        images, labels = data.samples("test", index)
        poses = data.poses("test", index)
        angles = []
        for theta in (
            transform.identity().expand(len(index), -1),
            transformer.localisation(images).float(),
        ):
            points = to_digit_coordinates(transform, theta, poses, data.input_size)
            angles.append(rotation_angle(points)[:, 0])
        batches.append(torch.stack([labels, *angles]))
    labels, before, after = torch.cat(batches, dim=1)
    rows = []
    for n in range(data.classes):
        spreads = [round(spread(angles[labels == n]), 2) for angles in (before, after)]
        rows.append({"class": n, "before": spreads[0], "after": spreads[1]})
    record = {name: trained.record[name] for name in ("label", "commit", "steps")}
    record |= {"distortion": trained.config.data.distortion, "samples": len(labels)}
    return record | {"rows": rows}


if __name__ == "__main__":
    measurement_cli(__doc__, measure, RESULTS)
