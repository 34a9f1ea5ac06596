"""Records of finished runs, and the tables that are made of them."""

from __future__ import annotations

import copy
import functools
import json
import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from omegaconf import OmegaConf

from .config import composed
from .data.distortions import CORNER_STD, DISTORTIONS
from .errors import UsageError
from .files import replacing
from .paper import (
    ADDITION,
    ADDITION_NETWORKS,
    BIRDS,
    CLUTTERED,
    COLOCALISATION,
    NETWORKS,
    SVHN_NETWORKS,
    TABLE_1,
    TABLE_2,
    TABLE_3,
    VOLUME_NETWORKS,
)
from .run_folder import read_record

NOT_RUN = "not run"
# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records below ``folder``.

    Raises:
        UsageError: a file is not a record.
    """
    return [read_record(path) for path in sorted(folder.rglob("*.json"))]


def read_rows(path: Path) -> dict[str, Any]:
    """A record of measurements, those of ``scripts/slopes.py`` and ``scripts/benchmark.py``: a list of ``rows``, and more.

    Raises:
        UsageError: the file is no such record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not all(isinstance(row, dict) for row in record["rows"]):
            raise ValueError("it has no rows")
        return record
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"{path} is not a record of measurements: {reason}.\nWay out: remove it, or measure again.") from error


def add_record(run: Path, results: Path, into: str | None = None) -> Path:
    """Copies the record of a finished run to its place below ``results``; returns that.

    Args:
        run: the run's folder.
        results: the folder of all records.
        into: the record's folder in it; None is its experiment's.

    Raises:
        UsageError: the run has no record or a damaged one, or its place is taken by a run with other settings.
    """
    source = run / "metrics.json"
    if not source.is_file():
        raise UsageError(f"{run} has no metrics.json: it is not a run folder, or the run has not finished.")
    record = read_record(source)
    target = results / (into or record["experiment"]) / f"{record['label']}-{record['steps']}.json"
    if target.is_file() and read_record(target)["config"] != record["config"]:
        raise UsageError(
            f"{target} is a run with other settings, and would be lost. Way out: --into another folder, a label=NAME of the "
            "run's own, or remove that record first."
        )
    with replacing(target) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    return target


def interval(values: list[float]) -> tuple[float, float | None]:
    """Mean and half-width of its 95 % interval (t); None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = _T_95[min(len(values) - 2, len(_T_95) - 1)]
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def cell(values: list[float]) -> str:
    """Errors of several seeds as ``mean ± half-width (n)``, or "not run"."""
    if not values:
        return NOT_RUN
    mean, half = interval(values)
    return f"{mean:.2f} (1)" if half is None else f"{mean:.2f} ± {half:.2f} ({len(values)})"


_COMPARED = ("data", "transform", "model", "recipe", "task")
_NOT_COMPARED = (
    "_partial_",
    "defaults",
    "distortion",
    "digit",
    "eval_batch_size",
    "size",
    "species",
    "max_steps",
    "total_steps",
    "root",
)


def is_standard(record: dict[str, Any], conf: Path) -> bool:
    """Whether a run had the settings that its options have in the folder ``conf``, but for distortion, seed and length.

    Ablations, and runs of a recipe that has changed since, are not what a table calls by the option's name.
    """
    return not other_settings(record, conf)


def other_settings(record: dict[str, Any], conf: Path) -> list[str]:
    """What of a run's settings its options do not have in the folder ``conf``, each as ``name=value``."""
    expected = _standard(record, conf)
    settings = _flat({group: record["config"][group] or {} for group in expected})
    return [f"{name}={settings.get(name)}" for name in _differing(_flat(expected), settings)]


