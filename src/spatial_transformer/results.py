"""Records of finished runs, and the tables that are made of them."""

from __future__ import annotations

import copy
import functools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
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

NOT_RUN = "not run"
# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records below ``folder``.

    Raises:
        UsageError: a file is not a record.
    """
    records = []
    for path in sorted(folder.rglob("*.json")):
        try:
            record = json.loads(path.read_text())
            record["experiment"], record["metrics"]["test/error"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is not the record of a run: {error}. Way out: scripts/make_tables.py --add RUN_FOLDER."
            ) from error
        records.append(record)
    return records


def add_record(run: Path, results: Path, into: str | None = None) -> Path:
    """Copies the record of a finished run to its place below ``results``; returns that.

    Args:
        run: the run's folder.
        results: the folder of all records.
        into: the record's folder in it; None is its experiment's.

    Raises:
        UsageError: the run has no record, or its place is taken by a run with other settings.
    """
    source = run / "metrics.json"
    if not source.is_file():
        raise UsageError(f"{run} has no metrics.json: it is not a run folder, or the run has not finished.")
    record = json.loads(source.read_text())
    target = results / (into or record["experiment"]) / f"{record['label']}-{record['steps']}.json"
    if target.is_file() and json.loads(target.read_text())["config"] != record["config"]:
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
    expected = _standard(record, conf)
    settings = _flat({group: record["config"][group] or {} for group in expected})
    return not _differing(_flat(expected), settings)


def _differing(expected: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Names of the settings that are not as expected. One that a run did not know yet was off."""
    return [name for name in expected | settings if (settings.get(name) or None) != (expected.get(name) or None)]


def _standard(record: dict[str, Any], conf: Path) -> dict[str, Any]:
    """The settings of a record's options as the files in ``conf`` have them."""
    options = [
        f"{group}={record[group]}" for group in ("experiment", "model", "transform", "recipe") if record[group] != "none"
    ]
    whole = copy.deepcopy(_composed(conf, *options))
    whole.seed, whole.trainer.max_steps = record["seed"], record["steps"]
    settings: Any = {group: OmegaConf.to_container(whole[group], resolve=True) for group in _COMPARED if whole[group]}
    return settings


_composed = functools.cache(composed)


def mnist_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """Table 1 and the cluttered row as Markdown: the paper's errors and ours, a row for each recipe and length.

    Args:
        records: of all runs; those that are not :func:`is_standard` stay out.
        conf: the folder of the configuration.
    """
    errors = {name: {**TABLE_1[name], **({"tc": CLUTTERED[name]} if name in CLUTTERED else {})} for name in NETWORKS}
    columns = {name: name.upper() for name in ("r", "rts", "p", "e", "tc")}
    return _error_table(records, conf, "distortion", columns, NETWORKS, errors, "paper, 150k")


def svhn_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """Table 2 as Markdown, likewise; a row of ours says how many training images it had, as a part of SVHN may have few.

    Args: as for :func:`mnist_table`.
    """
    return _error_table(records, conf, "size", {64: "64 px", 128: "128 px"}, SVHN_NETWORKS, TABLE_2, "paper, 400k")


def addition_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """The row of appendix A.1 as Markdown, likewise.

    Args: as for :func:`mnist_table`.
    """
    errors = {name: {None: error} for name, error in ADDITION.items()}
    return _error_table(records, conf, None, {None: "error"}, ADDITION_NETWORKS, errors, "paper")


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


def colocalisation_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """The rows of appendix A.2 as Markdown: percentage of images with an IoU above 0.5, a column for each digit.

    Args: as for :func:`mnist_table`.
    """
    found: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        if is_standard(record, conf):
            data = record["config"]["data"]
            found[data["distortion"], record["recipe"], record["steps"], data["digit"]].append(
                100 - record["metrics"]["test/error"]
            )
    lines = ["| images | recipe, steps | " + " | ".join(map(str, range(10))) + " |", "|---|---|" + "---|" * 10]
    for name, of_paper in COLOCALISATION.items():
        lines.append(f"| **{name.upper()}** | *paper* | " + " | ".join(f"*{value}*" for value in of_paper) + " |")
        rows = sorted({key[1:3] for key in found if key[0] == name})
        for recipe, steps in rows:
            cells = [_percent(found.get((name, recipe, steps, digit), [])) for digit in range(10)]
            lines.append(f"| | {recipe}, {steps:,} | " + " | ".join(cells) + " |")
        if not rows:
            lines.append("| | ours | " + " | ".join([NOT_RUN] * 10) + " |")
    return "\n".join(lines)


def _percent(values: list[float]) -> str:
    """Percentages of several seeds as ``mean ± half-width (n)``, of one as a number."""
    return f"{values[0]:.0f}" if len(values) == 1 else cell(values)


