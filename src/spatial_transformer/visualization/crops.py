"""Images of what spatial transformers sample, and their files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..tasks.spsa import evaluation_mode
from ..transformer import Attention, find_transformers
from .drawing import (
    BACKGROUND,
    COLOURS,
    TEXT_COLOUR,
    TRUTH,
    WRONG,
    CropGeometry,
    draw_lines,
    image_grid,
    tile_width,
    to_image,
)

_BATCH_SIZE = 50
_BORDER = 3  # pixels around a crop


class SampleImages(NamedTuple):
    """Images of some samples.

    Attributes:
        columns: for each sample its input with the outlines of the crops, and the crops.
        labels: what the images of a column are.
        captions: the prediction, and the truth if it differs; for windows the IoU.
        is_wrong: whether the prediction is wrong.
    """

    columns: list[list[Image.Image]]
    labels: list[str]
    captions: list[str]
    is_wrong: list[bool]

    def sheet(self, title: str) -> Image.Image:
        """Return one image of all samples, with the wrong captions in red."""
        colours = [WRONG if wrong else TEXT_COLOUR for wrong in self.is_wrong]
        return image_grid(self.columns, self.captions, title, self.labels, colours)

    def tiles(self) -> list[Image.Image]:
        """Return an image of each sample, without text."""
        return [image_grid([column]) for column in self.columns]


@torch.inference_mode()
def render_samples(data: Any, pl_module: Any, split: str, index: Tensor) -> SampleImages:
    """Draw samples of a data set: for each its outlined crops, the crops, and the prediction.

    Args:
        data: the data module.
        pl_module: the task.
        split: "train", "val" or "test".
        index: ``(B,)`` positions in the split.
    """
    columns: list[list[Image.Image]] = []
    captions: list[str] = []
    is_wrong: list[bool] = []
    labels: list[str] = []
    with evaluation_mode(pl_module):
        for part in index.to(pl_module.device).split(_BATCH_SIZE):
            images, truths = data.samples(split, part)
            readings, logits = CropGeometry.from_network(pl_module.network, images)
            are_windows = truths.is_floating_point()  # of co-localisation
            height, width = data.to_display(images[:1]).shape[-2:]
            columns += render_columns(
                data, images, readings, tile_width(width / height), truths if are_windows else None
            )
            views = "sampling grid, true box in white" if are_windows else data.display_views
            labels = row_labels(readings, views)
            errors = pl_module.per_sample_errors(logits, truths)
            is_wrong += (errors["error"] > 0).tolist()
            if are_windows:
                captions += [f"IoU {overlap / 100:.2f}" for overlap in errors["overlap"].tolist()]
                continue
            predictions = data.decode_labels(pl_module.predictions(logits))
            for prediction, truth in zip(predictions, data.decode_labels(truths), strict=True):
                caption = f"pred {prediction or 'nothing'}"
                captions.append(caption if truth == prediction else f"{caption}, true {truth}")
    return SampleImages(columns, labels, captions, is_wrong)


def render_columns(
    data: Any,
    images: Tensor,
    readings: Sequence[CropGeometry],
    width: int,
    windows: Tensor | None = None,
) -> list[list[Image.Image]]:
    """Draw a column for each image: the image with all outlines, and the crops.

    A crop has a border in the colour of its outline. Of several transformers in a row, the outline
    is that of all together. The outline of each alone is drawn on one more image.

    Args:
        data: the data module.
        images: ``(B, C, H, W)`` inputs of the network.
        readings: the crops.
        width: of an image, in pixels.
        windows: true windows ``(B, 3)``, drawn in white.
    """
    apart = readings[0].split() if readings else []
    columns = []
    for n, image in enumerate(images):
        plain = to_image(data.to_display(image), width)
        outlined = draw_crop_outlines(plain, readings, n)
        if windows is not None:
            truth = CropGeometry([Attention()], [windows], image.shape[1:]).outline(n)
            outlined = draw_lines(outlined, truth, TRUTH, TRUTH)
        column = [outlined]
        for reading, colour in zip(readings, itertools.cycle(COLOURS)):
            crop = to_image(data.to_display(reading.crop(n, image)), width - 2 * _BORDER)
            column.append(ImageOps.expand(crop, _BORDER, colour))
        if len(apart) > 1:
            column.append(draw_crop_outlines(plain, apart, n))
        columns.append(column)
    return columns


def row_labels(readings: Sequence[CropGeometry], views: str = "") -> list[str]:
    """Return what the images of a column of :func:`render_columns` are.

    Args:
        readings: the crops.
        views: what an image shows side by side.
    """
    grids = {0: "", 1: " and sampling grid"}.get(len(readings), " and sampling grids")
    first = f"input: {views}" if views else f"input{grids}"
    if len(readings) != 1:
        return [first, *(f"transformer {k + 1} output" for k in range(len(readings)))]
    if len(readings[0].split()) > 1:
        return [first, "transformer output", "input and each grid alone"]
    return [first, "transformer output"]


def draw_crop_outlines(image: Image.Image, readings: Sequence[CropGeometry], n: int) -> Image.Image:
    """Draw the outlines of the crops of sample ``n``, each in its colour."""
    for reading, colour in zip(readings, itertools.cycle(COLOURS)):
        image = draw_lines(image, reading.outline(n), colour)
    return image


@torch.inference_mode()
def class_means(data: Any, pl_module: Any, split: str, index: Tensor) -> dict[str, Tensor]:
    """Return the mean "input" of each class, and the mean "output" of the transformer.

    A network with no transformer or several has no "output".

    Args:
        data: the data module, whose labels are classes.
        pl_module: the task.
        split: "train", "val" or "test".
        index: ``(B,)`` positions in the split.

    Returns:
        ``(classes, C, H, W)`` each.
    """
    transformers = find_transformers(pl_module.network)
    latest: dict[str, Tensor] = {}

    def keep_output(module: nn.Module, args: Any, output: Any) -> None:
        latest["output"] = output if torch.is_tensor(output) else output[0]  # without theta

    is_only = len(transformers) == 1 and transformers[0].parallel == 1
    hook = transformers[0].register_forward_hook(keep_output) if is_only else nullcontext()
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(data.classes, device=pl_module.device)
    with evaluation_mode(pl_module), hook:  # it is removed, also after an error
        for part in index.to(pl_module.device).split(_BATCH_SIZE):
            latest["input"], labels = data.samples(split, part)
            pl_module.network(latest["input"])
            counts += torch.bincount(labels, minlength=data.classes)
            for name, images in sorted(latest.items()):
                zeros = images.new_zeros(data.classes, *images.shape[1:])
                sums.setdefault(name, zeros).index_add_(0, labels, images)
    counts = counts.clamp(min=1)
    return {name: total / counts.view(-1, *[1] * (total.ndim - 1)) for name, total in sums.items()}


def read_png(path: Path) -> Image.Image:
    """Return a PNG file in RGB.

    No other format is decoded: some of Pillow's decoders start programs.

    Raises:
        ValueError: the file is not a PNG file, or is damaged.
    """
    try:
        with Image.open(path, formats=["PNG"]) as file:
            return file.convert("RGB")
    except Exception as error:  # Pillow raises many unrelated kinds for damaged files
        raise ValueError(f"{path} cannot be read as a PNG file: {error}.") from error


def write_gif(path: Path, frames: Sequence[Image.Image]) -> None:
    """Write RGB frames as an endless animation that rests on its last frame.

    Lower frames, whose captions have fewer lines, are padded below.
    """
    height = max(frame.height for frame in frames)
    # An octree keeps the colours of thin lines, which Pillow's default mixes with the grey around.
    octree = Image.Quantize.FASTOCTREE
    padded = [
        ImageOps.expand(frame, (0, 0, 0, height - frame.height), BACKGROUND).quantize(method=octree)
        for frame in frames
    ]
    durations = [250] * (len(frames) - 1) + [2000]
    options = {"append_images": padded[1:], "duration": durations, "loop": 0}
    padded[0].save(path, "GIF", save_all=True, **options)
