"""Write the report: one HTML page with the paper's numbers, ours, and images of runs.

The page loads nothing. It contains its styles, charts (SVG) and images (WebP).
"""

from __future__ import annotations

import base64
import csv
import io
import os
import re
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..paper import BIRDS, describe_data
from ..utils.errors import UsageError
from ..utils.files import atomic_write
from ..visualization.crops import read_png
from .analyses import bird_part_coverage, crop_names, steps_chart
from .benchmarks import benchmark_chart, format_log_axis
from .paper_tables import PaperTable, TableCell, paper_tables
from .records import changed_settings, overrides_for, read_records, read_result, recipe_steps

MAX_STRIPS, MAX_FRAMES = 4, 16
"""Number of strips in a section, and of frames in a strip."""
_MAX_IMAGE_BYTES = 300_000
_MAX_HEIGHT = 16_383  # pixels of a WebP image
_MIN_SHARE = 0.1
"""Runs with a smaller share of the steps of their recipe are left out, such as those of debug=*."""
_GROUPS = {
    "mnist": "distorted MNIST",
    "svhn": "house numbers",
    "addition": "MNIST addition",
    "colocalisation": "co-localisation",
    "volumes": "volumes",
    "birds": "birds",
}
"""Names of the tables in titles."""
_CYCLE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
_COLOURS = {
    "#000000": "currentColor",
    "#ffffff": "var(--surface)",
    "#cccccc": "var(--line)",
    "#b0b0b0": "var(--line)",
    **{colour: f"var(--series-{n})" for n, colour in enumerate(_CYCLE)},
}
"""Colours of matplotlib, and variables of the page that suit a light and a dark background."""


@dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        folder: the directory.
        record: the result of the run.
        group: the data, such as "distorted MNIST, RTS".
        network: the paper's name of the network.
        changes: settings that differ from the options of the run.
        errors: validation errors in percent by step.
    """

    folder: Path
    record: dict[str, Any]
    group: str
    network: str
    changes: list[str]
    errors: dict[int, float]

    @property
    def title(self) -> str:
        return ", ".join(filter(None, [self.network, self.group, *self.changes]))

    @property
    def section(self) -> str:
        """The section of the page with the crops of this run, "" without a transformer."""
        if self.record["transform"] == "none":
            return ""
        experiment = self.record["experiment"].partition("_")[0]
        return experiment if experiment in ("colocalisation", "birds") else "digits"

    def images(self, name: str) -> dict[int, Path]:
        """Return the images of a kind by step."""
        paths = sorted((self.folder / "crops").glob(f"{name}_{'[0-9]' * 7}.png"))
        return {int(path.stem[-7:]): path for path in paths}


@dataclass(frozen=True)
class FrameStrip:
    """Images of a run at one or more ``steps``: frames below each other in one image."""

    run: Run
    source: str
    size: tuple[int, int]
    steps: list[int]

    @property
    def key_frames(self) -> list[int]:
        """Indices of the first and the last frame, and of two between."""
        last = len(self.steps) - 1
        return sorted({0, min(1, last), last // 2, last})


def write_report(
    out: Path, results: Path, runs: Iterable[Path], conf: Path, docs: Path
) -> list[str]:
    """Write the page to ``out``.

    Args:
        out: the HTML file.
        results: directory of the result files.
        runs: directories that contain run directories, or run directories.
        conf: directory of the configuration.
        docs: directory of the documents that the page links to.

    Returns:
        What could not be shown and why. The page lists it too.

    Raises:
        UsageError: a directory is missing, ``out`` is a directory, or a file in ``results`` is
            not a result.
    """
    if out.is_dir():
        hint = f"Use --out={out / 'index.html'}."
        raise UsageError(f"--out must be a file, got the directory {out}. {hint}")
    if not results.is_dir():
        hint = "Use scripts/make_tables.py --add RUN_DIRECTORY."
        raise UsageError(f"{results} is not a directory of results. {hint}")
    problems: list[str] = []
    tables = paper_tables(results, conf)
    found = _read_runs(runs, tables, conf, problems)
    sections = {
        name: _select_runs([run for run in found if run.section == name])
        for name in ("digits", "colocalisation", "birds")
    }
    lengths = steps_chart(read_records(results / "mnist") + read_records(results / "recipes"), conf)
    content = {
        "tables": tables,
        "compare_to_paper": compare_to_paper,
        "outcomes": count_outcomes(tables.values()),
        "runs": found,
        "curves": _plot_curves(found),
        "lengths": _to_svg(lengths, "lengths", "Test error by length of training"),
        "speed": _plot_speed(results / "benchmarks"),
        "strips": {name: _make_strips(runs, problems) for name, runs in sections.items()},
        "means": _make_strips(sections["digits"], problems, "mean_images", 1),
        "parts": _plot_parts(results, conf),
        "documents": _find_documents(docs, out),
        "problems": problems,
    }
    write_page(out, "report.html", content)
    return problems


def write_page(out: Path, template: str, content: dict[str, Any]) -> None:
    """Fill a template of this package and write the page to ``out``."""
    environment = Environment(
        loader=PackageLoader("spatial_transformer.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template(template).render(content)
    with atomic_write(out) as path:
        path.write_text(page, encoding="utf-8")


def compare_to_paper(cell: TableCell, higher_is_better: bool) -> tuple[str, str]:
    """Compare a cell with the paper at a level of 5 %.

    Returns:
        "better", "same", "worse", "incomparable" or "not-run", and a short text: the difference
        and its p-value, or why there is no comparison.
    """
    if not cell.runs:
        return "not-run", ""
    if cell.paper is None or cell.p is None:
        return "incomparable", cell.caveat
    if cell.p >= 0.05:
        return "same", cell.difference
    is_above = statistics.fmean(cell.values) > cell.paper
    return "better" if is_above == higher_is_better else "worse", cell.difference


def count_outcomes(tables: Iterable[PaperTable]) -> Counter[str]:
    """Return the number of our cells by the outcome of :func:`compare_to_paper`."""
    return Counter(
        compare_to_paper(cell, table.higher_is_better)[0]
        for table in tables
        for cell in table.cells
    )


def _find_documents(docs: Path, out: Path) -> dict[str, str]:
    """Return the titles of the documents by their path relative to the page."""
    return {
        Path(os.path.relpath(path, out.parent)).as_posix(): path.read_text()
        .partition("\n")[0]
        .lstrip("# ")
        for path in sorted(docs.glob("**/*.md"))
    }


def _read_runs(
    folders: Iterable[Path], tables: dict[str, PaperTable], conf: Path, problems: list[str]
) -> list[Run]:
    """Return all finished runs in ``folders``, those with the settings of the tables first."""
    runs = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--runs must be directories, got {folder}, which does not exist.")
        for path in sorted(folder.rglob("metrics.json")):
            try:
                runs.append(_read_run(path.parent, tables, conf))
            except UsageError as error:
                reason = " ".join(str(error).split())
                problems.append(reason if str(path.parent) in reason else f"{path}: {reason}")
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                # A field is missing or has another type.
                reason = f"{type(error).__name__}: {error}"
                problems.append(f"{path} is not the result of a run: {reason}.")
    return sorted(
        runs, key=lambda run: (bool(run.changes), run.group, run.network, run.record["seed"])
    )


def _read_run(folder: Path, tables: dict[str, PaperTable], conf: Path) -> Run:
    record = read_result(folder / "metrics.json")
    steps, full_steps = record["steps"], recipe_steps(record, conf)
    if steps < _MIN_SHARE * full_steps:
        raise UsageError(f"{folder} has only {steps:,} of the {full_steps:,} steps of its recipe.")
    options = overrides_for(record, conf)
    group, network = record["experiment"], f"{record['model']} {record['transform']}"
    for name, table in tables.items():
        for rows in table.networks:
            required = dict(rows.options)
            if "model" in required:  # the quickstart trains a network of Table 1
                del required["experiment"]
            if required and required.items() <= options.items():
                group = _GROUPS[name]
                network = "" if name == "colocalisation" else rows.name
    data = describe_data(record["config"]["data"])
    if "data.distortion" in options:
        data[0] = data[0].upper()
    changes = changed_settings(record, conf)
    changes = [change for change in changes if not change.startswith("recipe.validate_every=")]
    if steps < full_steps:
        changes.append(f"{steps:,} of {full_steps:,} steps")
    errors = _read_errors(folder / "metrics.csv")
    return Run(folder, record, ", ".join([group, *data]), network, changes, errors)


def _read_errors(path: Path) -> dict[int, float]:
    """Return validation errors by step, none if the file is missing."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if row["val/error"]]
        return {int(row["step"]) + 1: float(row["val/error"]) for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"{path} is not the metrics.csv of a run: {reason}.") from error


