"""Build the paper's tables from result files, with the paper's numbers and ours."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t

from .. import paper
from .records import matches_config, overrides_for, read_records, recipe_steps
from .significance import format_p, published_p

NOT_RUN = "not run"
Record = dict[str, Any]
SUMMARY_ROWS = {
    "paper, here": "paper, 150,000",
    "`fast`": "fast, 15,000",
    "`long`": "long, 15,000, bf16-mixed",
}
"""Labels of :func:`summary_of_mnist`, and the labels of these rows in Table 1."""
MIN_SEEDS = 3
"""With fewer seeds, values are shown without an interval and are not compared with the paper."""
_FULL_SVHN = 200_000  # train and extra have 235,755 images, less those for validation


def confidence_interval(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and the half-width of its 95 % interval (t), None for one or two values."""
    mean = statistics.fmean(values)
    if len(values) < MIN_SEEDS:
        return mean, None
    quantile = float(t.ppf(0.975, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def format_mean(values: list[float], spec: str = ".2f") -> str:
    """Return ``mean ± half-width (n)``, the values themselves for one or two, or "not run"."""
    if not values:
        return NOT_RUN
    mean, half = confidence_interval(values)
    if half is None:
        return ", ".join(format(value, spec) for value in values)
    return f"{mean:{spec}} ± {half:{spec}} ({len(values)})"


def format_percent(values: list[float]) -> str:
    """Return percentages as :func:`format_mean` does, in whole numbers."""
    return format_mean(values, ".0f")


def markdown_row(cells: Iterable[Any]) -> str:
    """Return a row of a Markdown table. Integers have a comma for thousands."""
    texts = [f"{cell:,}" if isinstance(cell, int) else cell for cell in cells]
    return "|" + "|".join(f" {text} " if text != "" else " " for text in texts) + "|"


def markdown_table(header: list[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table."""
    return "\n".join([markdown_row(header), "|" + "---|" * len(header), *map(markdown_row, rows)])


@dataclass(frozen=True)
class TableCell:
    """A cell of one of the paper's tables.

    Attributes:
        column: the header of its column.
        paper: the paper's number, or None.
        runs: results of our runs.
        values: the metric of each run.
        text: content of the cell.
        options: the options of ``train.py`` for such a run, without the seed.
        caveat: why the values are not comparable with the paper's number; empty if they are.
    """

    column: str
    paper: float | None
    runs: list[Record]
    values: list[float]
    text: str
    options: dict[str, Any]
    caveat: str = ""

    @property
    def p(self) -> float | None:
        """p-value of the difference from the paper's number, None if there is no comparison."""
        if self.paper is None or self.caveat:
            return None
        decimals = 1 if isinstance(self.paper, float) else 0
        return published_p(self.values, self.paper, self.runs[0]["samples"]["test"], decimals)

    @property
    def difference(self) -> str:
        """Our mean minus the paper's number, with its p-value. "–" if there is no comparison."""
        if self.paper is None or self.p is None:
            return "–"
        text = f"{statistics.fmean(self.values) - self.paper:+.2f}, {format_p(self.p)}"
        return text.replace("-", "−")

    @property
    def command(self) -> str:
        """The command that runs or repeats it."""
        options = [
            f"{name}={value}"
            for name, value in self.options.items()
            if (name, value) != ("transform", "none")
        ]
        seeds = sorted({run["seed"] for run in self.runs}) or [1]
        sweep = ["-m"] if len(seeds) > 1 else []
        seed = f"seed={','.join(map(str, seeds))}"
        return shlex.join(["python", "train.py", *sweep, *options, seed])


@dataclass(frozen=True)
class NetworkRows:
    """The rows of one network in one of the paper's tables.

    Attributes:
        name: the paper's name of the network.
        options: the options of ``train.py`` that all of its runs share.
        paper_row: label of the paper's row.
        numbers: the paper's numbers; None if the paper has none for this network.
        rows: label and cells of each of our rows. A network of this project without a run has one
            row, a network of other authors none.
    """

    name: str
    options: dict[str, Any]
    paper_row: str
    numbers: list[float | None] | None
    rows: list[tuple[str, list[TableCell]]]


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables, with our runs.

    Attributes:
        header: of the first two columns.
        columns: headers of the other columns.
        networks: the rows.
        higher_is_better: whether the metric is not an error.
    """

    header: tuple[str, str]
    columns: list[str]
    networks: list[NetworkRows]
    higher_is_better: bool

    @property
    def cells(self) -> list[TableCell]:
        """All cells with our numbers."""
        return [cell for network in self.networks for _, row in network.rows for cell in row]

    def markdown(self) -> str:
        """Return the table as Markdown, with the paper's numbers in italics."""
        rows = []
        for network in self.networks:
            name = f"**{network.name}**"
            if network.numbers is not None:
                numbers = ["–" if number is None else number for number in network.numbers]
                rows.append([name, *(f"*{text}*" for text in [network.paper_row, *numbers])])
                name = ""
            rows += [[name, label, *(cell.text for cell in row)] for label, row in network.rows]
        return markdown_table([*self.header, *self.columns], rows)


def _error(record: Record) -> float:
    return record["metrics"]["test/error"]


def label_recipe(record: Record) -> tuple:
    """Return a sort key and the label of a row: recipe, steps and, for SVHN, number of images."""
    images = ""
    if record["model"] in dict(paper.SVHN_NETWORKS.values()):
        images = f"; {record['samples']['train']:,} images"
    recipe, steps = record["recipe"], record["steps"]
    return recipe, steps, images, f"{recipe}, {steps:,}{images}"


def _label_birds(record: Record) -> tuple:
    recipe, steps, species = record["recipe"], record["steps"], describe_species(record)
    backbone, images = record["config"]["model"]["backbone"], record["samples"]["train"]
    label = f"{backbone}; {recipe}, {steps:,}; {species}, {images:,} images"
    return backbone, recipe, steps, species, images, label


def describe_species(record: Record) -> str:
    """Return which of CUB's species a run was trained on."""
    species = record["config"]["data"]["species"]
    return "all species" if species is None else f"species {species}"


@dataclass(frozen=True)
class TableSpec:
    """Rows and columns of one of the paper's tables.

    Attributes:
        folders: pattern of the directories in results/ with the runs.
        networks: the options of ``train.py`` for each of our networks.
        numbers: the paper's numbers of each network by column; None if it has none.
        columns: headers by the values of ``setting``, or by None for a single column.
        setting: the option of the data that differs between columns.
        paper_row: label of the paper's rows.
        second_hand: networks whose numbers were not read in the paper.
        header: of the first two columns.
        metric: of a run.
        format_values: text of a cell.
        label_row: returns a sort key that ends with the label of the row.
        higher_is_better: whether the metric is not an error.
    """

    folders: str
    networks: Mapping[str, dict[str, Any]]
    numbers: Mapping[str, Mapping[Any, float | None] | None]
    columns: Mapping[Any, str]
    setting: str | None = None
    paper_row: str = "paper"
    second_hand: Collection[str] = ()
    header: tuple[str, str] = ("network", "recipe, steps")
    metric: Callable[[Record], float] = _error
    format_values: Callable[[list[float]], str] = format_mean
    label_row: Callable[[Record], tuple] = label_recipe
    higher_is_better: bool = False


def _options(networks: Mapping[str, tuple[str, str]], experiment: str | None = None) -> dict:
    return {
        name: {"experiment": experiment or model, "model": model, "transform": transform}
        for name, (model, transform) in networks.items()
    }


def birds_options(experiment: str) -> dict[str, Any]:
    """Return the options of a row of Table 3."""
    transform = "none" if experiment == "birds_cnn" else "location"
    size = 448 if "448" in paper.BIRDS[experiment] else 224
    return {"experiment": experiment, "transform": transform, "data.size": size}


SPECS = {
    "mnist": TableSpec(
        folders="mnist",
        networks=_options(paper.NETWORKS, "mnist"),
        numbers={
            name: {**numbers, "tc": paper.CLUTTERED.get(name)}
            for name, numbers in paper.TABLE_1.items()
        },
        columns={name: name.upper() for name in ("r", "rts", "p", "e", "tc")},
        setting="data.distortion",
        paper_row="paper, 150k",
    ),
    "svhn": TableSpec(
        folders="svhn_*",
        networks=_options(paper.SVHN_NETWORKS),
        numbers=paper.TABLE_2,
        columns={64: "64 px", 128: "128 px"},
        setting="data.size",
        paper_row="paper, 400k",
    ),
    "addition": TableSpec(
        folders="mnist_addition",
        networks=_options(paper.ADDITION_NETWORKS, "mnist_addition"),
        numbers={name: {None: error} for name, error in paper.ADDITION.items()},
        columns={None: "error"},
    ),
    "colocalisation": TableSpec(
        folders="colocalisation",
        networks={
            name.upper(): {"experiment": "colocalisation", "data.distortion": name}
            for name in paper.COLOCALISATION
        },
        numbers={
            name.upper(): dict(enumerate(numbers)) for name, numbers in paper.COLOCALISATION.items()
        },
        columns={digit: str(digit) for digit in range(10)},
        setting="data.digit",
        second_hand=("TC",),
        header=("images", "recipe, steps"),
        metric=lambda record: 100 - _error(record),
        format_values=format_percent,
        higher_is_better=True,
    ),
    "volumes": TableSpec(
        folders="mnist_3d",
        networks=_options(paper.VOLUME_NETWORKS, "mnist_3d"),
        numbers=dict.fromkeys(paper.VOLUME_NETWORKS),
        columns={None: "error"},
    ),
    "birds": TableSpec(
        folders="birds_*",
        networks={name: birds_options(experiment) for experiment, name in paper.BIRDS.items()},
        numbers={name: {None: accuracy} for name, accuracy in paper.TABLE_3.items()},
        columns={None: "accuracy"},
        paper_row="paper; all species",
        header=("network", "backbone; recipe, steps; data"),
        metric=lambda record: record["metrics"]["test/accuracy"],
        label_row=_label_birds,
        higher_is_better=True,
    ),
}
"""Table 1 with the cluttered set, Table 2, appendices A.1 to A.3, and Table 3."""


def paper_tables(results: Path, conf: Path) -> dict[str, PaperTable]:
    """Return all of the paper's tables by name, made from the files in ``results``.

    Raises:
        UsageError: a file is not the result of a run.
    """
    tables = {}
    for name, spec in SPECS.items():
        folders = sorted(results.glob(spec.folders))
        records = [record for folder in folders for record in read_records(folder)]
        tables[name] = build_table(spec, records, conf)
    return tables


def build_table(spec: TableSpec, records: Iterable[Record], conf: Path) -> PaperTable:
    """Build one of the paper's tables.

    Args:
        spec: the table.
        records: results of runs. Those that do not match the configuration are left out.
        conf: directory of the configuration.
    """
    runs: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        if not matches_config(record, conf):
            continue
        options, (*order, label) = overrides_for(record, conf), spec.label_row(record)
        precision = options.get("trainer.precision", "")
        key = (*order, precision, ", ".join(filter(None, (label, precision))))
        for name, required in spec.networks.items():
            if required.items() <= options.items():
                runs[name, key, options[spec.setting] if spec.setting else None].append(record)
    networks = []
    for name, numbers in spec.numbers.items():
        keys = sorted({key for network, key, _ in runs if network == name})
        rows = [(key[-1], _build_row(spec, name, key, runs, conf)) for key in keys]
        if not rows and name in spec.networks:
            rows = [("ours", _build_row(spec, name, None, runs, conf))]
        paper_numbers = None if numbers is None else [numbers.get(c) for c in spec.columns]
        paper_row = "paper, second-hand" if name in spec.second_hand else spec.paper_row
        options = spec.networks.get(name, {})
        networks.append(NetworkRows(name, options, paper_row, paper_numbers, rows))
    columns = list(spec.columns.values())
    return PaperTable(spec.header, columns, networks, spec.higher_is_better)


def _build_row(
    spec: TableSpec,
    name: str,
    key: tuple | None,
    runs: dict[tuple, list[Record]],
    conf: Path,
) -> list[TableCell]:
    found = {column: runs.get((name, key, column), []) for column in spec.columns}
    first = next((of_column[0] for of_column in found.values() if of_column), None)
    options = overrides_for(first, conf) if first else spec.networks[name]
    cells = []
    for column, title in spec.columns.items():
        number = (spec.numbers[name] or {}).get(column)
        values = [spec.metric(run) for run in found[column]]
        cells.append(
            TableCell(
                column=title,
                paper=number,
                runs=found[column],
                values=values,
                text=spec.format_values(values),
                options=options | ({spec.setting: column} if spec.setting else {}),
                caveat=_find_caveat(number, name in spec.second_hand, found[column], conf),
            )
        )
    return cells


def _find_caveat(number: float | None, is_second_hand: bool, runs: list[Record], conf: Path) -> str:
    if not runs:
        return NOT_RUN
    if number is None:
        return "no number in the paper"
    if is_second_hand:
        return "second-hand"
    run, full_steps = runs[0], recipe_steps(runs[0], conf)
    if run["model"] in dict(paper.SVHN_NETWORKS.values()):
        images = run["samples"]["train"]
        if images < _FULL_SVHN:
            return f"{images:,} training images"
    if run["config"]["data"].get("species") is not None:
        return describe_species(run)
    if run["steps"] < full_steps:
        return f"{run['steps']:,} of {full_steps:,} steps"
    if run["precision"] != "32-true":
        return run["precision"]
    if len(runs) < MIN_SEEDS:
        return "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    return ""


def difference_table(table: PaperTable) -> str:
    """Return the difference of each comparable cell from the paper's number as Markdown."""
    rows = [
        [f"**{network.name}**", label, *(cell.difference for cell in cells)]
        for network in table.networks
        for label, cells in network.rows
        if any(cell.p is not None for cell in cells)
    ]
    return markdown_table([*table.header, *table.columns], rows) if rows else NOT_RUN


def summary_of_mnist(table: PaperTable) -> str:
    """Return the rows of Table 1 in :data:`SUMMARY_ROWS` as Markdown.

    So the rows of a label have one recipe, length and precision for all networks.
    """
    rows = []
    for network in table.networks:
        numbers = ["–" if number is None else number for number in network.numbers or []]
        rows.append([f"**{network.name}**", "*paper*", *(f"*{number}*" for number in numbers)])
        runs = dict(network.rows)
        for name, label in SUMMARY_ROWS.items():
            if label in runs:
                rows.append(["", name, *(cell.text for cell in runs[label])])
    return markdown_table(["network", "recipe", *table.columns], rows)
