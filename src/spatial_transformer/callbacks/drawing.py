"""Pictures of what a transformer reads and what it gives, drawn with Pillow."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..transformer import Affine, SpatialTransformer, Transform, sample
from ..transformer.transforms import pixel_centres

REGION = (60, 220, 120)
TOP = (255, 80, 80)
COLOURS = {"green": REGION, "yellow": (250, 210, 60), "blue": (90, 160, 255), "violet": (210, 120, 255)}
"""Names and colours of the regions of several transformers."""
PAPER = (24, 24, 28)
INK = (235, 235, 235)
_GAP, _LINE, _LETTER = 6, 14, 6


class Reading:
    """What the spatial transformers of a network, one after the other, read of some samples.

    Args:
        transforms: of the transformers, from the input on.
        thetas: theta of each, ``(B, n_params)``.
        size: height and width of the crops that are shown.
        fill: what is read outside of the image.
    """

    def __init__(
        self,
        transforms: Sequence[Transform],
        thetas: Sequence[Tensor],
        size: Sequence[int],
        fill: float | Sequence[float] = 0.0,
    ) -> None:
        self.transforms, self.thetas, self.size, self.fill = list(transforms), list(thetas), tuple(size), fill

    @classmethod
    def of(cls, network: nn.Module, images: Tensor) -> tuple[list[Reading], Tensor]:
        """What is read of ``images``, and the network's output.

        Transformers in a row give one reading, parallel ones one each, a network without transformers none.
        """
        transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
        thetas: list[Tensor] = []
        hooks = [t.localisation.register_forward_hook(lambda *args: thetas.append(args[2].float())) for t in transformers]
        output = network(images)
        for hook in hooks:
            hook.remove()
        if not transformers:
            return [], output
        return cls.from_thetas(network, thetas, images), output

    @classmethod
    def from_thetas(
        cls,
        network: nn.Module,
        thetas: Sequence[Tensor],
        images: Tensor,
    ) -> list[Reading]:
        """Return the readings of a network whose thetas are known.

        Args:
            network: with at least one spatial transformer.
            thetas: of each transformer, ``(B, n_params)``; of n parallel ones ``(B, n n_params)``
                or ``(B, n, n_params)``.
            images: input of the network.
        """
        transformers = [m for m in network.modules() if isinstance(m, SpatialTransformer)]
        first = transformers[0]
        size = first.output_size or images.shape[2:]  # deeper ones give smaller maps of the region
        if first.parallel > 1:
            parts = thetas[0].flatten(1).chunk(first.parallel, dim=1)
            return [cls([first.transform], [theta], size, first.fill) for theta in parts]
        return [cls([t.transform for t in transformers], thetas, size, first.fill)]

    def apart(self) -> list[Reading]:
        """Each transformer by itself, as if it read the input of the first."""
        return [Reading([transform], [theta], self.size) for transform, theta in zip(self.transforms, self.thetas, strict=True)]

    def at(self, n: int, points: Tensor) -> Tensor:
        """Where sample ``n`` is read for ``(N, 2)`` points of the last output: the transformations, one in another."""
        for transform, theta in zip(reversed(self.transforms), reversed(self.thetas), strict=True):
            points = transform(theta[n : n + 1], points)[0]
        return points

    def crop(self, n: int, image: Tensor) -> Tensor:
        """What is read of the input ``(C, H, W)``, or ``(C, D, H, W)``, of sample ``n``: ``(C, *size)``."""
        points = pixel_centres(self.size, torch.float32).T.to(image.device)
        return sample(image[None], self.at(n, points).view(1, *self.size, len(self.size)), fill=self.fill)[0]

    def lines(self, n: int) -> list[Tensor]:
        """The region of sample ``n`` that is read, as lines of ``(N, 2)`` points, (x, y) in [-1, 1].

        The outline of the output, and for warps that bend or foreshorten a lattice of lines inside. The top edge comes first.
        """
        if len(self.size) == 3:
            return []  # a volume is shown by its projections, on which a turned box would hide what it holds
        along = torch.linspace(-1, 1, 25, device=self.thetas[0].device)
        straight = all(isinstance(transform, Affine) for transform in self.transforms)
        levels = (-1.0, 1.0) if straight else (-1.0, -0.5, 0.0, 0.5, 1.0)
        lines = [torch.stack([along, torch.full_like(along, level)], dim=1) for level in levels]
        lines += [line.flip(1) for line in lines]
        return [self.at(n, line).cpu() for line in lines]


def to_image(picture: Tensor, zoom: float) -> Image.Image:
    """``(1 or 3, H, W)`` in [0, 1] as an RGB image, ``zoom`` times as large: pixels stay squares where it is more than 1."""
    picture = picture.detach().cpu().float().clamp(0, 1).mul(255).byte()
    picture = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous()
    height, width = picture.shape[:2]
    image = Image.frombytes("RGB", (width, height), picture.numpy().tobytes())
    size = round(width * zoom), round(height * zoom)
    return image.resize(size, Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.LANCZOS)


def with_lines(image: Image.Image, lines: Sequence[Tensor], colour: tuple[int, int, int] = REGION) -> Image.Image:
    """Draws lines of normalised points on an image, in ``colour`` but for the first, the top edge."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    half = torch.tensor(image.size) / 2
    for n, line in reversed(list(enumerate(lines))):
        # Far outside points (a projective horizon) would overflow the drawing library.
        points = ((line + 1) * half - 0.5).clamp(-1e4, 1e4).flatten().tolist()
        draw.line(points, fill=colour if n else TOP, width=1 if n else 2)
    return image


def strip(columns: Sequence[Sequence[Image.Image]], captions: Sequence[str], title: str = "", per_row: int = 12) -> Image.Image:
    """Columns of pictures side by side, a caption under each, ``per_row`` columns to a row.

    All columns have the same number of pictures of the same sizes. Captions are broken into lines as wide as the pictures.
    """
    heights = [picture.height for picture in columns[0]]
    width = max(picture.width for picture in columns[0]) + _GAP
    texts = [textwrap.wrap(caption, max(1, (width - _GAP) // _LETTER)) for caption in captions]
    row_height = sum(heights) + _GAP * len(heights) + _LINE * max(map(len, texts))
    rows = -(-len(columns) // per_row)
    top = _LINE + _GAP if title else _GAP
    sheet = Image.new("RGB", (min(per_row, len(columns)) * width + _GAP, rows * row_height + top), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 4), title, fill=INK)
    for n, (pictures, text) in enumerate(zip(columns, texts, strict=True)):
        left, y = _GAP + (n % per_row) * width, top + (n // per_row) * row_height
        for picture in pictures:
            sheet.paste(picture, (left + (width - _GAP - picture.width) // 2, y))
            y += picture.height + _GAP
        draw.text((left, y - 3), "\n".join(text), fill=INK, spacing=2)
    return sheet
