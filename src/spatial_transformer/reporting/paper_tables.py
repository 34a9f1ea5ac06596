"""The paper's tables, with our numbers from the records of finished runs beside its own."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..paper import (
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
from .records import matches_config, overrides_for, read_records

NOT_RUN = "not run"
# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def confidence_interval(values: list[float]) -> tuple[float, float | None]:
    """Mean and half-width of its 95 % interval (t); None for a single value.

    Of more than eleven values the interval is a little too wide: its quantile is that of eleven.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    quantile = _T_95[min(len(values) - 2, len(_T_95) - 1)]
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def format_mean(values: list[float]) -> str:
    """Errors of several seeds as ``mean ± half-width (n)``, or "not run"."""
    if not values:
        return NOT_RUN
    mean, half = confidence_interval(values)
    return f"{mean:.2f} (1)" if half is None else f"{mean:.2f} ± {half:.2f} ({len(values)})"


def format_percent(values: list[float]) -> str:
    """Percentages of several seeds as ``mean ± half-width (n)`` of whole numbers, of one as a number."""
    if len(values) < 2:
        return f"{values[0]:.0f}" if values else NOT_RUN
    mean, half = confidence_interval(values)
    return f"{mean:.0f} ± {half:.0f} ({len(values)})"


def _error(record: dict[str, Any]) -> float:
    return record["metrics"]["test/error"]


def _recipe_label(record: dict[str, Any]) -> tuple:
    """What a run was trained with; where a data set may be there in part, on how many images."""
    part = (
        f"; {record['samples']['train']:,} images"
        if record["model"] in dict(SVHN_NETWORKS.values())
        else ""
    )
    return record["recipe"], record["steps"], part, f"{record['recipe']}, {record['steps']:,}{part}"


def species_of(record: dict[str, Any]) -> str:
    """Which of CUB's species a run of birds was of."""
    species = record["config"]["data"]["species"]
    return "all species" if species is None else f"species {species}"


@dataclass(frozen=True)
class TableCell:
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
        options = [
            f"{name}={value}"
            for name, value in self.options.items()
            if (name, value) != ("transform", "none")
        ]
        seeds = sorted({run["seed"] for run in self.runs})
        sweep = ["-m"] if len(seeds) > 1 else []
        return shlex.join(
            ["python", "train.py", *sweep, *options, f"seed={','.join(map(str, seeds or [1]))}"]
        )


@dataclass(frozen=True)
class NetworkRows:
    """A network of one of the paper's tables: its ``name``, the paper's ``numbers`` if there are any, and ``rows`` of ours.

    Each row has what it was trained with, and its cells. One that is here but was not run has a single row that says so,
    one of others than the paper's authors has none. ``options`` are those of ``train.py`` that all of its runs have.
    """

    name: str
    options: dict[str, Any]
    numbers: list[float | None] | None
    rows: list[tuple[str, list[TableCell]]]


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables, with our runs."""

    header: tuple[str, str]
    columns: list[str]
    paper_row: str
    networks: list[NetworkRows]
    higher_is_better: bool

    def markdown(self) -> str:
        """As a Markdown table, with the paper's numbers in italics."""
        lines = [
            f"| {' | '.join([*self.header, *self.columns])} |",
            "|---|---|" + "---|" * len(self.columns),
        ]
        for network in self.networks:
            name = f"**{network.name}**"
            if network.numbers is not None:
                numbers = [f"*{'–' if number is None else number}*" for number in network.numbers]
                lines.append(f"| {' | '.join([name, f'*{self.paper_row}*', *numbers])} |")
                name = ""
            for about, cells in network.rows:
                lines.append(
                    f"| {name + ' ' * bool(name)}| {' | '.join([about, *(cell.text for cell in cells)])} |"
                )
        return "\n".join(lines)


