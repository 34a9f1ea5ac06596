"""Predictions of a trained network for your own images, in memory or in files."""

from __future__ import annotations

import csv
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from .building import Trained, load_trained
from .callbacks.drawing import Reading, strip
from .callbacks.pictures import columns_of, with_regions
from .config import PredictionConfig, check_names
from .data.image_arrays import ImageLike, to_pictures
from .data.picture_files import View, list_pictures, read_picture
from .errors import UsageError
from .files import replacing
from .inference import infer

OVERVIEW = 48
"""As many pictures are shown in the overview; more would make a sheet that no one can look at."""
_AT_ONCE = 50  # pictures that a network sees at once
_SIDE = 168  # pixels of an image on the screen, about
_ROWS = 40  # of the table on the screen
_LONGEST_NAME = 240  # bytes; file systems take 255, and a picture's own name adds to it


class Predictions(NamedTuple):
    """What a network predicts for B images, and where its spatial transformers look.

    Attributes:
        labels: ``(B,)`` predicted classes; ``(B, positions)`` of a reader of numbers.
        texts: the B labels as people write them.
        confidences: ``(B,)`` probabilities of the predictions.
        thetas: for each transformer ``(B, n_params)``, or ``(B, n, n_params)`` for n transformers
            in parallel. Empty without transformers.
        crops: for each transformer its output, ``(B, C, H', W')``, or ``(B, n C, H', W')``.
        inputs: ``(B, C, H, W)`` images as the network receives them: cropped, resized and scaled.
            Theta refers to these.
    """

    labels: Tensor
    texts: list[str]
    confidences: Tensor
    thetas: tuple[Tensor, ...]
    crops: tuple[Tensor, ...]
    inputs: Tensor


class FilePrediction(NamedTuple):
    """What is known of one picture."""

    file: str
    text: str
    confidence: float
    theta: list[float]
    """Of all transformers, one after the other; empty without."""
    note: str
    column: list[Image.Image]
    """The picture as it is and as the network gets it, each with the windows that are read, and the crops."""

    @property
    def caption(self) -> str:
        return f"{self.text or 'nothing'} ({self.confidence:.0%})"


def predict_images(
    trained: Trained,
    images: ImageLike | Sequence[ImageLike],
) -> Predictions:
    """Predict images in memory, preprocessed as by ``predict.py``.

    The data module of the network prepares each image. For MNIST it finds the digit, crops it and
    draws it as light ink on black. An image of the network's size is used as it is. Floating-point
    values are rounded to 8 bits, as in a file.

    Args:
        trained: what :func:`~spatial_transformer.building.load_trained` returns.
        images: one image or several: a NumPy array ``(H, W)``, ``(H, W, C)``, ``(B, H, W)`` or
            ``(B, H, W, C)``, a tensor ``(H, W)``, ``(C, H, W)`` or ``(B, C, H, W)``, a PIL image,
            or a list of these. Arrays and tensors have 1, 3 or 4 channels. They are uint8, or
            floating point in [0, 1].

    Returns:
        The predictions, on the CPU.

    Raises:
        TypeError: the type or the dtype is wrong.
        ValueError: the shape is wrong, there is no image, or a value is NaN or out of range.
        UsageError: an image does not show a digit, or the network does not predict pictures.
    """
    _check_takes_pictures(trained, trained.config.label)
    views = []
    for n, picture in enumerate(to_pictures(images)):
        try:
            views.append(trained.data.view(picture).image)
        except UsageError as error:
            raise UsageError(f"images[{n}]: {error}") from error
    batches = [_predict_batch(trained, part) for part in torch.stack(views).split(_AT_ONCE)]
    return Predictions(
        labels=torch.cat([batch.labels for batch in batches]).cpu(),
        texts=[text for batch in batches for text in batch.texts],
        confidences=torch.cat([batch.confidences for batch in batches]).cpu(),
        thetas=tuple(torch.cat(parts).cpu() for parts in zip(*[batch.thetas for batch in batches])),
        crops=tuple(torch.cat(parts).cpu() for parts in zip(*[batch.crops for batch in batches])),
        inputs=torch.stack(views),
    )


@torch.no_grad()
def _predict_batch(trained: Trained, images: Tensor) -> Predictions:
    """Predict preprocessed images on the device of the network."""
    data, task = trained.data, trained.task
    images = images.to(next(task.parameters()).device)
    was_training = task.training
    task.eval()
    logits, thetas, crops = infer(task.network, images)
    task.train(was_training)
    labels = task.predictions(logits)
    confidences = task.confidences(logits)
    return Predictions(labels, data.texts(labels), confidences, thetas, crops, images)


def _check_takes_pictures(trained: Trained, name: str) -> None:
    """Raise a UsageError if the network called ``name`` cannot predict pictures."""
    if trained.data.no_pictures:
        raise UsageError(
            f"{name} cannot be used on your own pictures: {trained.data.no_pictures}. Use a run of "
            "experiment=mnist, svhn_... or birds_..."
        )
    trained.data.names  # noqa: B018  read from files for some data: fail before any work


