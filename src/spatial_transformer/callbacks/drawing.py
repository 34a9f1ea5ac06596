"""Pictures of what a transformer reads and what it gives, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..transformer import Affine, Transform

REGION = (60, 220, 120)
TOP = (255, 80, 80)
PAPER = (24, 24, 28)
INK = (235, 235, 235)
_GAP, _CAPTION = 6, 14


def region_lines(transform: Transform, theta: Tensor) -> list[Tensor]:
    """The region that a transformer reads, as lines on its input.

    The outline of the output, and for warps that bend or foreshorten a lattice of lines inside. The top edge comes first.

    Args:
        transform: a transform of the plane.
        theta: ``(n_params,)``, of one sample.

    Returns:
        Lines of ``(N, 2)`` points, (x, y) in [-1, 1].
    """
    along = torch.linspace(-1, 1, 25, device=theta.device)
    levels = (-1.0, 1.0) if isinstance(transform, Affine) else (-1.0, -0.5, 0.0, 0.5, 1.0)
    lines = [torch.stack([along, torch.full_like(along, level)], dim=1) for level in levels]
    lines += [line.flip(1) for line in lines]
    return [transform(theta[None], line)[0].cpu() for line in lines]


def to_image(picture: Tensor, zoom: int) -> Image.Image:
    """``(1 or 3, H, W)`` in [0, 1] as an RGB image, enlarged ``zoom`` times without smoothing."""
    picture = picture.detach().cpu().float().clamp(0, 1).mul(255).byte()
    picture = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous()
    height, width = picture.shape[:2]
    image = Image.frombytes("RGB", (width, height), picture.numpy().tobytes())
    return image.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)


def with_lines(image: Image.Image, lines: Sequence[Tensor]) -> Image.Image:
    """Draws lines of normalised points on an image; the first, the top edge, in a colour of its own."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    half = torch.tensor(image.size) / 2
    for line, colour in reversed(list(zip(lines, [TOP] + [REGION] * len(lines), strict=False))):
        # Far outside points (a projective horizon) would overflow the drawing library.
        points = ((line + 1) * half - 0.5).clamp(-1e4, 1e4).flatten().tolist()
        draw.line(points, fill=colour, width=2 if colour == TOP else 1)
    return image


def strip(columns: Sequence[Sequence[Image.Image]], captions: Sequence[str], title: str = "", per_row: int = 12) -> Image.Image:
    """Columns of pictures side by side, a caption under each, ``per_row`` columns to a row.

    All columns have the same number of pictures of the same sizes.
    """
    heights = [picture.height for picture in columns[0]]
    width = max(picture.width for picture in columns[0]) + _GAP
    row_height = sum(heights) + _GAP * len(heights) + _CAPTION
    rows = -(-len(columns) // per_row)
    top = _CAPTION + _GAP if title else _GAP
    sheet = Image.new("RGB", (min(per_row, len(columns)) * width + _GAP, rows * row_height + top), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 4), title, fill=INK)
    for n, (pictures, caption) in enumerate(zip(columns, captions, strict=True)):
        left, y = _GAP + (n % per_row) * width, top + (n // per_row) * row_height
        for picture in pictures:
            sheet.paste(picture, (left + (width - _GAP - picture.width) // 2, y))
            y += picture.height + _GAP
        draw.text((left, y - 3), caption, fill=INK)
    return sheet
