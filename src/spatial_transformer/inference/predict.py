"""Predictions of a trained network for your own images, in memory or in files."""

from __future__ import annotations

import contextlib
import csv
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..data.base import View
from ..data.io.image_arrays import ImageLike, to_pictures
from ..data.io.image_files import DECODING_ERRORS, FORMATS, list_pictures, read_picture
from ..inference.load import Trained, load_trained
from ..training.config import PredictionConfig
from ..training.validation import check_names
from ..transformer import SpatialTransformer
from ..utils.errors import Stopped, UsageError
from ..utils.files import atomic_write
from ..utils.text import csv_cell, printable
from ..visualization.crops import draw_crop_outlines, evaluating, render_columns
from ..visualization.drawing import CropGeometry, image_grid
from . import infer

MAX_OVERVIEW = 48
"""Pictures in the overview; a larger sheet would be unreadable."""
UNSURE = 0.5
"""Predictions with a lower confidence are marked."""
_BATCH_SIZE = 32
_SIDE = 168  # of an image on the screen, in pixels
_MAX_LINES = 40  # of the table on the screen
_MAX_NAME = 240  # bytes; file systems take 255, and the name of an output file is longer
_MAX_SIDE = 65_535  # pixels, the largest of JPEG; resizing takes memory for each pixel of a side
_SMALLEST_SHAPE = 0.1  # of the area of the largest one


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
    """The prediction for one file.

    Attributes:
        file: name of the file, with what is not printable escaped.
        text: the predicted label as people write it.
        confidence: probability of the prediction.
        theta: parameters of all transformers, one after the other; empty without transformers.
        note: what the user should know, such as "unsure".
        column: images of the overview; empty beyond :data:`MAX_OVERVIEW`.
    """

    file: str
    text: str
    confidence: float
    theta: list[float]
    note: str
    column: list[Image.Image]

    @property
    def caption(self) -> str:
        """The prediction as a caption."""
        return f"{self.text or 'nothing'} ({self.confidence:.0%})"


class SkippedFile(NamedTuple):
    """A file without a prediction, and why."""

    file: str
    reason: str