def _differing(expected: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Names of the settings that are not as expected. One that a run did not know yet was off."""
    return [name for name in expected | settings if (settings.get(name) or None) != (expected.get(name) or None)]


def _standard(record: dict[str, Any], conf: Path) -> dict[str, Any]:
    """The settings of a record's options as the files in ``conf`` have them."""
    whole = copy.deepcopy(_composed(conf, *_chosen(record)))
    whole.seed, whole.trainer.max_steps = record["seed"], record["steps"]
    settings: Any = {group: OmegaConf.to_container(whole[group], resolve=True) for group in _COMPARED if whole[group]}
    return settings


def _chosen(record: dict[str, Any]) -> list[str]:
    return [f"{group}={record[group]}" for group in ("experiment", "model", "transform", "recipe") if record[group] != "none"]


_composed = functools.cache(composed)


def _percent(values: list[float]) -> str:
    """Percentages of several seeds as ``mean ± half-width (n)``, of one as a number."""
    return f"{values[0]:.0f}" if len(values) == 1 else cell(values)


def _error(record: dict[str, Any]) -> float:
    return record["metrics"]["test/error"]


def _length(record: dict[str, Any]) -> tuple:
    """What a run was trained with; where a data set may be there in part, on how many images."""
    part = f"; {record['samples']['train']:,} images" if record["model"] in dict(SVHN_NETWORKS.values()) else ""
    return record["recipe"], record["steps"], part, f"{record['recipe']}, {record['steps']:,}{part}"


@dataclass(frozen=True)
class Cell:
    """A place in one of the paper's tables.

    Args:
        column: its column's head.
        paper: the paper's number, None where it has none.
        runs: records of our runs for it; none is "not run".
        values: the figure of each run.
        text: what a table says.
        options: the options of ``train.py`` that such a run has, but for the seed.
    """

    column: str
    paper: float | None
    runs: list[dict[str, Any]]
    values: list[float]
    text: str
    options: dict[str, Any]

    @property
    def command(self) -> str:
        """What runs it again, or for the first time."""
        options = [f"{name}={value}" for name, value in self.options.items() if (name, value) != ("transform", "none")]
        seeds = sorted({run["seed"] for run in self.runs})
        sweep = ["-m"] if len(seeds) > 1 else []
        return shlex.join(["python", "train.py", *sweep, *options, f"seed={','.join(map(str, seeds or [1]))}"])


@dataclass(frozen=True)
class Network:
    """A network of one of the paper's tables: its ``name``, the paper's ``numbers`` if there are any, and ``rows`` of ours.

    Each row has what it was trained with, and its cells. One that is here but was not run has a single row that says so,
    one of others than the paper's authors has none. ``options`` are those of ``train.py`` that all of its runs have.
    """

    name: str
    options: dict[str, Any]
    numbers: list[float | None] | None
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class Comparison:
    """One of the paper's tables, with our runs."""

    heads: tuple[str, str]
    columns: list[str]
    paper_row: str
    networks: list[Network]
    more_is_better: bool

    def markdown(self) -> str:
        """As a Markdown table, with the paper's numbers in italics."""
        lines = [f"| {' | '.join([*self.heads, *self.columns])} |", "|---|---|" + "---|" * len(self.columns)]
        for network in self.networks:
            name = f"**{network.name}**"
            if network.numbers is not None:
                numbers = [f"*{'–' if number is None else number}*" for number in network.numbers]
                lines.append(f"| {' | '.join([name, f'*{self.paper_row}*', *numbers])} |")
                name = ""
            for about, cells in network.rows:
                lines.append(f"| {name + ' ' * bool(name)}| {' | '.join([about, *(cell.text for cell in cells)])} |")
        return "\n".join(lines)


def options_of(record: dict[str, Any], conf: Path) -> dict[str, Any]:
    """The options of ``train.py`` that a run had, but for its seed and :func:`other_settings`."""
    groups = {group: record[group] for group in ("experiment", "model", "transform", "recipe")}
    data = {f"data.{name}": record["config"]["data"].get(name) for name in ("distortion", "digit", "size", "species")}
    options = groups | {name: value for name, value in data.items() if value is not None}
    if record["steps"] != _composed(conf, *_chosen(record)).trainer.max_steps:
        options["trainer.max_steps"] = record["steps"]
    return options


def _compared(
    records: Iterable[dict[str, Any]],
    conf: Path,
    *,
    columns: Mapping[Any, str],
    setting: str | None,
    networks: Mapping[str, dict[str, Any]],
    paper: Mapping[str, Mapping[Any, float] | None],
    paper_row: str = "paper",
    heads: tuple[str, str] = ("network", "recipe, steps"),
    figure: Callable[[dict[str, Any]], float] = _error,
    text: Callable[[list[float]], str] = cell,
    row: Callable[[dict[str, Any]], tuple] = _length,
    more_is_better: bool = False,
) -> Comparison:
    """The one aggregation of all tables of the paper.

    Args:
        records: of all runs; those that are not :func:`is_standard` stay out.
        conf: the folder of the configuration.
        columns: heads by the values of ``setting``, an option of the data; of None where there is a single column.
        networks: the options that the runs of each have.
        paper: its numbers for each network; None for a network without.
        paper_row: what the paper's rows were trained with.
        heads: of the first two columns.
        figure: of a run.
        text: of the figures in a cell.
        row: what tells rows of one network apart, for sorting, and last what the table says of it.
        more_is_better: whether the figure is not an error.
    """
    found: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if is_standard(record, conf):
            options = options_of(record, conf)
            for name in (name for name, of_network in networks.items() if of_network.items() <= options.items()):
                found[name, row(record), options[setting] if setting else None].append(record)

    def cells(name: str, key: tuple | None) -> list[Cell]:
        runs = {column: found[name, key, column] if key else [] for column in columns}
        options = next((options_of(of_column[0], conf) for of_column in runs.values() if of_column), networks[name])
        made = []
        for column, head in columns.items():
            values = [figure(run) for run in runs[column]]
            of_cell = options | ({setting: column} if setting else {})
            made.append(Cell(head, (paper[name] or {}).get(column), runs[column], values, text(values), of_cell))
        return made

    made = []
    for name, of_paper in paper.items():
        numbers = None if of_paper is None else [of_paper.get(column) for column in columns]
        keys = sorted({key for who, key, _ in found if who == name})
        rows = [(key[-1], cells(name, key)) for key in keys]
        if not rows and name in networks:
            rows = [("ours", cells(name, None))]
        made.append(Network(name, dict(networks.get(name, {})), numbers, rows))
    return Comparison(heads, list(columns.values()), paper_row, made, more_is_better)


def mnist_table(records: Iterable[dict[str, Any]], conf: Path) -> Comparison:
    """Table 1 and the cluttered set: the paper's errors and ours, a row for each recipe and length.

    Args:
        records: of all runs; those that are not :func:`is_standard` stay out.
        conf: the folder of the configuration.
    """
    return _compared(
        records,
        conf,
        columns={name: name.upper() for name in ("r", "rts", "p", "e", "tc")},
        setting="data.distortion",
        networks=_named("mnist", NETWORKS),
        paper={name: {**TABLE_1[name], **({"tc": CLUTTERED[name]} if name in CLUTTERED else {})} for name in NETWORKS},
        paper_row="paper, 150k",
    )


def _named(experiment: str, networks: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, Any]]:
    return {
        name: {"experiment": experiment, "model": model, "transform": transform}
        for name, (model, transform) in networks.items()
    }


