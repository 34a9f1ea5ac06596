"""Compare the sampler's gradient of theta with finite differences of the loss.

python scripts/analysis/gradient_vs_finite_difference.py RUN_DIRECTORY [--samples 100]

The run must be of birds with transformers. For test images, each parameter of theta is moved to
both sides by several distances, and the slope of the loss between the two is compared with the
gradient. Writes to results/slopes/. `make tables` shows the result in docs/experiments/birds.md.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_transformer.reporting.records import measurement_cli
from spatial_transformer.utils.errors import UsageError

DISTANCES = (0.02, 0.1, 0.25)
"""In units of half the side of the image."""
RESULTS = Path(__file__).parents[2] / "results" / "slopes"
_BATCH_SIZE = 20


def gradient_and_slopes(losses: Callable[[Tensor], Tensor], theta: Tensor) -> list[Tensor]:
    """Return the gradient of the loss, and its slope for each distance: ``(B, n)`` each.

    Args:
        losses: maps theta ``(B, n)`` to the loss of each sample ``(B,)``.
        theta: ``(B, n)``.
    """
    theta = theta.detach().requires_grad_()
    found = [torch.autograd.grad(losses(theta).sum(), theta)[0]]
    with torch.no_grad():
        for distance in DISTANCES:
            steps = distance * torch.eye(theta.shape[1])
            slopes = [(losses(theta + s) - losses(theta - s)) / (2 * distance) for s in steps]
            found.append(torch.stack(slopes, dim=1))
    return found


def measure(run: Path, data_root: str | None = None, samples: int = 100) -> dict[str, Any]:
    """Return spread, correlation and agreement in sign of gradient and slopes by distance.

    Raises:
        UsageError: the run is not finished, or not of birds with transformers.
    """
    from spatial_transformer.data.cub import CubData
    from spatial_transformer.inference.load import load_trained

    if samples < 2:
        raise UsageError(f"--samples must be at least 2, got {samples}.")
    trained = load_trained(run, data_root=data_root)
    data, task = trained.data, trained.task
    network: Any = task.network
    if not isinstance(data, CubData) or getattr(network, "transformer", None) is None:
        raise UsageError(f"The run must be of birds with transformers, got {run}.")
    if not trained.record:
        raise UsageError(f"The run must be finished, got {run}.")
    data.prepare_data()
    data.setup()
    n_test = data.size("test")
    index = torch.linspace(0, n_test - 1, min(samples, n_test)).long()
    batches = []
    for part in index.split(_BATCH_SIZE):
        images, labels = data.samples("test", part)

        def losses(theta: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            return task.per_sample_loss(network(images, theta), labels)

        values = gradient_and_slopes(losses, network.transformer.localisation(images))
        batches.append(torch.stack(values).flatten(1))
        n_done = _BATCH_SIZE * (len(batches) - 1) + len(part)
        print(f"{n_done:,} of {len(index):,} test images", flush=True)
    gradient, *slopes = torch.cat(batches, dim=1)
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
    record = {name: trained.record[name] for name in ("label", "steps", "commit")}
    return record | {"samples": len(index), "rows": rows}


if __name__ == "__main__":
    measurement_cli(__doc__, measure, RESULTS, samples=100)
