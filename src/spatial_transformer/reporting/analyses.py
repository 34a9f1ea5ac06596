"""What else the records of finished runs say, for the documents: tables and a chart that the paper does not have."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ..data.mnist.distortions import DISTORTIONS
from ..paper import (
    ADDITION,
    ADDITION_NETWORKS,
    CLUTTERED,
    NETWORKS,
    SVHN_NETWORKS,
    TABLE_1,
    network_name,
)
from ..utils.errors import UsageError
from .paper_tables import (
    NOT_RUN,
    birds_options,
    format_mean,
    format_percent,
    mnist_table,
    species_of,
)
from .records import (
    changed_settings,
    diff_keys,
    flatten,
    matches_config,
    overrides_for,
    standard_settings,
)


def addition_pose_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """How far each digit lies from its usual pose in the output of each transformer, as Markdown.

    Rows for each run: which transformer takes which digit is chance, so a mean over the seeds would say nothing.
    """
    rows = []
    for record in records:
        figures = record["metrics"]
        if "test/pose_input_1" not in figures or not matches_config(record, conf):
            continue
        run = f"{_network(record)} | {record['recipe']}, {record['steps']:,} | {record['seed']}"
        for who in ("input", "1", "2"):
            if f"test/pose_{who}_1" in figures:
                nearer = "–" if who == "input" else f"{figures[f'test/resolves_first_{who}']:.0f}"
                reader = "nothing: the image" if who == "input" else f"transformer {who}"
                distances = (
                    f"{figures[f'test/pose_{who}_1']:.1f} | {figures[f'test/pose_{who}_2']:.1f}"
                )
                rows.append(f"| {run} | {reader} | {distances} | {nearer} |")
    lines = [
        "| network | recipe, steps | seed | read by | first digit, px | second digit, px | first is nearer, % of samples |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) if rows else NOT_RUN


def _network(record: dict[str, Any]) -> str:
    return network_name(record["experiment"], record["model"], record["transform"])


def projective_table(records: Iterable[dict[str, Any]]) -> str:
    """Errors on P by how far corners are displaced, as Markdown, between the paper's.

    Args:
        records: of runs on P. One that names no displacement is of the time when 5 px was the deviation of each coordinate.
    """
    rows: dict[tuple, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        data = record["config"]["data"]
        row = (
            data.get("corner_std") or 5.0,
            data["canvas"] or DISTORTIONS["p"].canvas,
            record["steps"],
        )
        rows[row][record["model"], record["transform"]].append(record["metrics"]["test/error"])
    names = {
        name: options
        for name, options in NETWORKS.items()
        if any(options in found for found in rows.values())
    }
    lines = [
        "| deviation of each coordinate, px | canvas | steps | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    lines.append(
        "| *paper* | | *150k* | " + " | ".join(f"*{TABLE_1[name]['p']}*" for name in names) + " |"
    )
    for (std, canvas, steps), found in sorted(rows.items()):
        cells = [format_mean(found.get(options, [])) for options in names.values()]
        lines.append(f"| {std:.2f} | {canvas} | {steps:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if rows else NOT_RUN


def pooling_table(records: Iterable[dict[str, Any]], addition: bool = False) -> str:
    """Errors by how the image is pooled before the classifier, as Markdown, between the paper's.

    Args:
        records: of runs of networks without a transformer.
        addition: whether they are of MNIST addition, not of distorted MNIST.
    """
    columns = {"error": "error"} if addition else {"rts": "RTS", "tc": "TC"}
    names = {
        options: name for name, options in (ADDITION_NETWORKS if addition else NETWORKS).items()
    }
    rows: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        row = (
            names[record["model"], record["transform"]],
            record["config"]["model"].get("pool") or 1,
            record["steps"],
        )
        rows[row][record["config"]["data"].get("distortion", "error")].append(
            record["metrics"]["test/error"]
        )
    lines = [
        f"| network | pooled by | steps | {' | '.join(columns.values())} |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for name in dict.fromkeys(name for name, _, _ in sorted(rows)):
        of_paper = [ADDITION[name]] if addition else [TABLE_1[name]["rts"], CLUTTERED[name]]
        lines.append(
            f"| **{name}** | *paper* | *150k* | "
            + " | ".join(f"*{number}*" for number in of_paper)
            + " |"
        )
        for (who, pool, steps), found in sorted(rows.items()):
            if who == name:
                lines.append(
                    f"| | {pool} | {steps:,} | "
                    + " | ".join(format_mean(found[column]) for column in columns)
                    + " |"
                )
    return "\n".join(lines) if rows else NOT_RUN


def improvement_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """By how much each transformer lowers the error of its base network on distorted MNIST, in points, as Markdown.

    Args: as for :func:`mnist_table`. Compared are runs of one recipe and length.
    """
    table = mnist_table(records, conf)
    of_name = {network.name: network for network in table.networks}
    lines = [
        f"| {' | '.join([*table.header, *table.columns])} |",
        "|---|---|" + "---|" * len(table.columns),
    ]
    for name, network in of_name.items():
        base = of_name.get(name.removeprefix("ST-").partition(" ")[0])
        if base is None or base is network:
            continue
        pairs = zip(base.numbers or [], network.numbers or [])
        numbers = [
            "–" if plain is None or own is None else f"*{plain - own:.1f}*" for plain, own in pairs
        ]
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
    """The spread of angles within each class before and after the transformer, of ``scripts/analysis/class_orientation.py``, as Markdown."""
    lines = [
        "| run | | mean | " + " | ".join(map(str, range(10))) + " |",
        "|---|---|---|" + "---|" * 10,
    ]
    for record in sorted(records, key=lambda record: (record["label"], record["steps"])):
        name = f"`{record['label']}`, {record['steps']:,} steps"
        for side in ("before", "after"):
            spreads = [row[side] for row in record["rows"]]
            numbers = " | ".join(f"{value:.0f}" for value in [statistics.fmean(spreads), *spreads])
            lines.append(f"| {name} | {side} | {numbers} |")
            name = ""
    return "\n".join(lines) if len(lines) > 2 else NOT_RUN


def redraws_table(records: Iterable[dict[str, Any]]) -> str:
    """How often test digits are misread over several draws of their distortion, of ``scripts/analysis/error_consistency.py``, as Markdown."""
    heads = (
        "run",
        "error, %",
        "digits misread in no draw",
        "in less than half",
        "in half or more",
        "their share of errors, %",
    )
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for record in sorted(records, key=lambda record: (record["label"], record["steps"])):
        digits = {row["misread"]: row["digits"] for row in record["rows"]}
        draws, errors = max(digits), sum(times * n for times, n in digits.items())
        hard = {times: n for times, n in digits.items() if times >= draws / 2}
        share = sum(times * n for times, n in hard.items()) / max(errors, 1)
        counts = (digits[0], record["samples"] - digits[0] - sum(hard.values()), sum(hard.values()))
        numbers = " | ".join(f"{n:,}" for n in counts)
        error = 100 * errors / draws / record["samples"]
        lines.append(
            f"| `{record['label']}`, {record['steps']:,} steps | {error:.2f} | {numbers} | {100 * share:.0f} |"
        )
    return "\n".join(lines) if len(lines) > 2 else NOT_RUN


def times_table(records: Iterable[dict[str, Any]]) -> str:
    """How long the recorded runs took, as Markdown, by experiment, recipe and machine."""
    minutes: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        device = record["device"] + (
            f", {record['threads']} thread" if record["device"].startswith("cpu") else ""
        )
        about = (record["experiment"], record["model"], record["recipe"], record["steps"], device)
        minutes[about].append(record["seconds"] / 60)
    lines = [
        "| experiment | model | recipe, steps | on | runs | minutes a run, median |",
        "|---|---|---|---|---|---|",
    ]
    for (experiment, model, recipe, steps, device), values in sorted(minutes.items()):
        median = statistics.median(values)
        lines.append(
            f"| {experiment} | {model} | {recipe}, {steps:,} | {device} | {len(values)} | {median:.0f} |"
        )
    return "\n".join(lines)


def colocalisation_ablation_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """What was tried where the paper is silent, as Markdown: what each run changed, and the percentage found of each digit.

    Args: as for :func:`mnist_table`; only digits of which there is something to compare are shown.
    """
    standard = "nothing"
    found: dict[tuple[str, int], dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        other = ", ".join(f"`{setting}`" for setting in changed_settings(record, conf))
        data = record["config"]["data"]
        key = (other or standard, record["steps"])
        found[key][data["distortion"].upper(), data["digit"]].append(
            100 - record["metrics"]["test/error"]
        )
    times = Counter(column for values in found.values() for column in values)
    columns = sorted(column for column in times if times[column] > 1)
    lines = [
        "| changed | steps | " + " | ".join(f"{name}, {digit}" for name, digit in columns) + " |"
    ]
    lines.append("|---|---|" + "---|" * len(columns))
    for (other, steps), values in sorted(
        found.items(), key=lambda item: (item[0][0] != standard, item[0])
    ):
        cells = [format_percent(values.get(column, [])) for column in columns]
        lines.append(f"| {other} | {steps:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if columns else NOT_RUN


def svhn_window_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """How large a window of the image the transformers of Table 2's networks read together, in percent of its side."""
    names = {network: name for name, network in SVHN_NETWORKS.items()}
    windows: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        figures = record["metrics"]
        matrices = [
            [[figures[f"{name}/mean_{3 * row + column}"] for column in (0, 1)] for row in (0, 1)]
            for name in ("theta", "theta_2", "theta_3", "theta_4")
            if f"{name}/mean_0" in figures
        ]
        if (
            matrices
            and (record["model"], record["transform"]) in names
            and matches_config(record, conf)
        ):
            # The area of a product is the product of the areas.
            area = math.prod(abs(a * d - b * c) for (a, b), (c, d) in matrices)
            key = (
                names[record["model"], record["transform"]],
                record["recipe"],
                record["steps"],
                record["config"]["data"]["size"],
            )
            windows[key].append(100 * math.sqrt(area))
    lines = ["| network | recipe, steps | crops | side of the window, % |", "|---|---|---|---|"]
    for (name, recipe, steps, size), values in sorted(windows.items()):
        lines.append(f"| {name} | {recipe}, {steps:,} | {size} px | {format_mean(values)} |")
    return "\n".join(lines) if windows else NOT_RUN


