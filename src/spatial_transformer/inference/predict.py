"""Predict your own images with a trained network, in memory or in files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from ..data.io.image_arrays import ImageLike, to_pictures
from ..data.io.image_files import list_pictures, read_picture
from ..tasks.spsa import evaluation_mode
from ..transformer.recorder import find_transformers
from ..utils.errors import UsageError
from ..utils.files import atomic_write
from ..utils.text import csv_cell, one_line, printable
from ..visualization.crops import draw_crop_outlines, render_columns, row_labels
from ..visualization.drawing import CropGeometry, image_grid
from . import infer
from .load import Trained, load_trained

MAX_OVERVIEW = 48
"""Number of pictures in the overview. A larger sheet would be unreadable."""
UNSURE = 0.5
"""Predictions with a lower confidence get the note "unsure"."""
_BATCH_SIZE = 32
_SIDE = 168  # side of an image in the overview, in pixels


class Predictions(NamedTuple):
    """Predictions for B images, and the crops of the spatial transformers.

    Attributes:
        labels: ``(B,)`` predicted classes, or ``(B, positions)`` for house numbers.
        texts: the B labels as text.
        confidences: ``(B,)`` probabilities of the predictions.
        thetas: theta of each transformer, ``(B, n_params)``, or ``(B, n, n_params)`` for n
            transformers in parallel. Empty without transformers.
        crops: output of each transformer, ``(B, C, H', W')``, or ``(B, n C, H', W')``.
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
    """The prediction for a file.

    Attributes:
        file: name of the file, with escaped control characters.
        text: the predicted label as text.
        confidence: probability of the prediction.
        theta: parameters of all transformers. Empty without transformers.
        note: remarks, such as "unsure".
        column: images for the overview, from top to bottom.
        labels: what these images are.
    """

    file: str
    text: str
    confidence: float
    theta: list[float]
    note: str
    column: list[Image.Image]
    labels: list[str]

    @property
    def caption(self) -> str:
        """The prediction as a caption."""
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
        trained: result of :func:`~spatial_transformer.inference.load.load_trained`.
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
    _check_takes_pictures(trained)
    views = []
    for n, picture in enumerate(to_pictures(images)):
        try:
            views.append(trained.data.preprocess_picture(picture).image)
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
    task = trained.task
    images = images.to(next(task.parameters()))  # its device and dtype
    with evaluation_mode(task):
        logits, thetas, crops = infer(task.network, images)
    labels = task.predictions(logits)
    texts = trained.data.decode_labels(labels)
    return Predictions(labels, texts, task.confidences(logits), thetas, crops, images)


def _check_takes_pictures(trained: Trained) -> None:
    if trained.data.unsupported_reason:
        raise UsageError(
            f"{trained.config.label} cannot be used on your own pictures: "
            f"{trained.data.unsupported_reason}. "
            "Use a run of experiment=mnist, svhn_... or birds_..."
        )
    _ = trained.data.names  # some data modules read them from files, which may be missing


def predict(config: DictConfig) -> list[FilePrediction]:
    """Predict picture files one by one.

    Prints each prediction, and writes it to ``predictions.csv`` and ``crops/`` in the directory
    ``config.out``. At the end it writes ``overview.png``. Files that cannot be predicted are listed
    in ``predictions.csv`` with the reason.

    Returns:
        The predictions, without the skipped files.

    Raises:
        UsageError: a setting is wrong, no file can be predicted, or nothing can be written.
    """
    place, out = Path(str(config.images)), Path(str(config.out))  # or 2026 is a number
    files = list_pictures(place)
    if out.resolve() == (place if place.is_dir() else place.parent).resolve():
        raise UsageError(f"out must not be the directory of the pictures, got {out}.")
    trust = config.get("trust") or ()
    trained = load_trained(config.run, config.checkpoint, config.data.root, trust)
    _check_takes_pictures(trained)
    trained.task.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        predictions = _predict_files(trained, files, out)
    except OSError as error:
        raise UsageError(
            f"out={out} cannot be written: {error}. Use out=DIRECTORY to choose another."
        ) from error
    if not predictions:
        table = out / "predictions.csv"
        raise UsageError(f"images={printable(str(place))}: nothing to predict, see {table}.")
    print(f"Wrote predictions.csv, overview.png and crops/ to {out}.")
    return predictions


