"""Compares the gradient that a transformer's crops get through the sampler with what the loss does when they are moved.

python scripts/analysis/gradient_vs_finite_difference.py RUN_FOLDER [--samples 100] [--data-root FOLDER]

For test samples of a trained bird network, each parameter of theta is moved to both sides by some distances, and the slope
of the loss between the two is compared with its gradient. The record goes to results/slopes/; `make tables` puts it in
docs/experiments/birds.md.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_transformer.reporting.records import write_measurements
from spatial_transformer.utils.errors import UsageError

DISTANCES = (0.02, 0.1, 0.25)
"""In halves of the image's side."""
RESULTS = Path(__file__).parents[2] / "results" / "slopes"
_AT_ONCE = 20  # samples


def gradient_and_slopes(
    losses: Callable[[Tensor], Tensor], theta: Tensor, distances: tuple[float, ...] = DISTANCES
) -> list[Tensor]:
    """The gradient of ``losses`` by theta, then its slopes between points at each distance to either side: ``(B, n)`` each.

    Args:
        losses: from theta ``(B, n)`` to the loss of each sample, ``(B,)``.
        theta: where.
        distances: how far each parameter is moved.
    """
    theta = theta.detach().requires_grad_()
    found = [torch.autograd.grad(losses(theta).sum(), theta)[0]]
    with torch.no_grad():
        for distance in distances:
            steps = distance * torch.eye(theta.shape[1])
            found.append(
                torch.stack(
                    [(losses(theta + s) - losses(theta - s)) / (2 * distance) for s in steps], dim=1
                )
            )
    return found


def measure(run: Path, samples: int, data_root: str | None) -> dict:
    """The record of a run folder.

    Raises:
        UsageError: it is not that of a run with transformers and a finished checkpoint.
    """
    from spatial_transformer.data.cub import CubData
    from spatial_transformer.inference.load import load_trained

    if samples < 2:
        raise UsageError(f"--samples {samples} leaves nothing to compare. Use at least 2.")
    data: Any
    _, data, task, finished = load_trained(run, data_root=data_root)
    network: Any = task.network
    if not isinstance(data, CubData) or getattr(network, "transformer", None) is None:
        raise UsageError(
            f"{run} is no network of birds with transformers. Use a run of experiment=birds_2st."
        )
    if not finished:
        raise UsageError(f"The run must be finished, got {run}.")
    data.prepare_data()
    data.setup()
    index = torch.linspace(0, data.size("test") - 1, min(samples, data.size("test"))).long()
    found: list[Tensor] = []
    for part in index.split(_AT_ONCE):
        images, labels = data.samples("test", part)
        theta = network.transformer.localisation(images)
        values = gradient_and_slopes(partial(_losses, task, images, labels), theta)
        found.append(torch.stack(values).flatten(1))
        print(
            f"{_AT_ONCE * (len(found) - 1) + len(part):,} of {len(index):,} test images", flush=True
        )
    gradient, *slopes = torch.cat(found, dim=1)
    rows = [
        {
            "distance": distance,
            "pixels": round(distance * data.input_size / 2),
            "gradient": float(gradient.std()),
            "slope": float(slope.std()),
            "correlation": float(torch.corrcoef(torch.stack([gradient, slope]))[0, 1]),
            "same sign": float((gradient.sign() == slope.sign()).float().mean()),
        }
        for distance, slope in zip(DISTANCES, slopes, strict=True)
    ]
    about = {name: finished[name] for name in ("label", "steps", "commit")}
    return about | {"samples": len(index), "rows": rows}


def _losses(task: Any, images: Tensor, labels: Tensor, theta: Tensor) -> Tensor:
    return task.per_sample_loss(task.network(images, theta), labels)


def main() -> None:
    """Measures, and writes the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument(
        "--samples", type=int, default=100, help="test samples, evenly spread (100)"
    )
    parser.add_argument("--data-root", help="where the images are, if not where the run found them")
    options = parser.parse_args()
    try:
        record = measure(options.run, options.samples, options.data_root)
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{write_measurements(record, RESULTS)}; `make tables` shows it")


if __name__ == "__main__":
    main()
