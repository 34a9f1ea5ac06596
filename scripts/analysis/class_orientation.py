"""Measure whether a transformer rotates digits upright.

python scripts/analysis/class_orientation.py RUN_DIRECTORY [--data-root DIRECTORY]

The run must have one transformer and rotated digits: R, RTS or rotated MNIST. The rotation of a
digit in the output is known from theta and from its distortion. Its spread within a class is 0 if
all digits of the class come to one pose (section 4.1 of the paper). The spread includes the slant
of the writing, which a transformer may remove too. So R and RTS also have the share of the
distortion's rotation that is left, and RTS those of size and location. Writes to
results/orientation/. `make tables` shows the result in docs/reproduction.md.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_transformer.callbacks.pose_consistency import digit_pose, to_digit_coordinates
from spatial_transformer.data.mnist import MnistData, RotatedMnistData
from spatial_transformer.inference.load import load_trained
from spatial_transformer.reporting.records import measurement_cli
from spatial_transformer.utils.errors import UsageError

RESULTS = Path(__file__).parents[2] / "results" / "orientation"


def spread(degrees: Tensor) -> float:
    """Return the circular standard deviation of angles, in degrees."""
    length = torch.polar(torch.ones_like(degrees), degrees.deg2rad()).mean().abs()
    return math.degrees(math.sqrt(-2 * math.log(min(float(length), 1.0))))


def share_left(before: Tensor, after: Tensor) -> float:
    """Return the percentage of the distortions that is left in the output.

    It is the slope of values after the transformer against those before it, ``(N,)`` or
    ``(N, dims)``.
    """
    deviation = before - before.mean(dim=0)
    return 100 * float((deviation * after).sum() / deviation.square().sum())


def rotation_left(before: Tensor, after: Tensor) -> float:
    """Return :func:`share_left` of rotations in degrees, which must not be uniform over the circle.

    The slant of the writing has no effect.
    """
    return share_left(before, before + (after - before + 180) % 360 - 180)


def rotations_left(labels: Tensor, before: Tensor, after: Tensor, classes: int) -> list[float]:
    """Return :func:`rotation_left` of each class."""
    return [rotation_left(before[labels == n], after[labels == n]) for n in range(classes)]


@torch.inference_mode()
def output_poses(
    trained: Any, localisation: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the labels of all test samples, and how each digit lies in the output.

    Args:
        trained: a trained network with one transformer, on rotated digits.
        localisation: maps images ``(B, 1, H, H)`` to theta ``(B, n_params)``.

    Returns:
        Classes ``(N,)``, degrees ``(N,)``, log sizes ``(N,)`` and centres ``(N, 2)``, see
        :func:`~spatial_transformer.callbacks.pose_consistency.digit_pose`.
    """
    data, transform = trained.data, trained.task.network.transformer.transform
    labels, poses = [], []
    for index in torch.arange(data.size("test")).split(1000):
        images, classes = data.samples("test", index)
        theta, matrices = localisation(images).float(), data.poses("test", index)
        points = to_digit_coordinates(transform, theta, matrices, data.input_size)
        labels.append(classes)
        poses.append(digit_pose(points)[:, 0])
    degrees, sizes, centres = torch.cat(poses).split((1, 1, 2), dim=1)
    return torch.cat(labels), degrees[:, 0], sizes[:, 0], centres


def spreads(labels: Tensor, degrees: Tensor, classes: int) -> list[float]:
    """Return the spread of the angles of each class, in degrees."""
    return [spread(degrees[labels == n]) for n in range(classes)]


def load(run: Path, data_root: str | None) -> Any:
    """Load a finished run with one transformer on rotated digits.

    Raises:
        UsageError: the run is another one.
    """
    trained = load_trained(run, data_root=data_root)
    data: Any = trained.data
    transformer = getattr(trained.task.network, "transformer", None)
    is_rotated = type(data) in (MnistData, RotatedMnistData) and data.distortion.pose is not None
    if not is_rotated or transformer is None:
        raise UsageError(f"The run must have one transformer and rotated digits, got {run}.")
    if not trained.record:
        raise UsageError(f"The run must be finished, got {run}.")
    data.setup()
    return trained


def describe(trained: Any, samples: int) -> dict[str, Any]:
    """Return what identifies a run in a file of measurements."""
    record = {name: trained.record[name] for name in ("label", "commit", "steps")}
    distortion = trained.config.data.get("distortion")  # rotated MNIST has none to choose
    return record | {"distortion": distortion, "samples": samples}


def measure(run: Path, data_root: str | None = None) -> dict[str, Any]:
    """Return the spread of angles in each class, and what is left of the distortions on R and RTS.

    Raises:
        UsageError: the run is not finished, or has not one transformer on rotated digits.
    """
    trained = load(run, data_root)
    transformer = trained.task.network.transformer
    identity = transformer.transform.identity()
    labels, before, *placed = output_poses(trained, lambda x: identity.expand(len(x), -1))
    _, after, *normalised = output_poses(trained, transformer.localisation)
    pairs = zip(*(spreads(labels, d, trained.data.classes) for d in (before, after)), strict=True)
    rows = [
        {"class": n, "before": round(one, 2), "after": round(other, 2)}
        for n, (one, other) in enumerate(pairs)
    ]
    result = describe(trained, len(labels)) | {"rows": rows}
    if result["distortion"] is not None:
        left = rotations_left(labels, before, after, trained.data.classes)
        for row, value in zip(rows, left, strict=True):
            row["left"] = round(value, 2)
    if result["distortion"] == "rts":
        for name, *values in zip(("size_left", "location_left"), placed, normalised, strict=True):
            result[name] = round(share_left(*values), 2)
    return result


if __name__ == "__main__":
    measurement_cli(__doc__, measure, RESULTS)