def _predict_files(trained: Trained, files: Sequence[Path], out: Path) -> list[FilePrediction]:
    """Predict files and write all results to a directory."""
    transformers = find_transformers(trained.task.network)
    n_params = sum(t.parallel * t.transform.n_params for t in transformers)
    predictions: list[FilePrediction] = []
    out.mkdir(parents=True, exist_ok=True)
    with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        names = [f"theta_{k}" for k in range(1, n_params + 1)]
        writer.writerow(["file", "prediction", "confidence", "note", *names])
        for file in files:
            table.flush()
            try:
                result = _predict_file(trained, file)
            except UsageError as error:
                name, reason = printable(file.name), one_line(error)
                writer.writerow([csv_cell(name), "", "", f"skipped: {reason}"])
                print(f"Skipped {name}: {reason}", file=sys.stderr)
                continue
            print(f"{result.file}: {result.caption}  {result.note}".rstrip())
            with atomic_write(out / "crops" / f"{result.file}.png") as path:
                image_grid([result.column], [result.caption]).save(path, "PNG")
            row = [csv_cell(result.file), csv_cell(result.text), f"{result.confidence:.4f}"]
            writer.writerow([*row, result.note, *(f"{value:.5f}" for value in result.theta)])
            is_shown = len(predictions) < MAX_OVERVIEW
            predictions.append(result if is_shown else result._replace(column=[]))  # frees memory
    if not predictions:
        return []
    n, shown = len(predictions), predictions[:MAX_OVERVIEW]
    title = f"the first {len(shown)} of {n:,} pictures" if n > len(shown) else ""
    captions = [f"{prediction.file}: {prediction.caption}" for prediction in shown]
    overview = image_grid([p.column for p in shown], captions, title, shown[0].labels)
    with atomic_write(out / "overview.png") as path:
        overview.save(path, "PNG")
    return predictions


def _predict_file(trained: Trained, file: Path) -> FilePrediction:
    """Predict a picture and draw it with the crops of the network."""
    picture = read_picture(file)
    data = trained.data
    view = data.preprocess_picture(picture)
    found = _predict_batch(trained, view.image[None])
    confidence = found.confidences.item()
    notes = ["unsure"] if confidence < UNSURE else []
    if view.note:
        notes.append(view.note)
    readings: list[CropGeometry] = []
    if found.thetas:
        readings = CropGeometry.from_thetas(trained.task.network, found.thetas, found.inputs)
    scene = _crop_scene(picture, view.box, _SIDE)
    (images,) = render_columns(data, found.inputs, readings, _SIDE)
    return FilePrediction(
        file=printable(file.name),
        text=printable(found.texts[0]),
        confidence=confidence,
        theta=[value for theta in found.thetas for value in theta.flatten().tolist()],
        note="; ".join(notes),
        column=[draw_crop_outlines(scene, readings, 0), *images],
        labels=["your image", *row_labels(readings)],
    )


def _crop_scene(picture: Image.Image, box: tuple[float, ...], side: int) -> Image.Image:
    """Return a box of a picture, ``side`` pixels large, black outside of the picture."""
    left, top, right, bottom = (round(edge) for edge in box)
    # Reduced before it is cut: the box may be much larger than the picture.
    scale = side / max(right - left, bottom - top, 1)
    if scale < 1:
        reduced = [max(1, round(edge * scale)) for edge in picture.size]
        picture = picture.resize(reduced, Image.Resampling.BOX)
        left, top, right, bottom = (round(edge * scale) for edge in box)
    picture = picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    return picture.resize((side, side), Image.Resampling.BILINEAR)