def _select_runs(runs: list[Run]) -> list[Run]:
    """Return the first seed of each title, one network of every data set before a second one."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.title, run)
    counts: Counter[tuple[bool, str]] = Counter()
    ranked = []
    for run in first.values():
        key = (bool(run.changes), run.group)
        ranked.append((bool(run.changes), counts[key], run))
        counts[key] += 1
    return [run for *_, run in sorted(ranked, key=lambda item: item[:2])]


def _make_strips(
    runs: list[Run], problems: list[str], name: str = "crops", most: int = MAX_FRAMES
) -> list[FrameStrip]:
    """Return the images of some runs, of at most ``most`` steps each and at least the last."""
    strips = (_make_strip(run, problems, name, most) for run in runs)
    return list(islice(filter(None, strips), MAX_STRIPS))


def _make_strip(run: Run, problems: list[str], name: str, most: int) -> FrameStrip | None:
    """Return images of a run as one image, with fewer frames if it becomes too large."""
    paths = run.images(name)
    frames = []
    for step in _subsample(sorted(paths), most):
        try:
            frames.append((step, read_png(paths[step])))
        except ValueError as error:
            problems.append(str(error))
    while frames:
        width, height = frames[-1][1].size
        if height * len(frames) > _MAX_HEIGHT:
            frames = _subsample(frames, _MAX_HEIGHT // height)
        sheet = Image.new("RGB", (width, height * len(frames)))
        for n, (_, image) in enumerate(frames):
            sheet.paste(image.resize((width, height)), (0, n * height))
        source = _encode_webp(sheet, can_shrink=len(frames) == 1)
        if len(source) < _MAX_IMAGE_BYTES:
            return FrameStrip(run, source, (width, height), [step for step, _ in frames])
        frames = _subsample(frames, len(frames) // 2)
    return None


def _subsample(items: list[Any], most: int) -> list[Any]:
    """Return the last, the first and others, more of them early, where crops change most."""
    last = len(items) - 1
    places = {last} | {round(last * (n / (most - 1)) ** 1.5) for n in range(most) if most > 1}
    return [items[place] for place in sorted(places) if items]


def _encode_webp(image: Image.Image, can_shrink: bool = True) -> str:
    """Return an image as a data URI, at half its size or less if it becomes too large."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=60)
    source = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    is_too_large = can_shrink and len(source) >= _MAX_IMAGE_BYTES
    return _encode_webp(image.reduce(2)) if is_too_large else source


def _plot_curves(runs: list[Run]) -> list[tuple[str, Markup]]:
    """Return a chart for each data set, with a line for each network and recipe."""
    groups: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if len(run.errors) > 1:
            precision = run.record["precision"]
            words = [run.network, run.record["recipe"], "" if precision == "32-true" else precision]
            changes = [change.partition(".")[2] for change in run.changes if "=" in change]
            steps = f"{run.record['steps']:,} steps"
            line = ", ".join(filter(None, [*words, *changes, steps]))
            groups[run.group][line].setdefault(run.record["seed"], run)
    order = list(_GROUPS.values())

    def place(group: str) -> tuple[int, str]:
        table = group.partition(",")[0]
        return order.index(table) if table in order else len(order), group

    return [
        (group, _plot_group(group, groups[group], f"curve-{n}"))
        for n, group in enumerate(sorted(groups, key=place))
    ]


