"""Build the tables and the chart of the documents that the paper does not have."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import paper
from ..data.mnist.distortions import DISTORTIONS
from ..utils.errors import UsageError
from .benchmarks import format_log_axis
from .paper_tables import (
    MIN_SEEDS,
    NOT_RUN,
    SPECS,
    PaperTable,
    Record,
    TableCell,
    birds_options,
    build_table,
    describe_species,
    format_mean,
    format_percent,
    label_recipe,
    markdown_table,
)
from .records import (
    changed_settings,
    diff_keys,
    flatten,
    has_standard_length,
    matches_config,
    overrides_for,
    standard_settings,
)
from .significance import format_p, paired_p

BOX, ON_BOX = "share of the box in the crop", "share of the crop in the box"


def _empty_cells() -> dict[Any, dict[Any, list[float]]]:
    """Return an empty dictionary for the values in each cell of a table, by row and column."""
    return defaultdict(lambda: defaultdict(list))


def _mean_rows(
    values: dict[Any, dict[Any, list[float]]],
    columns: Iterable[Any],
    format_values: Callable[[list[float]], str] = format_mean,
) -> list[list[Any]]:
    """Return the sorted rows of grouped values with the mean in each column."""
    return [
        [*row, *(format_values(values[row].get(column, [])) for column in columns)]
        for row in sorted(values)
    ]


def addition_pose_table(records: Iterable[Record], conf: Path) -> str:
    """Return how far each digit is from its usual pose in the output of each transformer.

    Each run has its own rows. Chance decides which transformer aligns which digit, so a mean over
    seeds would be meaningless.
    """
    header = ["network", "recipe, steps", "seed", "crop of", "first digit, px", "second digit, px"]
    rows = []
    for record in records:
        metrics = record["metrics"]
        if "test/pose_input_1" not in metrics or not matches_config(record, conf):
            continue
        run = [_network(record), f"{record['recipe']}, {record['steps']:,}", record["seed"]]
        for reader in ("input", "1", "2"):
            if f"test/pose_{reader}_1" not in metrics:
                continue
            name, nearer = "none: the image", "–"
            if reader != "input":
                name = f"transformer {reader}"
                nearer = f"{metrics[f'test/resolves_first_{reader}']:.0f}"
            distances = [f"{metrics[f'test/pose_{reader}_{digit}']:.1f}" for digit in (1, 2)]
            rows.append([*run, name, *distances, nearer])
    return markdown_table([*header, "first is nearer, % of samples"], rows) if rows else NOT_RUN


def _network(record: Record) -> str:
    return paper.network_name(record["experiment"], record["model"], record["transform"])


def projective_table(records: Iterable[Record]) -> str:
    """Return errors on P by the displacement of the corners.

    Args:
        records: results on P. Old ones have no ``corner_std``: it was 5 px for each coordinate.
    """
    errors = _empty_cells()
    for record in records:
        data = record["config"]["data"]
        canvas = data["canvas"] or DISTORTIONS["p"].canvas
        row = data.get("corner_std") or 5.0, canvas, record["steps"]
        errors[row][_network(record)].append(record["metrics"]["test/error"])
    names = [name for name in paper.NETWORKS if any(name in row for row in errors.values())]
    header = ["deviation of each coordinate, px", "canvas", "steps", *names]
    rows = [["*paper*", "", "*150k*", *(f"*{paper.TABLE_1[name]['p']}*" for name in names)]]
    rows += [[f"{std:.2f}", *cells] for std, *cells in _mean_rows(errors, names)]
    return markdown_table(header, rows) if errors else NOT_RUN


def definitions_table(records: Iterable[Record], conf: Path) -> str:
    """Return errors of FCN and ST-FCN affine under other definitions of the distortions.

    Args:
        records: results of ``recipe=fast`` on distorted MNIST. Other recipes, lengths and
            precisions are left out.
        conf: directory of the configuration.
    """
    networks = ("FCN", "ST-FCN affine")
    errors: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        if record["recipe"] == "fast" and has_standard_length(record, conf):
            key = (record["model"], record["transform"]), record["config"]["data"]["distortion"]
            errors[(*key, *changed_settings(record, conf))].append(record["metrics"]["test/error"])
    rows = []
    for name in ("r", "rts", "p", "e"):
        definitions = [(), ("data.fresh=False",), *_DEFINITIONS.get(name, ())]
        for definition in definitions:
            cells = [
                format_mean(errors[(paper.NETWORKS[network], name, *definition)])
                for network in networks
            ]
            setting = ", ".join(f"`{change}`" for change in definition) or "as in Table 1"
            rows.append(["" if definition else name.upper(), setting, *cells])
    return markdown_table(["set", "definition", *networks], rows)


_DEFINITIONS = {
    "p": [("data.corner_std=5",)],
    "e": [("data.point_std=2",), ("data.point_std=2.5",)],
}
"""Definitions of conf/ablation/definitions.yaml by distortion, but for ``data.fresh``."""


def trivial_table(records: Iterable[Record], conf: Path) -> str:
    """Return errors of fixed rules in the place of the transformer, next to FCN and ST-FCN.

    Args:
        records: results on distorted MNIST. Other recipes than "fast" are left out.
        conf: directory of the configuration.
    """
    names = {
        "FCN": ("fcn", "none"),
        "moments, FCN": ("moment_fcn", "affine"),
        "window with most ink, FCN": ("ink_fcn", "attention"),
        "ST-FCN affine": ("st_fcn", "affine"),
    }
    spec = replace(
        SPECS["mnist"],
        networks={name: {"model": m, "transform": t} for name, (m, t) in names.items()},
        numbers=dict.fromkeys(names),
        columns={name: name.upper() for name in ("r", "rts", "tc")},
    )
    return build_table(spec, [run for run in records if run["recipe"] == "fast"], conf).markdown()


def ink_window_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the percentage of images that ``scripts/analysis/trivial_baselines.py`` finds."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["distortion"].upper()].append(row["found"])
    lines = [
        [name, *(f"{value:.0f}" for value in values), f"{statistics.fmean(values):.1f}"]
        for name, values in found.items()
    ]
    return markdown_table(["images", *range(10), "mean"], lines)


def pooling_table(records: Iterable[Record], addition: bool = False) -> str:
    """Return errors by how the image is pooled before the classifier.

    Args:
        records: results of networks without a transformer.
        addition: whether they are of MNIST addition, not of distorted MNIST.
    """
    columns = {"error": "error"} if addition else {"rts": "RTS", "tc": "TC"}
    errors = _empty_cells()
    for record in records:
        pool = record["config"]["model"]["pool"] or 2  # null is 2 for images of more than 28 px
        row = _network(record), pool, record["steps"]
        column = record["config"]["data"].get("distortion", "error")
        errors[row][column].append(record["metrics"]["test/error"])
    rows: list[list] = []
    for name, found in groupby(_mean_rows(errors, columns), key=itemgetter(0)):
        if addition:
            numbers = [paper.ADDITION[name]]
        else:
            numbers = [paper.TABLE_1[name]["rts"], paper.CLUTTERED[name]]
        rows.append([f"**{name}**", "*paper*", "*150k*", *(f"*{n}*" for n in numbers)])
        rows += [["", *cells] for _, *cells in found]
    header = ["network", "pooled by", "steps", *columns.values()]
    return markdown_table(header, rows) if rows else NOT_RUN


def improvement_table(table: PaperTable) -> str:
    """Return by how many points each transformer reduces the error of its base network.

    Runs are compared with runs of the same recipe and length. A gain has the p-value of
    :func:`.significance.paired_p` from :data:`.paper_tables.MIN_SEEDS` seeds on, if all result
    files list their misclassified samples.

    Args:
        table: Table 1.
    """
    networks = {network.name: network for network in table.networks}
    rows: list[list] = []
    for name, network in networks.items():
        base = networks.get(name.removeprefix("ST-").partition(" ")[0])
        if base is None or base is network:
            continue
        numbers = [
            "–" if a is None or b is None else f"*{a - b:.1f}*"
            for a, b in zip(base.numbers or [], network.numbers or [], strict=True)
        ]
        rows.append([f"**{name}**", f"*{network.paper_row}*", *numbers])
        base_rows = dict(base.rows)
        for label, cells in network.rows:
            gains = [
                _improvement(plain, cell) for plain, cell in zip(base_rows.get(label, []), cells)
            ]
            if any(gain != NOT_RUN for gain in gains):
                rows.append(["", label, *gains])
    return markdown_table([*table.header, *table.columns], rows)


def _improvement(base: TableCell, cell: TableCell) -> str:
    if not base.runs or not cell.runs:
        return NOT_RUN
    gain = f"{statistics.fmean(base.values) - statistics.fmean(cell.values):.2f}"
    few = min(len(base.runs), len(cell.runs)) < MIN_SEEDS
    if few or any("misclassified" not in run for run in (*base.runs, *cell.runs)):
        return gain
    return f"{gain}, {_format_paired_p(base.runs, cell.runs)}"


def _format_paired_p(one: list[Record], other: list[Record]) -> str:
    wrong, others = ([run["misclassified"] for run in runs] for runs in (one, other))
    return format_p(paired_p(wrong, others, one[0]["samples"]["test"]))


def orientation_table(records: Iterable[Record]) -> str:
    """Return the spread of angles in each class and the rotation that is left, as means over seeds.

    Args:
        records: measurements of ``scripts/analysis/class_orientation.py``.
    """
    of_images: dict[str, list] = defaultdict(list)
    for name, runs in _group_by_setting(records):
        images = (runs[0]["distortion"] or "").upper() or "Rotated MNIST"
        of_images[images].append((name, runs))
    rows = []
    for images, networks in sorted(of_images.items()):
        before = [row["before"] for row in networks[0][1][0]["rows"]]
        rows.append([f"**{images}**, before", "", "spread, °", *_with_mean(before)])
        for name, runs in networks:
            cells = [name, len(runs)]
            for key, title in (("after", "spread, °"), ("left", "left, %")):
                # Earlier measurements lack what is left.
                found = [[row[key] for row in run["rows"]] for run in runs if key in run["rows"][0]]
                if found:
                    means = [statistics.fmean(of_class) for of_class in zip(*found, strict=True)]
                    rows.append([*cells, title, *_with_mean(means)])
                    cells = ["", ""]
    return markdown_table(["network", "seeds", "", "mean", *range(10)], rows) if rows else NOT_RUN


def _with_mean(values: list[float]) -> list[str]:
    return [f"{value:.0f}" for value in (statistics.fmean(values), *values)]


def pose_table(records: Iterable[Record]) -> str:
    """Return what is left of the distortions of RTS: rotation, size and location.

    Args:
        records: as for :func:`orientation_table`.
    """
    rows: list[list[Any]] = []
    for name, runs in _group_by_setting(run for run in records if "size_left" in run):
        rotation = [statistics.fmean(row["left"] for row in run["rows"]) for run in runs]
        rest = ([run[key] for run in runs] for key in ("size_left", "location_left"))
        rows.append([name, *map(format_percent, (rotation, *rest))])
    header = ["network", "rotation left, %", "size left, %", "location left, %"]
    return markdown_table(header, rows) if rows else NOT_RUN


def _group_by_setting(records: Iterable[Record]) -> list[tuple[str, list[Record]]]:
    """Return the measurements of runs that differ in their seed alone, by the name of the runs."""
    found: dict[tuple, list[Record]] = defaultdict(list)
    for record in _sort_by_run(records):
        found[record["label"].partition("-seed")[0], record["steps"]].append(record)
    return [(f"`{label}`, {steps:,} steps", runs) for (label, steps), runs in sorted(found.items())]


def passes_table(records: Iterable[Record]) -> str:
    """Return errors, spreads and rotation left by the passes in training and in the test.

    Args:
        records: measurements of ``scripts/analysis/repeated_passes.py``.
    """
    found: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        setting = record["label"].partition("-seed")[0]
        found[record["trained_passes"], setting, record["steps"]].append(record)
    lines: list[list] = []
    for (trained, setting, steps), runs in sorted(found.items()):
        name = f"`{setting}`, {steps:,} steps, {trained} in training"
        titles = {"error": "error, %", "spread": "spread, °", "left": "rotation left, %"}
        for key, spec in (("error", ".2f"), ("spread", ".1f"), ("left", ".0f")):
            columns = zip(*(run["rows"] for run in runs), strict=True)
            values = [[row[key] for row in column if key in row] for column in columns]
            lines.append([name, titles[key], *(format_mean(each, spec) for each in values)])
            name = ""
    header = ["passes", "", "1", "2", "3", "4", "5"]
    return markdown_table(header, lines) if lines else NOT_RUN


_UNTRAINED = ("recipe.localisation_lr_factor=0.0",)
_FROZEN_ROWS = {
    _UNTRAINED: "frozen classifier, transformer at the identity",
    (): "frozen classifier, trained transformer",
    ("model.weights=None",): "both trained from scratch",
}


def frozen_table(records: Iterable[Record], conf: Path) -> str:
    """Return errors of a classifier of upright digits, before and after it gets a transformer.

    Args:
        records: results of ``experiment=mnist_frozen``. Shorter runs and those with other
            options or settings are left out.
        conf: directory of the configuration.
    """
    found = _empty_cells()
    for record in records:
        changed = tuple(changed_settings(record, conf))
        is_whole = changed == _UNTRAINED or has_standard_length(record, conf)
        options = [record[group] for group in ("model", "transform", "recipe")]
        if changed in _FROZEN_ROWS and is_whole and options == ["frozen_fcn", "affine", "fast"]:
            distortion = record["config"]["data"]["distortion"]
            found[_FROZEN_ROWS[changed]][distortion].append(record["metrics"]["test/error"])
    rows = [
        [name, *(format_mean(found[name][distortion]) for distortion in ("r", "rts"))]
        for name in _FROZEN_ROWS.values()
    ]
    return markdown_table(["network", "R", "RTS"], rows)


PUBLISHED_ST_CNN = {
    "*ST-CNN affine, paper*": ("*400k*", "*0.7*", "*0.5*"),
    "*ST-CNN, Esteves et al. 2018*": ("*150k*", "*0.61*", "*0.54*"),
}
"""Published numbers of parameters, and errors on R and RTS."""


def modern_table(records: Iterable[Record]) -> str:
    """Return errors of ST-CNN with later recipes, next to published ones.

    Args:
        records: results of ``experiment=mnist`` and ``experiment=mnist_modern``. Of the former,
            only ST-CNN affine with the recipe "long" and 15,000 steps is shown.
    """
    long_runs, modern_runs = "ST-CNN affine, `long`", "**this page**"
    found = _empty_cells()
    parameters: dict[str, int] = {}
    for record in records:
        options = tuple(record[name] for name in ("model", "transform", "recipe", "steps"))
        if record["experiment"] == "mnist_modern":
            name = modern_runs
        elif options == ("st_cnn", "affine", "long", 15_000):
            name = long_runs
        else:
            continue
        found[name][record["config"]["data"]["distortion"]].append(record["metrics"]["test/error"])
        parameters[name] = record["parameters"]
    rows: list[list] = [[name, *numbers] for name, numbers in PUBLISHED_ST_CNN.items()]
    for name in (long_runs, modern_runs):
        cells = [format_mean(found[name][distortion]) for distortion in ("r", "rts")]
        rows.append([name, parameters.get(name, "–"), *cells])
    return markdown_table(["network", "parameters", "R", "RTS"], rows)


def modern_trials_table(records: Iterable[Record], conf: Path) -> str:
    """Return validation errors of short runs of ``experiment=mnist_modern`` by what they changed.

    Args:
        records: results of these runs. What all runs with averaged weights changed is left out.
        conf: directory of the configuration.
    """
    average = "callbacks.average"
    runs: list[tuple[list[str], Record]] = []
    common: set[str] | None = None
    for record in records:
        changed = changed_settings(record, conf)
        if record["config"]["callbacks"].get("average") is None:
            changed = [name for name in changed if not name.startswith(average)]
            changed.append(f"{average}=null")
        else:
            common = set(changed) if common is None else common & set(changed)
        if record["transform"] != "affine":
            changed.append(f"transform={record['transform']}")
        runs.append((changed, record))
    found = _empty_cells()
    for changed, record in runs:
        names = ", ".join(f"`{name}`" for name in changed if name not in (common or ()))
        row = names, record["parameters"], record["steps"]
        distortion = record["config"]["data"]["distortion"].upper()
        found[row][distortion].append(record["metrics"]["val/best_error"])
    columns = sorted({distortion for errors in found.values() for distortion in errors})
    rows = [[names or "nothing", *cells] for names, *cells in _mean_rows(found, columns)]
    header = ["changed", "parameters", "steps", *columns]
    return markdown_table(header, rows) if rows else NOT_RUN


def registration_table(records: Iterable[Record]) -> str:
    """Return how well pairs of digits match before and after registration.

    Args:
        records: results of ``experiment=mnist_registration``, or of ``svhn_registration``.
    """
    columns = {
        "error_before": "1 − correlation before, %",
        "error": "after, %",
        "dice_before": "Dice before, %",
        "dice": "after, %",
        "folding": "folding, % of pixels",
        "inverse_px": "inverse consistency, px",
    }
    found = _empty_cells()
    for record in records:
        for name in columns:
            if f"test/{name}" in record["metrics"]:
                found[(record["transform"],)][name].append(record["metrics"][f"test/{name}"])
    rows = _mean_rows(found, columns, lambda values: format_mean(values) if values else "–")
    return markdown_table(["transform", *columns.values()], rows) if rows else NOT_RUN


ROTATED = {
    "CNN": ("rotated_cnn", "none"),
    "ST-CNN rotation": ("rotated_st_cnn", "rotation"),
    "ST-CNN affine": ("rotated_st_cnn", "affine"),
    "canonicalisation, CNN": ("canonical_cnn", "none"),
    "p4-CNN": ("p4_cnn", "none"),
}
"""Model and transform of the networks for rotated MNIST."""


def rotated_table(records: Iterable[Record]) -> str:
    """Return errors on rotated MNIST, with paired p-values against the CNN for three seeds or more.

    Args:
        records: results of ``experiment=mnist_rotated``.
    """
    runs: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        runs[record["model"], record["transform"]].append(record)

    baseline = runs[ROTATED["CNN"]]
    rows = []
    for name, options in ROTATED.items():
        found, p = runs[options], "–"
        if name != "CNN" and min(len(found), len(baseline)) >= MIN_SEEDS:
            p = _format_paired_p(found, baseline)
        rows.append([name, format_mean([run["metrics"]["test/error"] for run in found]), p])
    return markdown_table(["network", "test error, %", "against the CNN"], rows)


def _sort_by_run(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record["label"], record["steps"]))


def _run_name(record: Record) -> str:
    return f"`{record['label']}`, {record['steps']:,} steps"


def redraws_table(records: Iterable[Record]) -> str:
    """Return how often test digits are misclassified over several draws of their distortion.

    Args:
        records: measurements of ``scripts/analysis/error_consistency.py``.
    """
    header = ["run", "error, %", "digits never misclassified", "in less than half of the draws"]
    header += ["in half or more", "their share of errors, %"]
    rows = []
    for record in _sort_by_run(records):
        digits = {row["misread"]: row["digits"] for row in record["rows"]}
        draws, errors = max(digits), sum(times * n for times, n in digits.items())
        hard = {times: n for times, n in digits.items() if times >= draws / 2}
        share = sum(times * n for times, n in hard.items()) / max(errors, 1)
        n_hard = sum(hard.values())
        counts = (digits[0], record["samples"] - digits[0] - n_hard, n_hard)
        error = f"{100 * errors / draws / record['samples']:.2f}"
        numbers = [f"{n:,}" for n in counts]
        rows.append([_run_name(record), error, *numbers, f"{100 * share:.0f}"])
    return markdown_table(header, rows) if rows else NOT_RUN


def times_table(records: Iterable[Record]) -> str:
    """Return the median time of runs by experiment, recipe and machine."""
    minutes: dict[tuple, list[float]] = defaultdict(list)
    for record in records:
        device = record["device"]
        if device.startswith("cpu"):
            device += f", {record['threads']} thread{'s' * (record['threads'] > 1)}"
        key = (record["experiment"], record["model"], record["recipe"], record["steps"], device)
        minutes[key].append(record["seconds"] / 60)
    rows = []
    for (experiment, model, recipe, steps, device), values in sorted(minutes.items()):
        median = f"{statistics.median(values):.0f}"
        rows.append([experiment, model, f"{recipe}, {steps:,}", device, len(values), median])
    header = ["experiment", "model", "recipe, steps", "on", "runs", "minutes a run, median"]
    return markdown_table(header, rows)


def colocalisation_ablation_table(records: Iterable[Record], conf: Path) -> str:
    """Return the percentage of co-localised images by the settings that a run changed.

    Digits with a single row to show are left out.

    Args:
        records: results of co-localisation.
        conf: directory of the configuration.
    """
    found = _empty_cells()
    for record in records:
        changed = ", ".join(f"`{setting}`" for setting in changed_settings(record, conf))
        data = record["config"]["data"]
        column = data["distortion"].upper(), data["digit"]
        found[changed, record["steps"]][column].append(100 - record["metrics"]["test/error"])
    times = Counter(column for values in found.values() for column in values)
    columns = sorted(column for column in times if times[column] > 1)
    rows = _mean_rows(found, columns, format_percent)
    rows = [[changed or "nothing", *cells] for changed, *cells in rows]
    header = ["changed", "steps", *(f"{name}, {digit}" for name, digit in columns)]
    return markdown_table(header, rows) if columns else NOT_RUN


def svhn_window_table(records: Iterable[Record], conf: Path) -> str:
    """Return the side of the window that the transformers read together, in % of the image's."""
    names = {network: name for name, network in paper.SVHN_NETWORKS.items()}
    windows = _empty_cells()
    for record in records:
        name = names.get((record["model"], record["transform"]))
        areas = [
            _mean_area(record["metrics"], theta)
            for theta in ("theta", "theta_2", "theta_3", "theta_4")
            if f"{theta}/mean_0" in record["metrics"]
        ]
        if name and areas and matches_config(record, conf):
            row = (name, *label_recipe(record), record["config"]["data"]["size"])
            # The area of a product is the product of the areas.
            windows[row]["side"].append(100 * math.sqrt(math.prod(areas)))
    rows = [
        [name, label, f"{size} px", side]
        for name, *_, label, size, side in _mean_rows(windows, ["side"])
    ]
    header = ["network", "recipe, steps", "crops", "side of the window, %"]
    return markdown_table(header, rows) if rows else NOT_RUN


