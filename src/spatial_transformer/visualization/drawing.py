"""Images of what a transformer reads and returns, drawn with Pillow."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..transformer import Affine, ThetaRecorder, Transform, find_transformers, sample
from ..transformer.transforms import pixel_centres

REGION = (60, 220, 120)
TOP = (255, 80, 80)
COLOURS = {
    "green": REGION,
    "yellow": (250, 210, 60),
    "blue": (90, 160, 255),
    "violet": (210, 120, 255),
}
"""Names and colours of the outlines of several transformers."""
BACKGROUND = (24, 24, 28)
TEXT_COLOUR = (235, 235, 235)
_GAP, _LINE, _LETTER = 6, 14, 6


class CropGeometry:
    """Where spatial transformers, one after the other, read some samples.

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
        self.transforms, self.thetas = list(transforms), list(thetas)
        self.size, self.fill = tuple(size), fill

    @classmethod
    def from_network(cls, network: nn.Module, images: Tensor) -> tuple[list[CropGeometry], Tensor]:
        """Return the crops of ``images``, and the output of the network.

        Transformers in a row have one geometry, parallel ones one each. A network without
        transformers has none.
        """
        with ThetaRecorder(network) as recorder:
            output = network(images)
        if not recorder.transformers:
            return [], output
        thetas = [recorder.latest[transformer] for transformer in recorder.transformers]
        return cls.from_thetas(network, thetas, images), output

    @classmethod
    def from_thetas(
        cls,
        network: nn.Module,
        thetas: Sequence[Tensor],
        images: Tensor,
    ) -> list[CropGeometry]:
        """Return the crops of a network whose thetas are known.

        Args:
            network: with at least one spatial transformer.
            thetas: of each transformer, ``(B, n_params)``; of n parallel ones ``(B, n n_params)``
                or ``(B, n, n_params)``.
            images: input of the network.
        """
        transformers = find_transformers(network)
        first = transformers[0]
        # The output of a deeper one is a smaller map of the same region.
        size = first.output_size or images.shape[2:]
        if first.parallel > 1:
            parts = thetas[0].flatten(1).chunk(first.parallel, dim=1)
            return [cls([first.transform], [theta], size, first.fill) for theta in parts]
        return [cls([t.transform for t in transformers], thetas, size, first.fill)]

    def split(self) -> list[CropGeometry]:
        """Return each transformer alone, as if it read the input of the first."""
        pairs = zip(self.transforms, self.thetas, strict=True)
        return [CropGeometry([transform], [theta], self.size) for transform, theta in pairs]

    def map_points(self, n: int, points: Tensor) -> Tensor:
        """Map ``(N, 2)`` points of the last output to points of the input, for sample ``n``."""
        for transform, theta in zip(reversed(self.transforms), reversed(self.thetas), strict=True):
            points = transform(theta[n : n + 1], points)[0]
        return points

    def crop(self, n: int, image: Tensor) -> Tensor:
        """Return the crop, ``(C, *size)``, of sample ``n``, whose input is ``(C, *input_size)``."""
        points = pixel_centres(self.size, torch.float32).T.to(image.device)
        grid = self.map_points(n, points).view(1, *self.size, len(self.size))
        return sample(image[None], grid, fill=self.fill)[0]

    def outline(self, n: int) -> list[Tensor]:
        """Return the outline of the crop of sample ``n`` as lines of ``(N, 2)`` points in [-1, 1].

        A warp that bends or foreshortens has a lattice of lines inside, too. The top edge comes
        first. A volume has no lines: it is shown by projections, on which a turned box would hide
        its content.
        """
        if len(self.size) == 3:
            return []
        along = torch.linspace(-1, 1, 25, device=self.thetas[0].device)
        is_straight = all(isinstance(transform, Affine) for transform in self.transforms)
        levels = (-1.0, 1.0) if is_straight else (-1.0, -0.5, 0.0, 0.5, 1.0)
        lines = [torch.stack([along, torch.full_like(along, level)], dim=1) for level in levels]
        lines += [line.flip(1) for line in lines]
        return [self.map_points(n, line).cpu() for line in lines]


def to_image(picture: Tensor, zoom: float) -> Image.Image:
    """Convert ``(1 or 3, H, W)`` in [0, 1] to an RGB image, ``zoom`` times as large.

    Pixels stay squares if ``zoom`` is at least 1.
    """
    picture = picture.detach().cpu().float().clamp(0, 1).mul(255).byte()
    picture = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous()
    height, width = picture.shape[:2]
    image = Image.frombytes("RGB", (width, height), picture.numpy().tobytes())
    size = round(width * zoom), round(height * zoom)
    return image.resize(size, Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.LANCZOS)


def draw_lines(
    image: Image.Image,
    lines: Sequence[Tensor],
    colour: tuple[int, int, int] = REGION,
) -> Image.Image:
    """Draw lines of points in [-1, 1] on a copy of an image: the first, the top edge, in red."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    half = torch.tensor(image.size) / 2
    for n, line in reversed(list(enumerate(lines))):
        # Far outside points (a projective horizon) would overflow the drawing library.
        points = ((line + 1) * half - 0.5).clamp(-1e4, 1e4).flatten().tolist()
        draw.line(points, fill=colour if n else TOP, width=1 if n else 2)
    return image


def image_grid(
    columns: Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    title: str = "",
    per_row: int = 12,
) -> Image.Image:
    """Arrange columns of images, with a caption under each, ``per_row`` columns to a row.

    All columns have the same number of images of the same sizes. Captions are broken into lines as
    wide as the images.
    """
    heights = [picture.height for picture in columns[0]]
    width = max(picture.width for picture in columns[0]) + _GAP
    texts = [textwrap.wrap(caption, max(1, (width - _GAP) // _LETTER)) for caption in captions]
    row_height = sum(heights) + _GAP * len(heights) + _LINE * max(map(len, texts))
    rows = -(-len(columns) // per_row)
    top = _LINE + _GAP if title else _GAP
    size = min(per_row, len(columns)) * width + _GAP, rows * row_height + top
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 4), title, fill=TEXT_COLOUR)
    for n, (pictures, text) in enumerate(zip(columns, texts, strict=True)):
        left, y = _GAP + (n % per_row) * width, top + (n // per_row) * row_height
        for picture in pictures:
            sheet.paste(picture, (left + (width - _GAP - picture.width) // 2, y))
            y += picture.height + _GAP
        draw.text((left, y - 3), "\n".join(text), fill=TEXT_COLOUR, spacing=2)
    return sheet
