"""The report: one HTML page with the paper's numbers beside ours, and what run folders show of how they came about.

The page asks nothing of the network: styles, charts (SVG) and pictures (WebP) are in it.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from ..paper import BIRDS, describe_data
from ..utils.errors import UsageError
from ..utils.files import atomic_write
from ..visualization.crops import read_png
from .analyses import bird_part_coverage, crop_names, steps_chart
from .benchmarks import benchmark_chart
from .paper_tables import PaperTable, TableCell, confidence_interval, paper_tables
from .records import changed_settings, overrides_for, read_records, read_result

FILMS, FRAMES, WIDTH = 4, 16, 1060
"""A section shows so many films of so many frames at most, so many pixels wide: the page stays light."""
_FILM_BYTES = 300_000
_GROUPS = {
    "mnist": "distorted MNIST",
    "svhn": "house numbers",
    "addition": "MNIST addition",
    "colocalisation": "co-localisation",
    "volumes": "volumes",
    "birds": "birds",
}
"""Names of the tables in titles."""
_COLOURS = {
    "#000000": "currentColor",
    "#ffffff": "var(--surface)",
    "#cccccc": "var(--line)",
    "#b0b0b0": "var(--line)",
} | {
    colour: f"var(--series-{n})"
    for n, colour in enumerate(("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"))
}
"""Colours of matplotlib, and what they are on the page: those suit light and dark."""


@dataclass(frozen=True)
class Run:
    """A finished run's folder: its record, where it belongs, and its validation errors in percent by the steps before them."""

    folder: Path
    record: dict[str, Any]
    group: str
    network: str
    other: list[str]
    errors: dict[int, float]

    @property
    def title(self) -> str:
        return ", ".join(filter(None, [self.network, self.group, *self.other]))

    def pictures(self, name: str) -> dict[int, Path]:
        """By the step in their names."""
        return {
            int(path.stem[-7:]): path
            for path in sorted((self.folder / "crops").glob(f"{name}_{'[0-9]' * 7}.png"))
        }