def _build_table(
    records: Iterable[dict[str, Any]],
    conf: Path,
    *,
    columns: Mapping[Any, str],
    setting: str | None,
    networks: Mapping[str, dict[str, Any]],
    paper: Mapping[str, Mapping[Any, float] | None],
    paper_row: str = "paper",
    header: tuple[str, str] = ("network", "recipe, steps"),
    figure: Callable[[dict[str, Any]], float] = _error,
    text: Callable[[list[float]], str] = format_mean,
    row: Callable[[dict[str, Any]], tuple] = _recipe_label,
    higher_is_better: bool = False,
) -> PaperTable:
    """The one aggregation of all tables of the paper.

    Args:
        records: of all runs; those that are not :func:`matches_config` stay out.
        conf: the folder of the configuration.
        columns: heads by the values of ``setting``, an option of the data; of None where there is a single column.
        networks: the options that the runs of each have.
        paper: its numbers for each network; None for a network without.
        paper_row: what the paper's rows were trained with.
        header: of the first two columns.
        figure: of a run.
        text: of the figures in a cell.
        row: what tells rows of one network apart, for sorting, and last what the table says of it.
        higher_is_better: whether the figure is not an error.
    """
    found: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if matches_config(record, conf):
            options, (*place, about) = overrides_for(record, conf), row(record)
            precision = options.get("trainer.precision", "")
            key = (*place, precision, ", ".join(filter(None, (about, precision))))
            for name in (
                name
                for name, of_network in networks.items()
                if of_network.items() <= options.items()
            ):
                found[name, key, options[setting] if setting else None].append(record)

    def cells(name: str, key: tuple | None) -> list[TableCell]:
        runs = {column: found[name, key, column] if key else [] for column in columns}
        options = next(
            (overrides_for(of_column[0], conf) for of_column in runs.values() if of_column),
            networks[name],
        )
        made = []
        for column, head in columns.items():
            values = [figure(run) for run in runs[column]]
            of_cell = options | ({setting: column} if setting else {})
            made.append(
                TableCell(
                    head,
                    (paper[name] or {}).get(column),
                    runs[column],
                    values,
                    text(values),
                    of_cell,
                )
            )
        return made

    made = []
    for name, of_paper in paper.items():
        numbers = None if of_paper is None else [of_paper.get(column) for column in columns]
        keys = sorted({key for who, key, _ in found if who == name})
        rows = [(key[-1], cells(name, key)) for key in keys]
        if not rows and name in networks:
            rows = [("ours", cells(name, None))]
        made.append(NetworkRows(name, dict(networks.get(name, {})), numbers, rows))
    return PaperTable(header, list(columns.values()), paper_row, made, higher_is_better)


def mnist_table(records: Iterable[dict[str, Any]], conf: Path) -> PaperTable:
    """Table 1 and the cluttered set: the paper's errors and ours, a row for each recipe and length.

    Args:
        records: of all runs; those that are not :func:`matches_config` stay out.
        conf: the folder of the configuration.
    """
    return _build_table(
        records,
        conf,
        columns={name: name.upper() for name in ("r", "rts", "p", "e", "tc")},
        setting="data.distortion",
        networks=_network_overrides("mnist", NETWORKS),
        paper={
            name: {**TABLE_1[name], **({"tc": CLUTTERED[name]} if name in CLUTTERED else {})}
            for name in NETWORKS
        },
        paper_row="paper, 150k",
    )