def predict_images(
    trained: Trained,
    images: ImageLike | Sequence[ImageLike],
) -> Predictions:
    """Predict images in memory, preprocessed as by ``predict.py``.

    The data module of the network prepares each image. For MNIST it finds the digit, crops it and
    draws it as light ink on black. An image of the network's size is used as it is. Floating-point
    values are rounded to 8 bits, as in a file.

    Args:
        trained: what :func:`~spatial_transformer.inference.load.load_trained` returns.
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
    batches = [_predict_batch(trained, part) for part in torch.stack(views).split(_BATCH_SIZE)]
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
    with evaluating(task):
        logits, thetas, crops = infer(task.network, images)
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
    """Predict picture files.

    Writes ``predictions.csv`` row by row, a picture for each file to ``crops/``, and
    ``overview.png`` to the directory ``config.out``. Files that cannot be predicted are listed in
    ``predictions.csv`` with the reason.

    Returns:
        The predictions, without the skipped files.

    Raises:
        UsageError: a setting is missing or wrong, or no file could be predicted.
        Stopped: the user pressed Ctrl-C. ``predictions.csv`` holds the files that were done.
    """
    check_names(config, PredictionConfig)
    if missing := sorted(OmegaConf.missing_keys(config)):
        example = "python predict.py run=RUN_DIRECTORY images=FILE_OR_DIRECTORY"
        raise UsageError(f"{' and '.join(missing)} must be set. Example: {example}.")
    place, out = Path(config.images), Path(config.out)
    files = list_pictures(place)
    if out.resolve() == (place if place.is_dir() else place.parent).resolve():
        raise UsageError(f"out must not be the directory of the pictures, got {out}.")
    trained = load_trained(
        Path(config.run), config.checkpoint, config.data.root, config.get("trust") or ()
    )
    _check_takes_pictures(trained, config.run)
    trained.task.to("cuda" if torch.cuda.is_available() else "cpu")

    predictions: list[FilePrediction] = []
    skipped: list[SkippedFile] = []
    done = 0
    out.mkdir(parents=True, exist_ok=True)
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["file", "prediction", "confidence", "note", *_theta_names(trained)])
        try:
            for result in _predict_files(trained, files):
                writer.writerow(_row(result))
                table.flush()
                done += 1
                if isinstance(result, SkippedFile):
                    skipped.append(result)
                    continue
                with atomic_write(out / "crops" / f"{result.file}.png") as path:
                    image_grid([result.column], [result.caption]).save(path, "PNG")
                if len(predictions) >= MAX_OVERVIEW:  # pictures take memory
                    result = result._replace(column=[])
                predictions.append(result)
        except KeyboardInterrupt:
            rows = f"{done:,} of {len(files):,} files"
            raise Stopped(f"Interrupted: {out}/predictions.csv holds {rows}.", 130) from None
    _print_skipped(skipped)
    if not predictions:
        raise UsageError(
            f"images={printable(str(place))} holds no picture that can be predicted "
            f"(see {out}/predictions.csv), first {skipped[0].file}: {skipped[0].reason}"
        )
    _write_overview(predictions, out)
    _print_table(predictions, out)
    return predictions


def _predict_files(
    trained: Trained,
    files: Sequence[Path],
) -> Iterator[FilePrediction | SkippedFile]:
    """Predict files in batches, in their order, with a progress bar on a terminal."""
    batches = [files[start : start + _BATCH_SIZE] for start in range(0, len(files), _BATCH_SIZE)]
    console = Console(stderr=True)
    for batch in track(batches, "Predicting", console=console, disable=not console.is_terminal):
        found = [_load(trained, file) for file in batch]
        predictions = _predict_loaded(trained, [one for one in found if isinstance(one, _Loaded)])
        for one in found:
            yield one if isinstance(one, SkippedFile) else next(predictions)


class _Loaded(NamedTuple):
    """A preprocessed picture: its printable name, its region in its own colours, and its view."""

    file: str
    scene: Image.Image
    view: View
    note: str


def _load(trained: Trained, file: Path) -> _Loaded | SkippedFile:
    size = trained.data.input_size
    name = printable(file.name)
    try:
        if len(os.fsencode(name)) > _MAX_NAME:
            raise UsageError(f"its name must have at most {_MAX_NAME} bytes. Rename it.")
        picture = _read(file)
        view = trained.data.view(picture)
    except UsageError as error:
        return SkippedFile(name, printable(" ".join(str(error).split())))
    scene = _crop_scene(picture, view.box, _SIDE)
    notes = [view.note]
    if view.image.shape[0] == 1 and picture.size != (size, size):
        shapes = _count_shapes(view.image[0])
        if shapes > 1:
            notes.append(f"{shapes} separate shapes: expected one digit")
    return _Loaded(name, scene, view, "; ".join(filter(None, notes)))


def _read(file: Path) -> Image.Image:
    """Read a picture of a regular file.

    Raises:
        UsageError: the file cannot be used; the message does not name it.
    """
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a pipe would wait for ever
        raise UsageError("it is not a regular file, but a pipe, a socket or a device.")
    if stat.S_ISREG(mode):
        with (
            contextlib.suppress(*DECODING_ERRORS),
            file.open("rb") as opened,
        ):  # reported by read_picture
            _check_header(opened)
    return read_picture(file)


def _check_header(opened: BinaryIO) -> None:
    with Image.open(opened, formats=FORMATS) as image:
        if max(image.size) > _MAX_SIDE:
            size = f"{image.width:,} x {image.height:,}"
            raise UsageError(f"it must have at most {_MAX_SIDE:,} pixels a side, got {size}.")
        if image.mode == "F" and np.isinf(np.asarray(image)).any():
            raise UsageError("its values must be finite, got an infinite one.")


def _count_shapes(image: Tensor) -> int:
    """Count the connected bright shapes of an image ``(H, W)``, without specks."""
    mask = (image > 0.5).float()[None, None]
    labels = torch.arange(1.0, mask.numel() + 1).view_as(mask) * mask
    while True:  # the highest label of a shape spreads over it
        spread = max_pool2d(labels, 3, 1, 1) * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    areas = labels[labels > 0].unique(return_counts=True)[1]
    return int((areas >= _SMALLEST_SHAPE * areas.max()).sum()) if len(areas) else 0


def _crop_scene(picture: Image.Image, box: tuple[float, ...], side: int) -> Image.Image:
    """Return what lies in a box of a picture, ``side`` pixels large; black beside the picture."""
    left, top, right, bottom = (round(edge) for edge in box)
    # Reduced before it is cut, as the box may reach far beyond the picture.
    scale = side / max(right - left, bottom - top, 1)
    if scale < 1:
        reduced = [max(1, round(edge * scale)) for edge in picture.size]
        picture = picture.resize(reduced, Image.Resampling.BOX)
        left, top, right, bottom = (round(edge * scale) for edge in box)
    picture = picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    return picture.resize((side, side), Image.Resampling.BILINEAR)


def _predict_loaded(trained: Trained, loaded: Sequence[_Loaded]) -> Iterator[FilePrediction]:
    """Predict one batch and draw a column for each picture."""
    if not loaded:
        return
    data = trained.data
    found = _predict_batch(trained, torch.stack([one.view.image for one in loaded]))
    thetas: list[list[float]] = [[]] * len(loaded)
    readings: list[CropGeometry] = []
    if found.thetas:
        thetas = torch.cat([theta.flatten(1) for theta in found.thetas], dim=1).tolist()
        readings = CropGeometry.from_thetas(trained.task.network, found.thetas, found.inputs)
    columns = render_columns(data, found.inputs, readings, _SIDE)
    for n, (one, confidence) in enumerate(zip(loaded, found.confidences.tolist())):
        note = "; ".join(filter(None, ["unsure" if confidence < UNSURE else "", one.note]))
        column = [draw_crop_outlines(one.scene, readings, n), *columns[n]]
        yield FilePrediction(one.file, found.texts[n], confidence, thetas[n], note, column)


def _theta_names(trained: Trained) -> list[str]:
    modules = trained.task.network.modules()
    transformers = [m for m in modules if isinstance(m, SpatialTransformer)]
    count = sum(t.parallel * t.transform.n_params for t in transformers)
    return [f"theta_{k}" for k in range(1, count + 1)]


def _row(result: FilePrediction | SkippedFile) -> list[str]:
    """Return a row of ``predictions.csv``."""
    if isinstance(result, SkippedFile):
        return [csv_cell(result.file), "", "", f"skipped: {result.reason}"]
    theta = [f"{value:.5f}" for value in result.theta]
    text = csv_cell(printable(result.text))
    return [csv_cell(result.file), text, f"{result.confidence:.4f}", result.note, *theta]


def _write_overview(predictions: Sequence[FilePrediction], out: Path) -> None:
    shown = predictions[:MAX_OVERVIEW]
    title = ""
    if len(shown) < len(predictions):
        title = f"the first {len(shown)} of {len(predictions):,} pictures"
    captions = [f"{p.file}: {p.caption}" for p in shown]
    with atomic_write(out / "overview.png") as path:
        image_grid([p.column for p in shown], captions, title).save(path, "PNG")


def _print_table(predictions: Sequence[FilePrediction], out: Path) -> None:
    rows = [("file", "prediction", "confidence", "")]
    for one in predictions[:_MAX_LINES]:
        rows.append((one.file, printable(one.text), f"{one.confidence:.1%}", one.note))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("  ".join([*cells, row[3]]).rstrip())
    if len(predictions) > _MAX_LINES:
        print(f"... and {len(predictions) - _MAX_LINES:,} more")
    print(f"Wrote predictions.csv, overview.png and a picture for each file in crops/ to {out}.")


def _print_skipped(skipped: Sequence[SkippedFile]) -> None:
    for one in skipped[:_MAX_LINES]:
        print(f"Skipped {one.file}: {one.reason}", file=sys.stderr)
    if len(skipped) > _MAX_LINES:
        more = len(skipped) - _MAX_LINES
        print(f"Skipped {more:,} more, listed in predictions.csv.", file=sys.stderr)
