"""Which parts of birds parallel transformers read, from annotations unseen in training.

Section 4.3 of the paper shows by example that one transformer finds the head and another the body.
We measure how often each part lies in the crop of each transformer, and compare with crops of the
same size at random places and in the centre.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..transformer import Affine, SpatialTransformer
from ..utils.failures import warn_on_failure
from ..utils.files import atomic_write
from .base import find_wandb_loggers
from .theta_stats import ThetaTestCallback

_GRID_SIZE = 48  # points along each side of the image on which areas are counted
_BATCH_SIZE = 256  # samples, on all points of the grid


class PartCoverage(ThetaTestCallback):
    """Measure after the test which parts crops contain, and how they overlap boxes and each other.

    The data module has ``parts(split)``, ``(N, parts, 3)``: x and y in [-1, 1] and whether the part
    is visible. It has ``boxes(split)``, ``(N, 4)``: left, top, right and bottom in [-1, 1]. And it
    has ``part_names``. A network without transformers is skipped.

    Logged:
        ``test/parts_K/NAME``: percentage of the samples with that part visible in which crop K
        contains it. ``test/parts_random/NAME`` and ``test/parts_centre/NAME``: the same for crops
        of the mean size. ``test/box_K``: percentage of the box of the bird that crop K covers.
        ``test/on_box_K``: percentage of crop K that is in the box. ``test/overlap``: mean
        intersection over union of two crops, in percent.

    Args:
        folder: where ``parts.csv`` is written. A failure to write it does not stop the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def measure(
        self, trainer: Any, pl_module: Any, transformer: SpatialTransformer, thetas: Tensor
    ) -> None:
        transform = transformer.transform
        assert isinstance(transform, Affine)
        crops = torch.stack(
            [affine_matrices(transform, theta) for theta in thetas.unbind(1)], dim=1
        )
        data = trainer.datamodule
        # A short test has fewer samples.
        parts, boxes = data.parts("test")[: len(crops)], data.boxes("test")[: len(crops)]
        table = part_table(crops, parts)
        metrics: dict[str, Any] = dict(crop_box_overlap(crops, boxes))
        for name, values in table.items():
            percentages = zip(data.part_names, values.tolist(), strict=True)
            metrics |= {f"parts_{name}/{part}": value for part, value in percentages}
        logged = {f"test/{name}": value for name, value in metrics.items()}
        pl_module.log_dict(logged, sync_dist=True)
        if trainer.is_global_zero:
            with warn_on_failure("parts.csv"):
                self._save(trainer, table, data.part_names)

    def _save(self, trainer: Any, table: dict[str, Tensor], part_names: list[str]) -> None:
        names = (f"transformer {name}" if name.isdigit() else name for name in table)
        columns = ["part", *names]
        percentages = torch.stack(list(table.values()), dim=1).tolist()
        rows = []
        for part, values in zip(part_names, percentages, strict=True):
            rows.append([part, *(round(value, 1) for value in values)])
        with atomic_write(self.folder / "parts.csv") as path, path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        for logger in find_wandb_loggers(trainer):
            logger.log_table("parts", columns, rows)


def affine_matrices(transform: Affine, theta: Tensor) -> Tensor:
    """Return the matrices ``(B, 2, 3)`` of an affine or attention transform at ``theta``."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    origin, x, y = transform(theta, corners).unbind(1)
    return torch.stack([x - origin, y - origin, origin], dim=2)


def contains(crops: Tensor, points: Tensor) -> Tensor:
    """Return which crops contain which points, bool ``(B, K, P)``.

    Args:
        crops: ``(B, K, 2, 3)`` matrices.
        points: ``(B, P, 2)`` in [-1, 1] of the image.
    """
    offsets = points[:, None] - crops[:, :, None, :, 2]
    in_crop = torch.linalg.solve(crops[..., :2], offsets.mT)
    return (in_crop.abs() <= 1).all(dim=2)


def part_table(crops: Tensor, parts: Tensor) -> dict[str, Tensor]:
    """Return how often each part is in a crop, in percent of the samples in which it is visible.

    Keys are the numbers of the transformers from 1, then "random" and "centre": upright crops of
    the mean size, at places drawn uniformly among those inside the image (the expectation, not a
    draw), and in the middle.

    Args:
        crops: ``(B, K, 2, 3)`` matrices.
        parts: ``(B, parts, 3)``.

    Returns:
        ``(parts,)`` for each crop.
    """
    points, visible = parts[..., :2], parts[..., 2] > 0
    count = visible.sum(0).clamp(min=1)
    contained = contains(crops, points) & visible[:, None]
    table = {str(k + 1): 100 * contained[:, k].sum(0) / count for k in range(crops.shape[1])}
    half = torch.linalg.det(crops[..., :2]).abs().sqrt().mean().item()
    free = 1 - half  # how far the middle of a crop may be from the middle of the image
    upper = torch.minimum(points + half, torch.tensor(free))
    lower = torch.maximum(points - half, torch.tensor(-free))
    reach = (upper - lower).clamp(min=0)
    chance = (reach / (2 * free)).prod(-1) if free > 0 else torch.ones_like(points[..., 0])
    table["random"] = 100 * (chance * visible).sum(0) / count
    table["centre"] = 100 * ((points.abs() <= half).all(-1) & visible).sum(0) / count
    return table


def crop_box_overlap(crops: Tensor, boxes: Tensor) -> dict[str, float]:
    """Return how crops overlap boxes and each other, in percent, counted on a grid of the image.

    Args:
        crops: ``(B, K, 2, 3)`` matrices.
        boxes: ``(B, 4)``.
    """
    line = (torch.arange(_GRID_SIZE) + 0.5) * 2 / _GRID_SIZE - 1
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).view(1, -1, 2)
    batches = crops.split(_BATCH_SIZE)
    in_crop = torch.cat([contains(some, points.expand(len(some), -1, -1)) for some in batches])
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    in_box = ((points >= low) & (points <= high)).all(-1)
    shares = {}
    for k in range(crops.shape[1]):
        both = (in_crop[:, k] & in_box).sum(1)
        shares[f"box_{k + 1}"] = _mean_share(both, in_box.sum(1))
        shares[f"on_box_{k + 1}"] = _mean_share(both, in_crop[:, k].sum(1))
    pairs = [(a, b) for a in range(crops.shape[1]) for b in range(a)]
    if pairs:
        unions = [_iou(in_crop[:, a], in_crop[:, b]) for a, b in pairs]
        shares["overlap"] = sum(unions) / len(pairs)
    return shares


def _mean_share(part: Tensor, whole: Tensor) -> float:
    return (100 * part / whole.clamp(min=1)).mean().item()


def _iou(a: Tensor, b: Tensor) -> float:
    return _mean_share((a & b).sum(1), (a | b).sum(1))
