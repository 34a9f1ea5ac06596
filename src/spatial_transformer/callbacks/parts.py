"""What parallel transformers look at, measured by annotations that training never sees (section 4.3 of the paper).

The paper tells by eye that one transformer finds the head and another the body. Here it is a figure: how often each part of a
bird lies in the crop of each transformer, beside crops of the same size at random places and in the centre.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from ..files import replacing
from ..transformer import Affine, SpatialTransformer
from .statistics import AfterTest

_LATTICE = 48  # points along each side of the image on which areas are counted
_AT_ONCE = 256  # samples, on all points of the lattice


class PartCoverage(AfterTest):
    """After the test: a table of the parts in each transformer's crop, and how crops lie on the bird and on each other.

    The data module gives ``parts(split)`` ``(N, parts, 3)``: x, y in [-1, 1] and whether it is to be seen; ``boxes(split)``
    ``(N, 4)``: left, top, right, bottom likewise; and ``part_names``. A network without transformers is passed over.

    Logged
        ``test/parts_K/NAME``: of the samples with that part to be seen, the percentage in which crop K holds it;
        ``test/parts_random/NAME`` and ``test/parts_centre/NAME``: likewise for crops of the mean size.
        ``test/box_K``: percentage of the bird's box that crop K covers; ``test/on_box_K``: percentage of crop K that is box;
        ``test/overlap``: mean intersection over union of two crops, in percent.

    Args:
        folder: where ``parts.csv`` goes.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    def measure(self, trainer: Any, pl_module: Any, transformer: SpatialTransformer, thetas: Tensor) -> None:
        transform = transformer.transform
        assert isinstance(transform, Affine)
        crops = torch.stack([matrices(transform, theta) for theta in thetas.unbind(1)], dim=1)
        data = trainer.datamodule
        parts, boxes = (values[: len(crops)] for values in (data.parts("test"), data.boxes("test")))  # a short test has fewer
        table = part_table(crops, parts)
        pl_module.log_dict({f"test/{name}": value for name, value in overlaps(crops, boxes).items()})
        pl_module.log_dict(
            {
                f"test/parts_{who}/{part}": value
                for who, values in table.items()
                for part, value in zip(data.part_names, values.tolist(), strict=True)
            }
        )
        if not trainer.is_global_zero:
            return
        columns = ["part", *(f"transformer {who}" if who.isdigit() else who for who in table)]
        rows = [[part, *(round(float(values[p]), 1) for values in table.values())] for p, part in enumerate(data.part_names)]
        with replacing(self.folder / "parts.csv") as path, path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("parts", columns, rows)


def matrices(transform: Affine, theta: Tensor) -> Tensor:
    """The matrices ``(B, 2, 3)`` of an affine transform or an attention with thetas ``(B, n_params)``."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    origin, x, y = transform(theta, corners).unbind(1)
    return torch.stack([x - origin, y - origin, origin], dim=2)


def inside(crops: Tensor, points: Tensor) -> Tensor:
    """Whether crops ``(B, K, 2, 3)`` hold points ``(B, P, 2)``, all in [-1, 1] of the image: bool ``(B, K, P)``."""
    offsets = points[:, None] - crops[:, :, None, :, 2]
    in_crop = torch.linalg.solve(crops[..., :2], offsets.mT)
    return (in_crop.abs() <= 1).all(dim=2)


def part_table(crops: Tensor, parts: Tensor) -> dict[str, Tensor]:
    """How often each part is in a crop, in percent of the samples in which it is to be seen: ``(parts,)`` for each crop.

    Keys are the numbers of the transformers from 1, then "random" and "centre": upright crops of the mean size, at places
    drawn evenly among those that lie in the image (the expectation, not a draw), and in the middle.

    Args:
        crops: ``(B, K, 2, 3)`` matrices.
        parts: ``(B, parts, 3)``.
    """
    points, seen = parts[..., :2], parts[..., 2] > 0
    count = seen.sum(0).clamp(min=1)
    held = inside(crops, points) & seen[:, None]
    table = {str(k + 1): 100 * held[:, k].sum(0) / count for k in range(crops.shape[1])}
    half = torch.linalg.det(crops[..., :2]).abs().sqrt().mean().clamp(max=1).item()
    free = 1 - half  # how far a crop's middle may lie from the image's
    reach = (torch.minimum(points + half, torch.tensor(free)) - torch.maximum(points - half, torch.tensor(-free))).clamp(min=0)
    chance = (reach / (2 * free)).prod(-1) if free > 0 else torch.ones_like(points[..., 0])
    table["random"] = 100 * (chance * seen).sum(0) / count
    table["centre"] = 100 * ((points.abs() <= half).all(-1) & seen).sum(0) / count
    return table


def overlaps(crops: Tensor, boxes: Tensor) -> dict[str, float]:
    """How crops ``(B, K, 2, 3)`` lie on boxes ``(B, 4)`` and on each other, in percent, counted on a lattice of the image."""
    line = (torch.arange(_LATTICE) + 0.5) * 2 / _LATTICE - 1
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).view(1, -1, 2)
    in_crop = torch.cat([inside(some, points.expand(len(some), -1, -1)) for some in crops.split(_AT_ONCE)])
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    in_box = ((points >= low) & (points <= high)).all(-1)
    shares = {}
    for k in range(crops.shape[1]):
        both = (in_crop[:, k] & in_box).sum(1)
        shares[f"box_{k + 1}"] = _mean_share(both, in_box.sum(1))
        shares[f"on_box_{k + 1}"] = _mean_share(both, in_crop[:, k].sum(1))
    pairs = [(a, b) for a in range(crops.shape[1]) for b in range(a)]
    if pairs:
        shares["overlap"] = sum(_union_share(in_crop[:, a], in_crop[:, b]) for a, b in pairs) / len(pairs)
    return shares


def _mean_share(part: Tensor, whole: Tensor) -> float:
    return (100 * part / whole.clamp(min=1)).mean().item()


def _union_share(a: Tensor, b: Tensor) -> float:
    return _mean_share((a & b).sum(1), (a | b).sum(1))
