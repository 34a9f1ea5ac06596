"""Draw pairs of digits before and after registration.

python scripts/analysis/registered_pairs.py RUN_DIRECTORY [RUN_DIRECTORY ...] --out FILE.png

The runs must be of experiment=mnist_registration or svhn_registration. The first row has the pairs,
and each run adds a row of the same pairs after its warp. The fixed digit is orange and the moving
one blue, so pixels with both are white.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from spatial_transformer.inference.load import load_trained
from spatial_transformer.tasks.registration import Registration
from spatial_transformer.utils.errors import UsageError

COLUMNS = 10


@torch.inference_mode()
def overlays(runs: list[Path], data_root: str | None = None) -> dict[str, Tensor]:
    """Return images of the first test pairs, ``(COLUMNS, 3, H, W)``, by the name of the row.

    It is the transform of a run, or its label if an earlier run has the same transform.

    Raises:
        UsageError: a run is not one of registration.
    """
    rows: dict[str, Tensor] = {}
    for run in runs:
        trained = load_trained(run, data_root=data_root)
        if not isinstance(trained.task, Registration):
            raise UsageError(f"{run} is not a run of registration.")
        trained.data.prepare_data()
        trained.data.setup()
        pairs, _ = trained.data.samples("test", torch.arange(COLUMNS))
        warped = trained.task.network(pairs)
        name = str(trained.config.choices["transform"])
        name = str(trained.config.label) if name in rows else name
        rows |= {"before": pairs, name: torch.cat([pairs[:, :1], warped], dim=1)}
    return {name: trained.data.to_display(images) for name, images in rows.items()}


def draw(rows: dict[str, Tensor]) -> Figure:
    """Return a figure with a row of images for each name."""
    figure = Figure(figsize=(8.3, 0.85 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for axes, (name, images) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name)
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1))
            axis.set(xticks=[], yticks=[])
    return figure


def main() -> None:
    """Draw the pairs of the runs that are named."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIRECTORY")
    parser.add_argument("--data-root", metavar="DIRECTORY", help="default: that of the run")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.png")
    options = parser.parse_args()
    try:
        draw(overlays(options.runs, options.data_root)).savefig(options.out, dpi=100)
    except (UsageError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