def predict(config: DictConfig) -> list[FilePrediction]:
    """Predicts pictures, and writes ``predictions.csv``, ``overview.png`` and a picture of each to the folder ``config.out``.

    Files that are no pictures, or show nothing to predict, are told and left out.

    Raises:
        UsageError: the run, the place of the pictures or the folder cannot be right, or none of the files is a picture.
    """
    check_names(config, PredictionConfig)
    place, out = Path(config.images), Path(config.out)
    files = list_pictures(place)
    if out.resolve() == (place if place.is_dir() else place.parent).resolve():
        raise UsageError(f"out={out} holds the pictures themselves. Way out: another folder.")
    trained = load_trained(Path(config.run), config.checkpoint, config.data.root)
    _check_takes_pictures(trained, config.run)
    left_out: list[str] = []
    predictions: list[FilePrediction] = []
    for done in _predictions(trained, files, left_out):
        with replacing(out / f"{done.file}.png") as path:
            strip([done.column], [done.caption]).save(path, "PNG")
        predictions.append(done if len(predictions) < OVERVIEW else done._replace(column=[]))  # pictures take memory
    if not predictions:
        raise UsageError("\n".join(left_out))
    _write(predictions, out)
    print(_table(predictions, out))
    for message in left_out:
        print(f"left out: {message}", file=sys.stderr)
    return predictions


def _predictions(trained: Trained, files: Sequence[Path], left_out: list[str]) -> Iterator[FilePrediction]:
    """Predicts in batches; tells of files without a prediction in ``left_out``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.task.to(device)
    views = _views(trained, files, left_out)
    while batch := list(itertools.islice(views, _AT_ONCE)):
        names, scenes, seen = zip(*batch, strict=True)
        yield from _of_batch(trained, names, scenes, seen)


def _views(trained: Trained, files: Sequence[Path], left_out: list[str]) -> Iterator[tuple[str, Image.Image, View]]:
    """Of each file its name, what is seen of the picture in its own colours, and what the network gets."""
    side = round(trained.data.input_size * _zoom(trained.data.input_size))
    for file in files:
        try:
            if len(os.fsencode(file.name)) > _LONGEST_NAME:
                raise UsageError("its name is too long to name a picture after. Way out: a shorter name.")
            picture = read_picture(file)
            view = trained.data.view(picture)
        except UsageError as error:
            left_out.append(f"{file}: {error}")
        else:
            # As people read it: a name may be of bytes that are no text.
            yield os.fsencode(file.name).decode("utf-8", "replace"), _scene(picture, view.box, side), view


def _scene(picture: Image.Image, box: tuple[float, ...], side: int) -> Image.Image:
    """What lies in a box of a picture, ``side`` pixels large; black beside the picture."""
    left, top, right, bottom = (round(edge) for edge in box)
    # Reduced before it is cut, as the box may reach far beyond the picture.
    scale = side / max(right - left, bottom - top, 1)
    if scale < 1:
        reduced = [max(1, round(edge * scale)) for edge in picture.size]
        picture = picture.resize(reduced, Image.Resampling.BOX)
        left, top, right, bottom = (round(edge * scale) for edge in box)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1))).resize((side, side), Image.Resampling.BILINEAR)


def _of_batch(
    trained: Trained,
    names: Sequence[str],
    scenes: Sequence[Image.Image],
    views: Sequence[View],
) -> Iterator[FilePrediction]:
    data = trained.data
    found = _predict_batch(trained, torch.stack([view.image for view in views]))
    thetas: list[list[float]] = [[]] * len(views)
    readings: list[Reading] = []
    if found.thetas:
        thetas = torch.cat([theta.flatten(1) for theta in found.thetas], dim=1).tolist()
        readings = Reading.from_thetas(trained.task.network, found.thetas, found.inputs)
    confidences = found.confidences.tolist()
    columns = columns_of(data, found.inputs, readings, _zoom(data.input_size))
    for n, (name, scene, view) in enumerate(zip(names, scenes, views, strict=True)):
        column = [with_regions(scene, readings, n), *columns[n]]
        yield FilePrediction(name, found.texts[n], confidences[n], thetas[n], view.note, column)


def _zoom(size: int) -> float:
    """Screen pixels to a pixel of an image of ``size``."""
    return float(round(_SIDE / size)) or 0.5


def _write(predictions: Sequence[FilePrediction], out: Path) -> None:
    heads = ["file", "prediction", "confidence", *(f"theta_{k}" for k in range(1, len(predictions[0].theta) + 1))]
    with replacing(out / "predictions.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        rows = ([p.file, p.text, f"{p.confidence:.4f}", *(f"{value:.5f}" for value in p.theta)] for p in predictions)
        csv.writer(file).writerows([heads, *rows])
    shown = predictions[:OVERVIEW]
    title = f"the first {len(shown)} of {len(predictions):,} pictures" if len(shown) < len(predictions) else ""
    with replacing(out / "overview.png") as path:
        strip([p.column for p in shown], [f"{p.file}: {p.caption}" for p in shown], title).save(path, "PNG")


def _table(predictions: Sequence[FilePrediction], out: Path) -> str:
    """The table on the screen."""
    shown = predictions[:_ROWS]
    rows = [("file", "prediction", "confidence", ""), *((p.file, p.text, f"{p.confidence:.1%}", p.note) for p in shown)]
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip() for row in rows]
    if len(shown) < len(predictions):
        lines.append(f"... and {len(predictions) - len(shown):,} more")
    return "\n".join(
        [*lines, f"all of it, and where the network looked: {out}/predictions.csv, overview.png and a picture of each"]
    )
