"""Images of a transformer's sampled region and output, drawn with Pillow."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..transformer import Affine, ThetaRecorder, Transform, find_transformers, sample
from ..transformer.transforms import pixel_centres

REGION = (60, 220, 120)
TOP = (255, 80, 80)
COLOURS = (REGION, (250, 210, 60), (90, 160, 255), (210, 120, 255))
"""Green, yellow, blue and violet: the colours of several transformers."""
TRUTH = (255, 255, 255)
WRONG = (255, 110, 110)
BACKGROUND = (24, 24, 28)
TEXT_COLOUR = (235, 235, 235)
SHEET_WIDTH = 830
"""Width of a README on GitHub in pixels, at which a sheet is shown there without scaling."""
MAX_COLUMNS = 6
_LABEL_WIDTH, _GAP = 104, 6
_FONT, _LINE, _LETTER = ImageFont.load_default(14), 18, 7.5  # pixels


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
        transformers, or that has not used all of them, has none.
        """
        with ThetaRecorder(network) as recorder:
            output = network(images)
        if len(recorder.latest) < max(1, len(recorder.transformers)):
            return [], output
        thetas = [recorder.latest[transformer] for transformer in recorder.transformers]
        return cls.from_thetas(network, thetas, images), output

    @classmethod
    def from_thetas(
        cls, network: nn.Module, thetas: Sequence[Tensor], images: Tensor
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
        fill = first.fill if len(first.fill) in (1, images.shape[1]) else 0.0  # of feature maps
        if first.parallel > 1:
            parts = thetas[0].flatten(1).chunk(first.parallel, dim=1)
            return [cls([first.transform], [theta], size, fill) for theta in parts]
        return [cls([t.transform for t in transformers], thetas, size, fill)]

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


def tile_width(aspect: float) -> int:
    """Return how wide an image is drawn on a sheet, in pixels.

    Args:
        aspect: width of the image, in units of its height. Wider images have fewer columns.
    """
    columns = max(1, round(MAX_COLUMNS / max(aspect, 1)))
    return (SHEET_WIDTH - _LABEL_WIDTH - _GAP) // columns - _GAP


def to_image(picture: Tensor, width: int) -> Image.Image:
    """Convert ``(1 or 3, H, W)`` in [0, 1] to an RGB image, ``width`` pixels wide.

    Enlarged pixels are squares.
    """
    picture = picture.detach().cpu().float().clamp(0, 1).mul(255).byte()
    picture = picture.expand(3, -1, -1).permute(1, 2, 0).contiguous()
    rows, columns = picture.shape[:2]
    image = Image.frombytes("RGB", (columns, rows), picture.numpy().tobytes())
    if width > columns:
        zoom = -(-width // columns)
        image = image.resize((columns * zoom, rows * zoom), Image.Resampling.NEAREST)
    size = width, max(1, round(rows * width / columns))
    return image.resize(size, Image.Resampling.BOX)


def draw_lines(
    image: Image.Image,
    lines: Sequence[Tensor],
    colour: tuple[int, int, int] = REGION,
    top_colour: tuple[int, int, int] = TOP,
) -> Image.Image:
    """Draw lines of points in [-1, 1] on a copy of an image; the first is the top edge."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    half = torch.tensor(image.size) / 2
    for n, line in reversed(list(enumerate(lines))):
        # Far outside points (a projective horizon) would overflow the drawing library.
        points = ((line + 1) * half - 0.5).clamp(-1e4, 1e4).flatten().tolist()
        draw.line(points, fill=colour if n else top_colour, width=1 if n else 2)
    return image


def image_grid(
    columns: Sequence[Sequence[Image.Image]],
    captions: Sequence[str] = (),
    title: str = "",
    labels: Sequence[str] = (),
    caption_colours: Sequence[tuple[int, int, int]] = (),
) -> Image.Image:
    """Arrange columns of images on a sheet that is at most :data:`SHEET_WIDTH` pixels wide.

    Args:
        columns: images from top to bottom, the same number of the same sizes in each column.
        captions: text under each column, broken into lines as wide as the images.
        title: text above the images.
        labels: names of the images of a column from top to bottom, written at the left.
        caption_colours: colours of the captions.
    """
    heights = [picture.height for picture in columns[0]]
    width = max(picture.width for picture in columns[0]) + _GAP
    left = _GAP + (_LABEL_WIDTH if labels else 0)
    per_row = min(max((SHEET_WIDTH - left) // width, 1), MAX_COLUMNS, len(columns))
    rows = -(-len(columns) // per_row)
    per_row = -(-len(columns) // rows)  # all rows as long as each other
    sheet_width = left + per_row * width
    heading = _wrap(title, sheet_width - 2 * _GAP)
    names = [_wrap(label, left) for label in labels]
    texts = [_wrap(caption, width - _GAP) for caption in captions]
    top = _GAP + (len(heading) * _LINE + _GAP if heading else 0)
    caption_height = max(map(len, texts), default=0) * _LINE
    row_height = sum(heights) + _GAP * len(heights) + caption_height
    sheet = Image.new("RGB", (sheet_width, top + rows * row_height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP, _GAP), heading)
    for n, pictures in enumerate(columns):
        x, y = left + n % per_row * width, top + n // per_row * row_height
        for k, picture in enumerate(pictures):
            sheet.paste(picture, (x + (width - _GAP - picture.width) // 2, y))
            if names and n % per_row == 0:
                middle = y + (picture.height - _LINE * len(names[k])) // 2
                _write(draw, (_GAP, middle), names[k])
            y += picture.height + _GAP
        if texts:
            colour = caption_colours[n] if caption_colours else TEXT_COLOUR
            _write(draw, (x, y - 3), texts[n], colour)
    return sheet


def _wrap(text: str, width: int) -> list[str]:
    """Break text into lines, after commas where possible."""
    letters = max(1, int(width / _LETTER))
    parts = [text] if len(text) <= letters else text.replace(", ", ",\n").split("\n")
    return [line for part in parts for line in textwrap.wrap(part, letters)]


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    lines: Sequence[str],
    colour: tuple[int, int, int] = TEXT_COLOUR,
) -> None:
    for n, line in enumerate(lines):
        draw.text((place[0], place[1] + n * _LINE), line, fill=colour, font=_FONT)