def _mean_area(metrics: dict[str, float], theta: str) -> float:
    """Return the determinant of the mean affine matrix: the area of the window."""
    a, b, c, d = (metrics[f"{theta}/mean_{n}"] for n in (0, 1, 3, 4))
    return abs(a * d - b * c)


def bird_part_coverage(
    records: Iterable[Record], conf: Path, experiment: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Return how often each crop contains each part of a bird, in percent, by recipe.

    Rows :data:`BOX` and :data:`ON_BOX` have the overlap of the crops with the bird's box. Values
    are means over seeds.

    Args:
        records: results of birds.
        conf: directory of the configuration.
        experiment: a key of ``paper.BIRDS``.

    Returns:
        title of the recipe -> part -> crop -> percentage.
    """
    runs: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    for record in records:
        is_row = birds_options(experiment).items() <= overrides_for(record, conf).items()
        if is_row and matches_config(record, conf):
            key = (record["recipe"], record["steps"], describe_species(record))
            runs[key].append(record["metrics"])
    return {
        f"{recipe}, {steps:,} steps; {species}; seeds: {len(metrics)}": _mean_parts(metrics)
        for (recipe, steps, species), metrics in sorted(runs.items())
    }


def _mean_parts(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    prefixes = {BOX: "test/box_", ON_BOX: "test/on_box_"}
    for metrics in runs:
        for name, value in metrics.items():
            if name.startswith("test/parts_"):
                crop, part = name.removeprefix("test/parts_").split("/")
                found[part][crop].append(value)
        for part, prefix in prefixes.items():
            for name, value in metrics.items():
                if name.startswith(prefix):
                    found[part][name.removeprefix(prefix)].append(value)
    return {
        part: {
            f"crop {crop}" if crop.isdigit() else f"{crop} crop": statistics.fmean(values)
            for crop, values in crops.items()
        }
        for part, crops in found.items()
    }


def crop_names(parts: dict[str, dict[str, float]]) -> list[str]:
    """Return the crops of :func:`bird_part_coverage`, the network's before the baselines."""
    names = {crop for values in parts.values() for crop in values}
    return sorted(names, key=lambda crop: (not crop.startswith("crop "), crop))


def parts_table(records: Iterable[Record], conf: Path, experiment: str) -> str:
    """Return :func:`bird_part_coverage` as Markdown, a table for each recipe."""
    tables = []
    for title, parts in bird_part_coverage(records, conf, experiment).items():
        crops = crop_names(parts)
        rows = []
        for part, values in parts.items():
            numbers = [f"{values[crop]:.0f}" if crop in values else "–" for crop in crops]
            rows.append([f"*{part}*" if part in (BOX, ON_BOX) else part, *numbers])
        tables.append(f"{title}:\n\n{markdown_table(['part', *crops], rows)}")
    return "\n\n".join(tables) or NOT_RUN


def bird_trials_table(records: Iterable[Record], conf: Path) -> str:
    """Return accuracies of bird networks by the settings that a run changed.

    Args:
        records: results of birds, all of the same species.
        conf: directory of the configuration.
    """
    found = _empty_cells()
    for record in records:
        changed = ", ".join(f"`{setting}`" for setting in changed_settings(record, conf))
        options = [f"`{record[name]}`" for name in ("experiment", "model", "recipe")]
        key = *options, changed or "–", record["config"]["data"]["size"], record["steps"]
        found[key]["validation"].append(100 - record["metrics"]["val/best_error"])
        found[key]["test"].append(record["metrics"]["test/accuracy"])
    rows = _mean_rows(found, ("validation", "test"))
    rows = [[*run, str(steps), validation, test] for *run, steps, validation, test in rows]
    header = ["experiment", "model", "recipe", "changed", "size, px", "steps"]
    header += ["validation accuracy, %", "test accuracy, %"]
    return markdown_table(header, rows) if rows else NOT_RUN


def slopes_table(records: Iterable[Record]) -> str:
    """Return gradients of the loss next to its slopes over larger distances.

    Args:
        records: measurements of ``scripts/analysis/gradient_vs_finite_difference.py``.
    """
    header = ["run", "test images", "moved by, px", "the loss's slope, spread"]
    header += ["the gradient, spread", "correlation", "same sign"]
    rows = []
    for record in sorted(records, key=lambda record: record["label"]):
        for row in record["rows"]:
            values = [f"{row['slope']:.1f}", f"{row['gradient']:.1f}", f"{row['correlation']:.2f}"]
            sign = f"{100 * row['same sign']:.0f} %"
            rows.append([f"`{record['label']}`", record["samples"], row["pixels"], *values, sign])
    return markdown_table(header, rows) if rows else NOT_RUN


def conformance_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the results of ``scripts/dev/conformance.py`` with a column for each library.

    A cell has the passed cases, the supported cases and the largest error. It is bold if a case
    failed.
    """
    rows = list(rows)
    libraries = {row["library"]: f"{row['library']} {row['version']}" for row in rows}
    groups: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        groups[row["group"]][row["library"]] = row
    lines = [
        [
            group,
            max(row["cases"] for row in found.values()),
            *(_conformance_cell(found.get(library)) for library in libraries),
        ]
        for group, found in groups.items()
    ]
    return markdown_table(["group", "cases", *libraries.values()], lines) if rows else NOT_RUN


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


def recipe_table(records: Iterable[Record], conf: Path) -> str:
    """Return the errors of runs that changed settings of their recipe, and these settings."""
    metrics = {"val/best_error": "validation error", "test/error": "test error"}
    found = _empty_cells()
    for record in records:
        run = _network(record), record["config"]["data"]["distortion"].upper(), record["recipe"]
        changes = changed_recipe(record, conf)
        changed = ", ".join(f"{name} {value or 'none'}" for name, value in changes.items())
        row = record["model"], record["transform"], *run, record["steps"], changed
        for metric in metrics:
            found[row][metric].append(record["metrics"][metric])
    rows = [
        [network, distortion, recipe, changed or "–", steps, *errors]
        for _, _, network, distortion, recipe, steps, changed, *errors in _mean_rows(found, metrics)
    ]
    header = ["network", "distortion", "recipe", "other than in the file", "steps"]
    return markdown_table([*header, *metrics.values()], rows)


def changed_recipe(record: Record, conf: Path) -> dict[str, Any]:
    """Return the settings of a run that differ from the file of its recipe in ``conf``."""
    settings = flatten(record["config"]["recipe"])
    expected = flatten(standard_settings(record, conf)["recipe"])
    return {name: settings.get(name) for name in diff_keys(expected, settings)}


def steps_chart(records: Iterable[Record], conf: Path) -> Figure:
    """Plot the mean test error against the length of training.

    There is a line for each recipe, network, distortion and precision with runs of several lengths.
    """
    errors: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        network, distortion = _network(record), record["config"]["data"]["distortion"]
        changes = (_describe_change(*item) for item in changed_recipe(record, conf).items())
        recipe = f"recipe={record['recipe']}"
        precision = record.get("precision", "32-true")  # old records lack it
        words = [f"{network} on {distortion.upper()}", recipe, *changes]
        line = ", ".join(words if precision == "32-true" else [*words, precision])
        errors[line][record["steps"]].append(record["metrics"]["test/error"])
    figure = Figure(figsize=(7, 5.4), layout="constrained")
    axes = figure.add_subplot()
    for line, lengths in sorted(errors.items()):
        if len(lengths) > 1:
            steps = sorted(lengths)
            axes.plot(steps, [statistics.fmean(lengths[n]) for n in steps], "o-", label=line)
    label = "ST-FCN affine on RTS, the paper after 150,000 steps"
    axes.axhline(paper.TABLE_1["ST-FCN affine"]["rts"], color="black", linestyle=":", label=label)
    axes.set(xscale="log", yscale="log", title="Test error by length of training")
    axes.set(xlabel="training steps (256 samples each)", ylabel="test error, %")
    format_log_axis(axes.xaxis)
    format_log_axis(axes.yaxis)
    axes.grid(alpha=0.6)
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def _describe_change(name: str, value: Any) -> str:
    setting = name.rpartition(".")[2].replace("_", " ")
    return f"{setting} {value}" if value else f"no {setting}"


def fill_table_markers(text: str, tables: dict[str, str]) -> str:
    """Replace the text between ``<!-- table NAME -->`` and ``<!-- end -->`` with each table.

    Raises:
        UsageError: a marker is missing.
    """
    for name, table in tables.items():
        start, end = f"<!-- table {name} -->\n", "<!-- end -->"
        before, marker, rest = text.partition(start)
        _, end_marker, after = rest.partition(end)
        if not marker or not end_marker:
            markers = f"{start.strip()} and {end}"
            raise UsageError(f"The text has no place for table {name}. Add {markers}.")
        text = f"{before}{start}{table}\n{end}{after}"
    return text