def svhn_table(records: Iterable[dict[str, Any]], conf: Path) -> Comparison:
    """Table 2, likewise; a row of ours says how many training images it had, as a part of SVHN may have few.

    Args: as for :func:`mnist_table`.
    """
    return _compared(
        records,
        conf,
        columns={64: "64 px", 128: "128 px"},
        setting="data.size",
        networks={name: {"experiment": model} for name, (model, _) in SVHN_NETWORKS.items()},
        paper=TABLE_2,
        paper_row="paper, 400k",
    )


def addition_table(records: Iterable[dict[str, Any]], conf: Path) -> Comparison:
    """The row of appendix A.1, likewise.

    Args: as for :func:`mnist_table`.
    """
    return _compared(
        records,
        conf,
        columns={None: "error"},
        setting=None,
        networks=_named("mnist_addition", ADDITION_NETWORKS),
        paper={name: {None: error} for name, error in ADDITION.items()},
    )


def colocalisation_table(records: Iterable[dict[str, Any]], conf: Path) -> Comparison:
    """The rows of appendix A.2: percentage of images with an IoU above 0.5, a column for each digit.

    Args: as for :func:`mnist_table`.
    """
    return _compared(
        records,
        conf,
        columns={digit: str(digit) for digit in range(10)},
        setting="data.digit",
        networks={name.upper(): {"experiment": "colocalisation", "data.distortion": name} for name in COLOCALISATION},
        paper={name.upper(): dict(enumerate(of_paper)) for name, of_paper in COLOCALISATION.items()},
        heads=("images", "recipe, steps"),
        figure=lambda record: 100 - _error(record),
        text=_percent,
        more_is_better=True,
    )


