"""What a trained network takes one's own pictures for, and where it looks."""

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

from .building import Trained, load_trained
from .callbacks.drawing import Reading, strip
from .callbacks.pictures import columns_of, with_regions
from .config import PredictionConfig, check_names
from .data.picture_files import View, list_pictures, read_picture
from .errors import UsageError
from .files import replacing

OVERVIEW = 48
"""As many pictures are shown in the overview; more would make a sheet that no one can look at."""
_AT_ONCE = 50  # pictures that a network sees at once
_SIDE = 168  # pixels of an image on the screen, about
_ROWS = 40  # of the table on the screen
_LONGEST_NAME = 240  # bytes; file systems take 255, and a picture's own name adds to it


class Prediction(NamedTuple):
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


def predict(config: DictConfig) -> list[Prediction]:
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
    if trained.data.no_pictures:
        raise UsageError(
            f"{config.run} cannot be used on your own pictures: {trained.data.no_pictures}. Way out: a run of "
            "experiment=mnist, svhn_... or birds_..."
        )
    trained.data.names  # noqa: B018  where they are read from files, let it fail before any work
    left_out: list[str] = []
    predictions: list[Prediction] = []
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


def _predictions(trained: Trained, files: Sequence[Path], left_out: list[str]) -> Iterator[Prediction]:
    """Predicts in batches; tells of files without a prediction in ``left_out``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained.task.to(device)
    views = _views(trained, files, left_out)
    while batch := list(itertools.islice(views, _AT_ONCE)):
        names, scenes, seen = zip(*batch, strict=True)
        yield from _of_batch(trained, names, scenes, seen, device)


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


@torch.inference_mode()
def _of_batch(
    trained: Trained, names: Sequence[str], scenes: Sequence[Image.Image], views: Sequence[View], device: torch.device
) -> Iterator[Prediction]:
    data, task = trained.data, trained.task
    images = torch.stack([view.image for view in views]).to(device)
    readings, logits = Reading.of(task.network, images)
    thetas = torch.cat([theta for reading in readings for theta in reading.thetas], dim=1).tolist() if readings else []
    texts, confidences = data.texts(task.predictions(logits)), task.confidences(logits).tolist()
    columns = columns_of(data, images, readings, _zoom(data.input_size))
    for n, (name, scene, view) in enumerate(zip(names, scenes, views, strict=True)):
        column = [with_regions(scene, readings, n), *columns[n]]
        yield Prediction(name, texts[n], confidences[n], thetas[n] if thetas else [], view.note, column)


def _zoom(size: int) -> float:
    """Screen pixels to a pixel of an image of ``size``."""
    return float(round(_SIDE / size)) or 0.5


def _write(predictions: Sequence[Prediction], out: Path) -> None:
    heads = ["file", "prediction", "confidence", *(f"theta_{k}" for k in range(1, len(predictions[0].theta) + 1))]
    with replacing(out / "predictions.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        rows = ([p.file, p.text, f"{p.confidence:.4f}", *(f"{value:.5f}" for value in p.theta)] for p in predictions)
        csv.writer(file).writerows([heads, *rows])
    shown = predictions[:OVERVIEW]
    title = f"the first {len(shown)} of {len(predictions):,} pictures" if len(shown) < len(predictions) else ""
    with replacing(out / "overview.png") as path:
        strip([p.column for p in shown], [f"{p.file}: {p.caption}" for p in shown], title).save(path, "PNG")


def _table(predictions: Sequence[Prediction], out: Path) -> str:
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