def _plot_group(group: str, lines: dict[str, dict[int, Run]], name: str) -> Markup:
    figure = Figure(figsize=(5, 3.2 + 0.32 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    description = [f"Validation error, {group}"]
    lowest = 100.0
    for n, (label, seeds) in enumerate(lines.items()):
        runs = list(seeds.values())
        steps = sorted(set.intersection(*(set(run.errors) for run in runs)))
        if not steps:
            continue
        errors = [[run.errors[step] for run in runs] for step in steps]
        means = [statistics.fmean(values) for values in errors]
        lowest = min(lowest, *map(min, errors))
        if len(seeds) > 1:
            label += f", seeds {', '.join(map(str, seeds))}"
        colour, linestyle = f"C{n % 6}", ("-", "--", ":")[n // 6 % 3]
        text = textwrap.fill(label, 52)
        axes.plot(steps, means, color=colour, linestyle=linestyle, marker=".", label=text)
        if len(seeds) > 1:
            lower, upper = [min(values) for values in errors], [max(values) for values in errors]
            axes.fill_between(steps, lower, upper, color=colour, alpha=0.25)
        ends = f"{means[0]:.2f} % after {steps[0]:,}, {means[-1]:.2f} % at the end"
        description.append(f"{label}: {ends}")
    axes.set(xlabel="training steps", ylabel="validation error, %")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if lowest > 0:  # a logarithmic axis has no place for 0
        format_log_axis(axes.yaxis)
    else:
        axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.6)
    figure.legend(loc="outside lower left", frameon=False)
    return _to_svg(figure, name, "; ".join(description))


def _plot_speed(folder: Path) -> Markup | None:
    chart = benchmark_chart(folder)
    label = "Time of other libraries relative to ours, and time by size"
    return None if chart is None else _to_svg(chart, "speed", label)


def _plot_parts(results: Path, conf: Path) -> list[tuple[str, dict, list[str], Markup]]:
    """Return title, percentages, crops and chart of each recipe that birds were trained with."""
    records = [record for name in BIRDS for record in read_records(results / name)]
    charts: list[tuple[str, dict, list[str], Markup]] = []
    for experiment, network in BIRDS.items():
        for title, parts in bird_part_coverage(records, conf, experiment).items():
            if parts:
                name, crops = f"parts-{len(charts)}", crop_names(parts)
                chart = _plot_part_coverage(parts, crops, name)
                charts.append((f"{network}: {title}", parts, crops, chart))
    return charts


def _plot_part_coverage(parts: dict[str, Any], crops: list[str], name: str) -> Markup:
    figure = Figure(figsize=(5, 1.1 + 0.27 * len(parts)), layout="constrained")
    axes = figure.add_subplot()
    rows = {part: -n for n, part in enumerate(parts)}
    for crop, marker in zip(crops, "os^Dv*Xx"):
        points = [(values[crop], rows[part]) for part, values in parts.items() if crop in values]
        axes.plot(*zip(*points, strict=True), marker, label=crop, alpha=0.85)
    axes.set_yticks(list(rows.values()), list(rows))
    axes.set(xlim=(-3, 103), xlabel="in the crop, % of test images")
    axes.grid(alpha=0.6)
    figure.legend(loc="outside lower left", ncols=3, frameon=False)
    label = "How often each part of a bird is in each crop; the table below has the numbers"
    return _to_svg(figure, name, label)


def _to_svg(figure: Figure, name: str, label: str) -> Markup:
    """Return a chart as SVG with text, the colours of the page, unique ids and a label."""
    file = io.StringIO()
    figure.patch.set_visible(False)
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=metadata)
    svg = file.getvalue().partition("<svg ")[2]
    svg = re.sub("#[0-9a-f]{6}", lambda match: _COLOURS.get(match[0], match[0]), svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"(font: [^';\"]*px )[^;\"]*", r"\1var(--sans)", svg)
    return Markup(f'<svg role="img" aria-label="{escape(label)}" {svg}')