def volumes_table(records: Iterable[dict[str, Any]], conf: Path) -> Comparison:
    """Errors on volumes (appendix A.3), likewise; the paper has none.

    Args: as for :func:`mnist_table`.
    """
    return _compared(
        records,
        conf,
        columns={None: "error"},
        setting=None,
        networks=_named("mnist_3d", VOLUME_NETWORKS),
        paper=dict.fromkeys(VOLUME_NETWORKS),
    )


def birds_table(records: Iterable[dict[str, Any]], conf: Path) -> Comparison:
    """Table 3: accuracy of the paper and ours, with the backbone and the species of each row of ours.

    Args: as for :func:`mnist_table`.
    """

    def row(record: dict[str, Any]) -> tuple:
        backbone, species, images = record["config"]["model"]["backbone"], _species(record), record["samples"]["train"]
        about = f"{backbone}; {record['recipe']}, {record['steps']:,}; {species}, {images:,} images"
        return backbone, record["recipe"], record["steps"], species, images, about

    return _compared(
        records,
        conf,
        columns={None: "accuracy"},
        setting=None,
        networks={name: {"experiment": experiment} for experiment, name in BIRDS.items()},
        paper={name: {None: accuracy} for name, accuracy in TABLE_3.items()},
        paper_row="paper; all species",
        heads=("network", "backbone; recipe, steps; data"),
        figure=lambda record: record["metrics"]["test/accuracy"],
        row=row,
        more_is_better=True,
    )


def comparisons(results: Path, conf: Path) -> dict[str, Comparison]:
    """All of the paper's tables, by name, of the records in ``results``.

    Raises:
        UsageError: a file there is not a record.
    """

    def of(family: str) -> list[dict[str, Any]]:
        return [record for folder in sorted(results.glob(family)) for record in read_records(folder)]

    return {
        "mnist": mnist_table(of("mnist"), conf),
        "svhn": svhn_table(of("svhn_*"), conf),
        "addition": addition_table(of("mnist_addition"), conf),
        "colocalisation": colocalisation_table(of("colocalisation"), conf),
        "volumes": volumes_table(of("mnist_3d"), conf),
        "birds": birds_table(of("birds_*"), conf),
    }