@dataclass(frozen=True)
class FrameStrip:
    """What a run's transformer reads, at ``steps``: frames below each other in one picture."""

    run: Run
    source: str
    size: tuple[int, int]
    steps: list[int]

    @property
    def key_frames(self) -> list[int]:
        """Numbers of some frames: the first, the last, and two between."""
        last = len(self.steps) - 1
        return sorted({0, min(1, last), last // 2, last})


def write_report(
    out: Path, results: Path, runs: Iterable[Path], conf: Path, docs: Path
) -> list[str]:
    """Writes the page to ``out``; returns what could not be shown, each with its reason, as the page says too.

    Args:
        out: the HTML file.
        results: the folder of the records.
        runs: folders that hold run folders, or are one.
        conf: the folder of the configuration.
        docs: the folder of the documents that the page links to.

    Raises:
        UsageError: a folder is missing or in the page's place, or a file in ``results`` is not a record.
    """
    if out.is_dir():
        raise UsageError(
            f"--out must be a file, got the directory {out}. Use --out={out / 'index.html'}."
        )
    if not results.is_dir():
        raise UsageError(
            f"{results} is not a directory of results. Use scripts/make_tables.py --add RUN_DIRECTORY."
        )
    problems: list[str] = []
    tables = paper_tables(results, conf)
    found = _read_runs(runs, tables, conf, problems)
    birds = [record for experiment in BIRDS for record in read_records(results / experiment)]
    content = {
        "tables": tables,
        "compare_to_paper": compare_to_paper,
        "tally": _count_outcomes(tables.values()),
        "runs": found,
        "curves": _curves(found),
        "lengths": _lengths(results, conf),
        "speed": _speed(results / "benchmarks"),
        "films": {
            family: _films([run for run in found if _family(run.record) == family], problems)
            for family in ("digits", "colocalisation", "birds")
        },
        "means": _means([run for run in found if _family(run.record) == "digits"], problems),
        "parts": [
            (
                f"{BIRDS[experiment]}: {title}",
                parts,
                crop_names(parts),
                _parts_chart(parts, f"parts-{experiment}-{n}"),
            )
            for experiment in BIRDS
            for n, (title, parts) in enumerate(bird_part_coverage(birds, conf, experiment).items())
            if parts
        ],
        "documents": {
            Path(os.path.relpath(path, out.parent)).as_posix(): path.read_text()
            .partition("\n")[0]
            .lstrip("# ")
            for path in sorted(docs.glob("**/*.md"))
        },
        "problems": problems,
    }
    environment = Environment(
        loader=PackageLoader("spatial_transformer.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html").render(content)
    with atomic_write(out) as path:
        path.write_text(page, encoding="utf-8")
    return problems


def compare_to_paper(cell: TableCell, higher_is_better: bool) -> tuple[str, str] | None:
    """How ours compares with the paper's number, as a class of styles and in words; None where there is nothing to compare.

    A difference that vanishes at the paper's precision is none, and one inside our interval may be chance.
    """
    if cell.paper is None or not cell.runs:
        return None
    mean, half = confidence_interval(cell.values)
    decimals = 1 if isinstance(cell.paper, float) else 0
    difference = f"{mean - cell.paper:+.{decimals + 1 if decimals else 0}f}".replace("-", "−")
    if round(mean, decimals) == cell.paper:
        return "same", "= equal"
    if half is not None and abs(mean - cell.paper) <= half:
        return "same", f"{difference} within ±"
    better = (mean > cell.paper) == higher_is_better
    return ("better", f"{difference} better") if better else ("worse", f"{difference} worse")


def _count_outcomes(tables: Iterable[PaperTable]) -> dict[str, int]:
    """How many cells of ours there are, were run, and how they compare."""
    cells = [
        (cell, table)
        for table in tables
        for network in table.networks
        for _, row in network.rows
        for cell in row
    ]
    told = [compare_to_paper(cell, table.higher_is_better) for cell, table in cells]
    counted = {
        kind: sum(one is not None and one[0] == kind for one in told)
        for kind in ("better", "same", "worse")
    }
    return {"cells": len(cells), "run": sum(bool(cell.runs) for cell, _ in cells)} | counted


def _read_runs(
    folders: Iterable[Path], tables: dict[str, PaperTable], conf: Path, problems: list[str]
) -> list[Run]:
    """All finished runs in ``folders``, those with the settings of the tables first."""
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"--runs must be directories of runs, got {folder}, which does not exist."
            )
        for path in sorted(folder.rglob("metrics.json")):
            try:
                runs.append(_read_run(path.parent, tables, conf))
            except UsageError as error:
                reason = " ".join(str(error).split())
                problems.append(reason if str(path.parent) in reason else f"{path}: {reason}")
            except (
                KeyError,
                TypeError,
                ValueError,
                AttributeError,
            ) as error:  # a field is missing or of another type
                problems.append(
                    f"{path} is not the result file of a run: {type(error).__name__}: {error}."
                )
    return sorted(
        runs, key=lambda run: (bool(run.other), run.group, run.network, run.record["seed"])
    )


def _read_run(folder: Path, tables: dict[str, PaperTable], conf: Path) -> Run:
    record = read_result(folder / "metrics.json")
    options = overrides_for(record, conf)
    group, network = record["experiment"], f"{record['model']} {record['transform']}"
    for name, table in tables.items():
        for one in table.networks:
            # A model's name says enough: the quickstart's runs are of Table 1's networks.
            wanted = one.options.items() - (
                {("experiment", one.options["experiment"])} if "model" in one.options else set()
            )
            if wanted and wanted <= options.items():
                group, network = _GROUPS[name], "" if name == "colocalisation" else one.name
    of_data = describe_data(record["config"]["data"])
    if "data.distortion" in options:
        of_data[0] = of_data[0].upper()
    group = ", ".join([group, *of_data])
    return Run(
        folder,
        record,
        group,
        network,
        changed_settings(record, conf),
        _errors(folder / "metrics.csv"),
    )


def _errors(path: Path) -> dict[int, float]:
    """Validation errors by the number of steps before them; none without the file.

    Raises:
        UsageError: the file is not what a run writes.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if row["val/error"]]
        return {int(row["step"]) + 1: float(row["val/error"]) for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(
            f"{path} is not the metrics.csv of a run: {type(error).__name__}: {error}."
        ) from error


def _family(record: dict[str, Any]) -> str:
    """Which section shows a run's crops."""
    if record["transform"] == "none":
        return ""
    return next(
        (name for name in ("colocalisation", "birds") if record["experiment"].startswith(name)),
        "digits",
    )


def _first_seed_only(runs: list[Run]) -> list[Run]:
    """The first run of each title, as its seeds show much the same; of each data set the first before any second."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.title, run)
    of_group: dict[tuple[bool, str], int] = defaultdict(int)
    places: dict[str, tuple[bool, int]] = {}
    for title, run in first.items():
        place = bool(run.other), run.group
        places[title] = bool(run.other), of_group[place]
        of_group[place] += 1
    return [first[title] for title in sorted(first, key=places.__getitem__)]


def _films(runs: list[Run], problems: list[str]) -> list[FrameStrip]:
    films: list[FrameStrip] = []
    for run in _first_seed_only(runs):
        if len(films) < FILMS and (film := _film(run, problems)) is not None:
            films.append(film)
    return films


def _film(run: Run, problems: list[str]) -> FrameStrip | None:
    """Some crops of a run in one picture; fewer where they weigh too much."""
    paths = run.pictures("crops")
    pictures = [
        (n, picture)
        for n in _subsample(sorted(paths), FRAMES)
        if (picture := _load_image(paths[n], problems)) is not None
    ]
    if not pictures:
        return None
    size = pictures[-1][1].size
    while True:
        sheet = Image.new("RGB", (size[0], size[1] * len(pictures)))
        for n, (_, picture) in enumerate(pictures):
            sheet.paste(picture.resize(size), (0, n * size[1]))
        source = _webp(sheet)
        if len(source) < _FILM_BYTES or len(pictures) == 1:
            return FrameStrip(run, source, size, [step for step, _ in pictures])
        pictures = _subsample(pictures, len(pictures) // 2)


def _subsample(items: list[Any], most: int) -> list[Any]:
    """The last, the first, and more from the beginning than from the end, as what is learned first changes the most."""
    last = len(items) - 1
    places = {last} | {round(last * (n / (most - 1)) ** 1.5) for n in range(most) if most > 1}
    return [items[place] for place in sorted(places) if items]


def _means(runs: list[Run], problems: list[str]) -> list[tuple[Run, int, str, tuple[int, int]]]:
    """The last mean images of each class: of which run, after how many steps, the picture and its size."""
    means: list[tuple[Run, int, str, tuple[int, int]]] = []
    for run in _first_seed_only(runs):
        paths = run.pictures("mean_images")
        if (
            paths
            and len(means) < FILMS
            and (picture := _load_image(paths[max(paths)], problems)) is not None
        ):
            means.append((run, max(paths), _webp(picture), picture.size))
    return means


def _load_image(path: Path, problems: list[str]) -> Image.Image | None:
    """A picture no wider than the page's, of strips more than twice as wide the left half.

    None, and a problem, where it cannot be read.
    """
    try:
        picture = read_png(path)
    except ValueError as error:
        problems.append(str(error))
        return None
    if picture.width >= 2 * WIDTH:
        picture = picture.crop((0, 0, picture.width // 2, picture.height))
    scale = min(1, WIDTH / picture.width)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _webp(picture: Image.Image) -> str:
    """As a data URI."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=60)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _curves(runs: list[Run]) -> list[tuple[str, Markup]]:
    """A chart for each data set: validation error over the steps, a line for each network."""
    groups: dict[str, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if len(run.errors) > 1:
            precision = "" if run.record["precision"] == "32-true" else run.record["precision"]
            words = [
                run.network,
                run.record["recipe"],
                precision,
                *(setting.partition(".")[2] for setting in run.other),
            ]
            about = ", ".join(filter(None, words))
            groups[run.group][f"{about}, {run.record['steps']:,} steps"].append(run)
    tables = list(_GROUPS.values())

    def place(group: str) -> tuple[int, str]:
        table = group.partition(",")[0]
        return tables.index(table) if table in tables else len(tables), group

    return [
        (group, _curve(group, groups[group], f"curve-{n}"))
        for n, group in enumerate(sorted(groups, key=place))
    ]


def _curve(group: str, lines: dict[str, list[Run]], name: str) -> Markup:
    figure = Figure(figsize=(5, 3.2 + 0.2 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    said = [f"Validation error, {group}"]
    lowest = min(error for runs in lines.values() for run in runs for error in run.errors.values())
    for n, (label, runs) in enumerate(lines.items()):
        steps = sorted(set.intersection(*(set(run.errors) for run in runs)))
        seeds = [[run.errors[step] for run in runs] for step in steps]
        means = [statistics.fmean(values) for values in seeds]
        label += (
            f", seeds {', '.join(str(run.record['seed']) for run in runs)}" if len(runs) > 1 else ""
        )
        colour = f"C{n % 6}"
        axes.plot(
            steps,
            means,
            color=colour,
            linestyle=("-", "--", ":")[n // 6 % 3],
            marker=".",
            label=label,
        )
        if len(runs) > 1:
            axes.fill_between(
                steps, list(map(min, seeds)), list(map(max, seeds)), color=colour, alpha=0.25
            )
        if steps:
            said.append(
                f"{label}: {means[0]:.2f} % after {steps[0]:,}, {means[-1]:.2f} % at the end"
            )
    axes.set(xlabel="training steps", ylabel="validation error, %")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if lowest > 0:  # a logarithmic axis has no place for 0
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.6)
    figure.legend(loc="outside lower left", frameon=False)
    return _svg(figure, name, "; ".join(said))


def _lengths(results: Path, conf: Path) -> Markup:
    records = read_records(results / "mnist") + read_records(results / "recipes")
    return _svg(
        steps_chart(records, conf),
        "lengths",
        "Test error against the length of training, for each recipe",
    )


def _parts_chart(parts: dict[str, dict[str, float]], name: str) -> Markup:
    figure = Figure(figsize=(5, 1.1 + 0.27 * len(parts)), layout="constrained")
    axes = figure.add_subplot()
    rows = {part: -n for n, part in enumerate(parts)}
    markers = dict(zip(crop_names(parts), "os^Dv*Xx"))
    for crop, marker in markers.items():
        points = [(values[crop], rows[part]) for part, values in parts.items() if crop in values]
        axes.plot(*zip(*points), marker, label=crop, alpha=0.85)
    axes.set_yticks(list(rows.values()), list(rows))
    axes.set(xlim=(-3, 103), xlabel="in the crop, % of test images")
    axes.grid(alpha=0.6)
    figure.legend(loc="outside lower left", ncols=3, frameon=False)
    return _svg(
        figure,
        name,
        "How often each part of a bird is in each crop; the figures are in the table below",
    )


def _speed(folder: Path) -> Markup | None:
    if (chart := benchmark_chart(folder)) is None:
        return None
    return _svg(
        chart, "speed", "Time of other implementations as a multiple of ours, and time against size"
    )


def _svg(figure: Figure, name: str, label: str) -> Markup:
    """A chart as part of the page: its text is text, its colours are the page's, its ids are its own, and a label tells it."""
    file = io.StringIO()
    figure.patch.set_visible(False)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = file.getvalue()
    svg = re.sub(
        "#[0-9a-f]{6}", lambda colour: _COLOURS.get(colour[0], colour[0]), svg[svg.index("<svg") :]
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"(font: [^';\"]*px )[^;\"]*", r"\1var(--sans)", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))