def _network_overrides(
    experiment: str, networks: Mapping[str, tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    return {
        name: {"experiment": experiment, "model": model, "transform": transform}
        for name, (model, transform) in networks.items()
    }


def svhn_table(records: Iterable[dict[str, Any]], conf: Path) -> PaperTable:
    """Table 2, likewise; a row of ours says how many training images it had, as a part of SVHN may have few.

    Args: as for :func:`mnist_table`.
    """
    return _build_table(
        records,
        conf,
        columns={64: "64 px", 128: "128 px"},
        setting="data.size",
        networks={
            name: {"experiment": model, "model": model, "transform": transform}
            for name, (model, transform) in SVHN_NETWORKS.items()
        },
        paper=TABLE_2,
        paper_row="paper, 400k",
    )


def addition_table(records: Iterable[dict[str, Any]], conf: Path) -> PaperTable:
    """The row of appendix A.1, likewise.

    Args: as for :func:`mnist_table`.
    """
    return _build_table(
        records,
        conf,
        columns={None: "error"},
        setting=None,
        networks=_network_overrides("mnist_addition", ADDITION_NETWORKS),
        paper={name: {None: error} for name, error in ADDITION.items()},
    )


def colocalisation_table(records: Iterable[dict[str, Any]], conf: Path) -> PaperTable:
    """The rows of appendix A.2: percentage of images with an IoU above 0.5, a column for each digit.

    Args: as for :func:`mnist_table`.
    """
    return _build_table(
        records,
        conf,
        columns={digit: str(digit) for digit in range(10)},
        setting="data.digit",
        networks={
            name.upper(): {"experiment": "colocalisation", "data.distortion": name}
            for name in COLOCALISATION
        },
        paper={
            name.upper(): dict(enumerate(of_paper)) for name, of_paper in COLOCALISATION.items()
        },
        header=("images", "recipe, steps"),
        figure=lambda record: 100 - _error(record),
        text=format_percent,
        higher_is_better=True,
    )


def volumes_table(records: Iterable[dict[str, Any]], conf: Path) -> PaperTable:
    """Errors on volumes (appendix A.3), likewise; the paper has none.

    Args: as for :func:`mnist_table`.
    """
    return _build_table(
        records,
        conf,
        columns={None: "error"},
        setting=None,
        networks=_network_overrides("mnist_3d", VOLUME_NETWORKS),
        paper=dict.fromkeys(VOLUME_NETWORKS),
    )


def birds_options(experiment: str) -> dict[str, Any]:
    """The options of a row of Table 3."""
    transform = "none" if experiment == "birds_cnn" else "location"
    return {
        "experiment": experiment,
        "transform": transform,
        "data.size": 448 if "448" in BIRDS[experiment] else 224,
    }


def birds_table(records: Iterable[dict[str, Any]], conf: Path) -> PaperTable:
    """Table 3: accuracy of the paper and ours, with the backbone and the species of each row of ours.

    Args: as for :func:`mnist_table`.
    """

    def row(record: dict[str, Any]) -> tuple:
        backbone, species, images = (
            record["config"]["model"]["backbone"],
            species_of(record),
            record["samples"]["train"],
        )
        about = f"{backbone}; {record['recipe']}, {record['steps']:,}; {species}, {images:,} images"
        return backbone, record["recipe"], record["steps"], species, images, about

    return _build_table(
        records,
        conf,
        columns={None: "accuracy"},
        setting=None,
        networks={name: birds_options(experiment) for experiment, name in BIRDS.items()},
        paper={name: {None: accuracy} for name, accuracy in TABLE_3.items()},
        paper_row="paper; all species",
        header=("network", "backbone; recipe, steps; data"),
        figure=lambda record: record["metrics"]["test/accuracy"],
        row=row,
        higher_is_better=True,
    )


def paper_tables(results: Path, conf: Path) -> dict[str, PaperTable]:
    """All of the paper's tables, by name, of the records in ``results``.

    Raises:
        UsageError: a file there is not a record.
    """

    def of(family: str) -> list[dict[str, Any]]:
        return [
            record for folder in sorted(results.glob(family)) for record in read_records(folder)
        ]

    return {
        "mnist": mnist_table(of("mnist"), conf),
        "svhn": svhn_table(of("svhn_*"), conf),
        "addition": addition_table(of("mnist_addition"), conf),
        "colocalisation": colocalisation_table(of("colocalisation"), conf),
        "volumes": volumes_table(of("mnist_3d"), conf),
        "birds": birds_table(of("birds_*"), conf),
    }