def addition_poses(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """How far each digit lies from its usual pose in the output of each transformer, as Markdown.

    Rows for each run: which transformer takes which digit is chance, so a mean over the seeds would say nothing.
    """
    names = {options: name for name, options in ADDITION_NETWORKS.items()}
    rows = []
    for record in records:
        figures = record["metrics"]
        if "test/pose_input_1" not in figures or not is_standard(record, conf):
            continue
        run = f"{names[record['model'], record['transform']]} | {record['recipe']}, {record['steps']:,} | {record['seed']}"
        for who in ("input", "1", "2"):
            if f"test/pose_{who}_1" in figures:
                nearer = "–" if who == "input" else f"{figures[f'test/resolves_first_{who}']:.0f}"
                reader = "nothing: the image" if who == "input" else f"transformer {who}"
                distances = f"{figures[f'test/pose_{who}_1']:.1f} | {figures[f'test/pose_{who}_2']:.1f}"
                rows.append(f"| {run} | {reader} | {distances} | {nearer} |")
    lines = [
        "| network | recipe, steps | seed | read by | first digit, px | second digit, px | first is nearer, % of samples |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) if rows else NOT_RUN


def projective_table(trials: Iterable[dict[str, Any]], records: Iterable[dict[str, Any]], conf: Path) -> str:
    """Errors on P by how far corners are displaced, as Markdown, between the paper's.

    Args:
        trials: records with other displacements or canvases. One that names no displacement is of the time when 5 px was the
            deviation of each coordinate.
        records, conf: as for :func:`mnist_table`; the standard ones on P have a row, too.
    """
    standard = [record for record in records if record["config"]["data"]["distortion"] == "p" and is_standard(record, conf)]
    rows: dict[tuple, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record, default in [*((record, 5.0) for record in trials), *((record, CORNER_STD) for record in standard)]:
        data = record["config"]["data"]
        row = (data.get("corner_std") or default, data["canvas"] or DISTORTIONS["p"].canvas, record["steps"])
        rows[row][record["model"], record["transform"]].append(record["metrics"]["test/error"])
    names = {name: options for name, options in NETWORKS.items() if any(options in found for found in rows.values())}
    lines = [
        "| deviation of each coordinate, px | canvas | steps | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    lines.append("| *paper* | | *150k* | " + " | ".join(f"*{TABLE_1[name]['p']}*" for name in names) + " |")
    for (std, canvas, steps), found in sorted(rows.items()):
        cells = [cell(found.get(options, [])) for options in names.values()]
        lines.append(f"| {std:.2f} | {canvas} | {steps:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if rows else NOT_RUN


def gains_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """By how much each transformer lowers the error of its base network on distorted MNIST, in points, as Markdown.

    Args: as for :func:`mnist_table`. Compared are runs of one recipe and length.
    """
    table = mnist_table(records, conf)
    of_name = {network.name: network for network in table.networks}
    lines = [f"| {' | '.join([*table.heads, *table.columns])} |", "|---|---|" + "---|" * len(table.columns)]
    for name, network in of_name.items():
        base = of_name.get(name.removeprefix("ST-").partition(" ")[0])
        if base is None or base is network:
            continue
        pairs = zip(base.numbers or [], network.numbers or [])
        numbers = ["–" if plain is None or own is None else f"*{plain - own:.1f}*" for plain, own in pairs]
        lines.append(f"| **{name}** | *{table.paper_row}* | {' | '.join(numbers)} |")
        of_base = dict(base.rows)
        for about, cells in network.rows:
            both = zip(of_base.get(about, []), cells)
            gains = [_gain(plain.values, transformed.values) for plain, transformed in both]
            if any(gain != NOT_RUN for gain in gains):
                lines.append(f"| | {about} | {' | '.join(gains)} |")
    return "\n".join(lines)


def _gain(plain: list[float], transformed: list[float]) -> str:
    if not plain or not transformed:
        return NOT_RUN
    return f"{statistics.fmean(plain) - statistics.fmean(transformed):.2f}"


def orientation_table(records: Iterable[dict[str, Any]]) -> str:
    """The spread of angles within each class before and after the transformer, of ``scripts/orientation.py``, as Markdown."""
    lines = ["| run | | mean | " + " | ".join(map(str, range(10))) + " |", "|---|---|---|" + "---|" * 10]
    for record in sorted(records, key=lambda record: (record["label"], record["steps"])):
        name = f"`{record['label']}`, {record['steps']:,} steps"
        for side in ("before", "after"):
            spreads = [row[side] for row in record["rows"]]
            numbers = " | ".join(f"{value:.0f}" for value in [statistics.fmean(spreads), *spreads])
            lines.append(f"| {name} | {side} | {numbers} |")
            name = ""
    return "\n".join(lines) if len(lines) > 2 else NOT_RUN


def times_table(records: Iterable[dict[str, Any]]) -> str:
    """How long the recorded runs took, as Markdown, by experiment, recipe and machine."""
    minutes: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        device = record["device"] + (f", {record['threads']} thread" if record["device"].startswith("cpu") else "")
        about = (record["experiment"], record["model"], record["recipe"], record["steps"], device)
        minutes[about].append(record["seconds"] / 60)
    lines = ["| experiment | model | recipe, steps | on | runs | minutes a run, median |", "|---|---|---|---|---|---|"]
    for (experiment, model, recipe, steps, device), values in sorted(minutes.items()):
        median = statistics.median(values)
        lines.append(f"| {experiment} | {model} | {recipe}, {steps:,} | {device} | {len(values)} | {median:.0f} |")
    return "\n".join(lines)


def colocalisation_choices(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """What was tried where the paper is silent, as Markdown: what each run changed, and the percentage found of each digit.

    Args: as for :func:`mnist_table`; of the standard runs only those with the digits of the others are shown.
    """
    standard = "nothing"
    found: dict[str, dict[tuple, float]] = defaultdict(dict)
    for record in records:
        other = ", ".join(f"`{setting}`" for setting in other_settings(record, conf))
        data = record["config"]["data"]
        found[other or standard][data["distortion"].upper(), data["digit"]] = 100 - record["metrics"]["test/error"]
    columns = sorted({column for other, values in found.items() if other != standard for column in values})
    lines = ["| changed | " + " | ".join(f"{name}, {digit}" for name, digit in columns) + " |", "|---|" + "---|" * len(columns)]
    for other, values in sorted(found.items(), key=lambda item: (item[0] != standard, item[0])):
        cells = [f"{values[column]:.0f}" if column in values else NOT_RUN for column in columns]
        lines.append(f"| {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if columns else NOT_RUN


def svhn_windows(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """How large a window of the image the transformers of Table 2's networks read together, in percent of its side."""
    windows: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        figures = record["metrics"]
        matrices = [
            [[figures[f"{name}/mean_{3 * row + column}"] for column in (0, 1)] for row in (0, 1)]
            for name in ("theta", "theta_2", "theta_3", "theta_4")
            if f"{name}/mean_0" in figures
        ]
        if matrices and is_standard(record, conf):
            # The area of a product is the product of the areas.
            area = math.prod(abs(a * d - b * c) for (a, b), (c, d) in matrices)
            key = (record["model"], record["recipe"], record["steps"], record["config"]["data"]["size"])
            windows[key].append(100 * math.sqrt(area))
    names = {model: name for name, (model, _) in SVHN_NETWORKS.items()}
    lines = ["| network | recipe, steps | crops | side of the window, % |", "|---|---|---|---|"]
    for (model, recipe, steps, size), values in sorted(windows.items()):
        lines.append(f"| {names[model]} | {recipe}, {steps:,} | {size} px | {cell(values)} |")
    return "\n".join(lines) if windows else NOT_RUN


def parts_of_birds(records: Iterable[dict[str, Any]], conf: Path, experiment: str) -> dict[str, dict[str, dict[str, float]]]:
    """How often each part of a bird is in each crop, and how crops lie on the bird's box, in percent, by part and by crop.

    Means over the seeds of an experiment's standard runs, for each recipe.
    """
    runs: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    for record in records:
        if record["experiment"] == experiment and is_standard(record, conf):
            runs[record["recipe"], record["steps"], _species(record)].append(record["metrics"])
    return {
        f"{recipe}, {steps:,} steps; {species}": _parts_of(metrics)
        for (recipe, steps, species), metrics in sorted(runs.items())
    }


BOX, ON_BOX = "the box, of which the crop holds", "the crop, of which is box"


def _parts_of(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for metrics in runs:
        for name, value in metrics.items():
            if name.startswith("test/parts_"):
                who, part = name.removeprefix("test/parts_").split("/")
                figures[part][who].append(value)
        for title, prefix in ((BOX, "test/box_"), (ON_BOX, "test/on_box_")):
            for name, value in metrics.items():
                if name.startswith(prefix):
                    figures[title][name.removeprefix(prefix)].append(value)
    return {
        part: {f"crop {who}" if who.isdigit() else f"{who} crop": statistics.fmean(values[who]) for who in values}
        for part, values in figures.items()
    }


def crops_of(parts: dict[str, dict[str, float]]) -> list[str]:
    """Names of the crops of :func:`parts_of_birds`, the network's before those that it is compared with."""
    return sorted({crop for values in parts.values() for crop in values}, key=lambda crop: (not crop.startswith("crop "), crop))


def parts_table(records: Iterable[dict[str, Any]], conf: Path, experiment: str) -> str:
    """:func:`parts_of_birds` as Markdown, a table for each recipe."""
    tables = []
    for title, parts in parts_of_birds(records, conf, experiment).items():
        crops = crops_of(parts)
        lines = [f"{title}:\n", "| part | " + " | ".join(crops) + " |", "|---|" + "---|" * len(crops)]
        for part, values in parts.items():
            name = f"*{part}*" if part in (BOX, ON_BOX) else part
            lines.append(f"| {name} | " + " | ".join(f"{values[c]:.0f}" if c in values else "–" for c in crops) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables) or NOT_RUN


def slopes_table(records: Iterable[dict[str, Any]]) -> str:
    """Gradients of theta beside slopes of the loss, of records of ``scripts/slopes.py``, as Markdown."""
    lines = [
        "| run | test images | moved by, px | the loss's slope, spread | the gradient, spread | correlation | same sign |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in sorted(records, key=lambda record: record["label"]):
        for row in record["rows"]:
            lines.append(
                f"| `{record['label']}` | {record['samples']} | {row['pixels']} | {row['slope']:.1f} | {row['gradient']:.1f} | "
                f"{row['correlation']:.2f} | {100 * row['same sign']:.0f} % |"
            )
    return "\n".join(lines) if len(lines) > 2 else NOT_RUN


def _species(record: dict[str, Any]) -> str:
    species = record["config"]["data"]["species"]
    return "all species" if species is None else f"species {species}"


def recipe_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """Runs that decided a recipe, as Markdown: what each had that the recipe's file in ``conf`` has not, and its errors."""
    lines = ["| network | distortion | recipe | other than in the file | steps | validation error | test error |"]
    lines.append("|---|---|---|---|---|---|---|")
    names = {options: name for name, options in NETWORKS.items()}

    def place(record: dict[str, Any]) -> tuple:
        return record["model"], record["transform"], record["config"]["data"]["distortion"], record["recipe"], record["steps"]

    for record in sorted(records, key=place):
        settings = _flat(record["config"]["recipe"])
        expected = _flat(_standard(record, conf)["recipe"])
        other = [f"{name} {settings.get(name, 'none')}" for name in _differing(expected, settings)]
        figures = f"{record['metrics']['val/best_error']:.2f} | {record['metrics']['test/error']:.2f}"
        lines.append(
            f"| {names[record['model'], record['transform']]} | {record['config']['data']['distortion'].upper()} | "
            f"{record['recipe']} | {', '.join(other) or '–'} | {record['steps']:,} | {figures} |"
        )
    return "\n".join(lines)


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by their dotted names, but for those that a record need not share with a file."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        elif name == "_target_":
            flat[before + name] = value.rpartition(".")[2]  # whatever module it has moved to
        elif name not in _NOT_COMPARED:
            flat[before + name] = value
    return flat


def steps_chart(records: Iterable[dict[str, Any]], conf: Path) -> Figure:
    """Mean test error against the length of training: a line for each recipe, network and distortion of several lengths."""
    errors: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    names = {options: name for name, options in NETWORKS.items()}
    for record in records:
        if is_standard(record, conf):
            network, distortion = names[record["model"], record["transform"]], record["config"]["data"]["distortion"]
            line = f"{network} on {distortion.upper()}, {record['recipe']} recipe"
            errors[line][record["steps"]].append(record["metrics"]["test/error"])
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for line, lengths in sorted(errors.items()):
        if len(lengths) > 1:
            axes.plot(sorted(lengths), [statistics.fmean(lengths[steps]) for steps in sorted(lengths)], "o-", label=line)
    of_paper = "ST-FCN affine on RTS, the paper's at 150,000"
    axes.axhline(TABLE_1["ST-FCN affine"]["rts"], color="black", linestyle=":", label=of_paper)
    axes.set(xscale="log", yscale="log", xlabel="training steps of 256 samples", ylabel="test error, %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8)
    return figure


def with_tables(text: str, tables: dict[str, str]) -> str:
    """``text`` with what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` replaced by each table.

    Raises:
        UsageError: a mark is missing.
    """
    for name, table in tables.items():
        start, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(start)
        _, end_mark, after = rest.partition(end)
        if not mark or not end_mark:
            raise UsageError(f"the text has no place for table {name}: {start.strip()} ... {end.strip()}")
        text = before + start + table + "\n" + end + after
    return text