def bird_part_coverage(
    records: Iterable[dict[str, Any]], conf: Path, experiment: str
) -> dict[str, dict[str, dict[str, float]]]:
    """How often each part of a bird is in each crop, and how crops lie on the bird's box, in percent, by part and by crop.

    Means over the seeds of an experiment's standard runs, for each recipe.
    """
    runs: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    for record in records:
        if birds_options(experiment).items() <= overrides_for(
            record, conf
        ).items() and matches_config(record, conf):
            runs[record["recipe"], record["steps"], species_of(record)].append(record["metrics"])
    return {
        f"{recipe}, {steps:,} steps; {species}; seeds: {len(metrics)}": _parts_of(metrics)
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
        part: {
            f"crop {who}" if who.isdigit() else f"{who} crop": statistics.fmean(values[who])
            for who in values
        }
        for part, values in figures.items()
    }


def crop_names(parts: dict[str, dict[str, float]]) -> list[str]:
    """Names of the crops of :func:`bird_part_coverage`, the network's before those that it is compared with."""
    return sorted(
        {crop for values in parts.values() for crop in values},
        key=lambda crop: (not crop.startswith("crop "), crop),
    )


def parts_table(records: Iterable[dict[str, Any]], conf: Path, experiment: str) -> str:
    """:func:`bird_part_coverage` as Markdown, a table for each recipe."""
    tables = []
    for title, parts in bird_part_coverage(records, conf, experiment).items():
        crops = crop_names(parts)
        lines = [
            f"{title}:\n",
            "| part | " + " | ".join(crops) + " |",
            "|---|" + "---|" * len(crops),
        ]
        for part, values in parts.items():
            name = f"*{part}*" if part in (BOX, ON_BOX) else part
            lines.append(
                f"| {name} | "
                + " | ".join(f"{values[c]:.0f}" if c in values else "–" for c in crops)
                + " |"
            )
        tables.append("\n".join(lines))
    return "\n\n".join(tables) or NOT_RUN