def colocalisation_choices(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """What was tried where the paper is silent, as Markdown: what each run changed, and the percentage found of each digit.

    Args: as for :func:`mnist_table`; of the standard runs only those with the digits of the others are shown.
    """
    standard = "nothing"
    found: dict[str, dict[tuple, float]] = defaultdict(dict)
    for record in records:
        expected, settings = _flat(_standard(record, conf)), _flat({g: record["config"][g] or {} for g in _COMPARED})
        other = ", ".join(f"`{name}={settings.get(name)}`" for name in _differing(expected, settings))
        data = record["config"]["data"]
        found[other or standard][data["distortion"].upper(), data["digit"]] = 100 - record["metrics"]["test/error"]
    columns = sorted({column for other, values in found.items() if other != standard for column in values})
    lines = ["| changed | " + " | ".join(f"{name}, {digit}" for name, digit in columns) + " |", "|---|" + "---|" * len(columns)]
    for other, values in sorted(found.items(), key=lambda item: (item[0] != standard, item[0])):
        cells = [f"{values[column]:.0f}" if column in values else NOT_RUN for column in columns]
        lines.append(f"| {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if columns else NOT_RUN


def volumes_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """Errors on volumes (appendix A.3) as Markdown, likewise; the paper has none.

    Args: as for :func:`mnist_table`.
    """
    errors: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        if is_standard(record, conf):
            errors[record["model"], record["transform"], record["recipe"], record["steps"]].append(
                record["metrics"]["test/error"]
            )
    lines = ["| network | recipe, steps | error |", "|---|---|---|"]
    for name, options in VOLUME_NETWORKS.items():
        rows = {key[2:]: values for key, values in sorted(errors.items()) if key[:2] == options}
        lines += [f"| **{name}** | {recipe}, {steps:,} | {cell(values)} |" for (recipe, steps), values in rows.items()]
        if not rows:
            lines.append(f"| **{name}** | ours | {NOT_RUN} |")
    return "\n".join(lines)


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


def birds_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """Table 3 as Markdown: accuracy of the paper and ours, with the backbone and the species of each row of ours.

    Args: as for :func:`mnist_table`.
    """
    accuracies: dict[str, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if is_standard(record, conf):
            config = record["config"]
            row = (config["model"]["backbone"], record["recipe"], record["steps"], _species(record), record["samples"]["train"])
            accuracies[record["experiment"]][row].append(record["metrics"]["test/accuracy"])
    experiments = {name: experiment for experiment, name in BIRDS.items()}
    lines = ["| network | backbone; recipe, steps; data | accuracy |", "|---|---|---|"]
    for name, of_paper in TABLE_3.items():
        lines.append(f"| **{name}** | *paper; all species* | *{of_paper}* |")
        ours = accuracies.get(experiments.get(name, ""), {})
        for (backbone, recipe, steps, species, images), values in sorted(ours.items()):
            lines.append(f"| | {backbone}; {recipe}, {steps:,}; {species}, {images:,} images | {cell(values)} |")
        if not ours and name in experiments:
            lines.append(f"| | ours | {NOT_RUN} |")
    return "\n".join(lines)


def parts_table(records: Iterable[dict[str, Any]], conf: Path, experiment: str) -> str:
    """How often each part of a bird is in each crop, and how crops lie on the bird's box, as Markdown.

    Means over the seeds of an experiment's standard runs, a table for each recipe.
    """
    runs: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    for record in records:
        if record["experiment"] == experiment and is_standard(record, conf):
            runs[record["recipe"], record["steps"], _species(record)].append(record["metrics"])
    tables = [
        f"{recipe}, {steps:,} steps; {species}:\n\n{_parts_of(metrics)}"
        for (recipe, steps, species), metrics in sorted(runs.items())
    ]
    return "\n\n".join(tables) or NOT_RUN


def _parts_of(runs: list[dict[str, float]]) -> str:
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for metrics in runs:
        for name, value in metrics.items():
            if name.startswith("test/parts_"):
                who, part = name.removeprefix("test/parts_").split("/")
                figures[part][who].append(value)
        for title, prefix in (
            ("*the box, of which the crop holds*", "test/box_"),
            ("*the crop, of which is box*", "test/on_box_"),
        ):
            for name, value in metrics.items():
                if name.startswith(prefix):
                    figures[title][name.removeprefix(prefix)].append(value)
    columns = sorted({who for values in figures.values() for who in values}, key=lambda who: (not who.isdigit(), who))
    heads = [f"crop {who}" if who.isdigit() else f"{who} crop" for who in columns]
    lines = ["| part | " + " | ".join(heads) + " |", "|---|" + "---|" * len(columns)]
    lines += [
        f"| {part} | " + " | ".join(f"{statistics.fmean(values[who]):.0f}" if who in values else "–" for who in columns) + " |"
        for part, values in figures.items()
    ]
    return "\n".join(lines)


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


def _error_table(
    records: Iterable[dict[str, Any]],
    conf: Path,
    setting: str | None,
    columns: Mapping[Any, str],
    networks: Mapping[str, tuple[str, str]],
    paper: Mapping[str, Mapping[Any, float]],
    paper_row: str,
) -> str:
    """Errors of ``networks`` under the paper's: a column for each value of ``setting`` of the data, or for all."""
    errors: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        if is_standard(record, conf):
            row = (record["model"], record["transform"], record["recipe"], record["steps"], _images(record))
            errors[(*row, record["config"]["data"][setting] if setting else None)].append(record["metrics"]["test/error"])
    lines = ["| network | recipe, steps | " + " | ".join(columns.values()) + " |", "|---|---|" + "---|" * len(columns)]
    for name, of_paper in paper.items():
        lines.append(f"| **{name}** | *{paper_row}* | " + " | ".join(f"*{of_paper.get(c, '–')}*" for c in columns) + " |")
        rows = sorted({key[:-1] for key in errors if key[:2] == networks.get(name)})
        for row in rows:
            recipe, steps, images = row[2:]
            cells = [cell(errors.get((*row, column), [])) for column in columns]
            lines.append(f"| | {recipe}, {steps:,}{images} | " + " | ".join(cells) + " |")
        if not rows and name in networks:
            lines.append("| | ours | " + " | ".join([NOT_RUN] * len(columns)) + " |")
    return "\n".join(lines)


def _species(record: dict[str, Any]) -> str:
    species = record["config"]["data"]["species"]
    return "all species" if species is None else f"species {species}"


def _images(record: dict[str, Any]) -> str:
    """A remark where a data set may be there in part: on how many images a run was trained."""
    return f"; {record['samples']['train']:,} images" if record["model"] in dict(SVHN_NETWORKS.values()) else ""


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