def slopes_table(records: Iterable[dict[str, Any]]) -> str:
    """Gradients of theta beside slopes of the loss, of records of ``scripts/analysis/gradient_vs_finite_difference.py``, as Markdown."""
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


def conformance_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the results of ``scripts/dev/conformance.py`` as Markdown: a column for each library.

    A cell has the passed cases, the supported cases and the largest error. It is bold if a case
    failed.
    """
    rows = list(rows)
    libraries = {row["library"]: f"{row['library']} {row['version']}" for row in rows}
    by_group: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_group[row["group"]][row["library"]] = row
    lines = [f"| group | cases | {' | '.join(libraries.values())} |"]
    lines.append("|---|---|" + "---|" * len(libraries))
    for group, found in by_group.items():
        cases = max(row["cases"] for row in found.values())
        cells = [_conformance_cell(found.get(library)) for library in libraries]
        lines.append(f"| {group} | {cases} | {' | '.join(cells)} |")
    return "\n".join(lines) if rows else NOT_RUN


def _conformance_cell(row: dict[str, Any] | None) -> str:
    supported = row["cases"] - row["not supported"] if row else 0
    if row is None or supported == 0:
        return "–"
    count = f"{row['passed']}/{supported}"
    if row["passed"] < supported:
        count = f"**{count}**"
    if row["largest error"] is None:
        return count
    return f"{count}, {row['largest error']:.0e}".replace("e-0", "e-").replace("e+0", "e")


def recipe_table(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """Runs that decided a recipe, as Markdown: what they had that the recipe's file in ``conf`` has not, and their errors."""
    lines = [
        "| network | distortion | recipe | other than in the file | steps | validation error | test error |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    rows: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        about = (
            record["model"],
            record["transform"],
            _network(record),
            record["config"]["data"]["distortion"],
            record["recipe"],
        )
        rows[(*about, record["steps"], _other_in_recipe(record, conf))].append(record["metrics"])
    for (_, _, network, distortion, recipe, steps, other), runs in sorted(rows.items()):
        figures = " | ".join(
            format_mean([metrics[name] for metrics in runs])
            for name in ("val/best_error", "test/error")
        )
        lines.append(
            f"| {network} | {distortion.upper()} | {recipe} | {other or '–'} | {steps:,} | {figures} |"
        )
    return "\n".join(lines)


def _other_in_recipe(record: dict[str, Any], conf: Path) -> str:
    """What a run had that its recipe's file in ``conf`` has not."""
    settings, expected = (
        flatten(record["config"]["recipe"]),
        flatten(standard_settings(record, conf)["recipe"]),
    )
    return ", ".join(
        f"{name} {settings.get(name) or 'none'}" for name in diff_keys(expected, settings)
    )


def steps_chart(records: Iterable[dict[str, Any]], conf: Path) -> Figure:
    """Mean test error against the length of training: a line for each recipe, network and distortion of several lengths."""
    errors: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        network, distortion = _network(record), record["config"]["data"]["distortion"]
        other = _other_in_recipe(record, conf)
        line = f"{network} on {distortion.upper()}, {record['recipe']} recipe" + (
            f", {other}" if other else ""
        )
        errors[line][record["steps"]].append(record["metrics"]["test/error"])
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for line, lengths in sorted(errors.items()):
        if len(lengths) > 1:
            axes.plot(
                sorted(lengths),
                [statistics.fmean(lengths[steps]) for steps in sorted(lengths)],
                "o-",
                label=line,
            )
    of_paper = "ST-FCN affine on RTS, the paper's at 150,000"
    axes.axhline(TABLE_1["ST-FCN affine"]["rts"], color="black", linestyle=":", label=of_paper)
    axes.set(
        xscale="log", yscale="log", xlabel="training steps of 256 samples", ylabel="test error, %"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8)
    return figure


def fill_table_markers(text: str, tables: dict[str, str]) -> str:
    """``text`` with what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` replaced by each table.

    Raises:
        UsageError: a mark is missing.
    """
    for name, table in tables.items():
        start, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(start)
        _, end_mark, after = rest.partition(end)
        if not mark or not end_mark:
            raise UsageError(
                f"the text has no place for table {name}: {start.strip()} ... {end.strip()}"
            )
        text = before + start + table + "\n" + end + after
    return text
