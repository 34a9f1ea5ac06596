"""Records of finished runs, and the tables that are made of them."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .errors import UsageError
from .files import replacing
from .paper import CLUTTERED, NETWORKS, TABLE_1

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


def add_record(run: Path, folder: Path) -> Path:
    """Copies the record of a finished run to its place below ``folder``; returns that.

    Raises:
        UsageError: the run has no record.
    """
    source = run / "metrics.json"
    if not source.is_file():
        raise UsageError(f"{run} has no metrics.json: it is not a run folder, or the run has not finished.")
    record = json.loads(source.read_text())
    target = folder / record["experiment"] / f"{record['label']}-{record['steps']}.json"
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


def is_standard(record: dict[str, Any], conf: Path) -> bool:
    """Whether a run had the settings that its options have in the folder ``conf``, but for distortion, seed and length.

    Ablations, and runs of a recipe that has changed since, are not what a table calls by the option's name.
    """
    options = {group: record[group] for group in ("model", "transform", "recipe")} | {"data": record["experiment"]}
    files = {group: OmegaConf.load(conf / group / f"{option}.yaml") for group, option in options.items()}
    whole = OmegaConf.create({"seed": record["seed"], "trainer": {"max_steps": record["steps"]}, **files})
    expected: Any = OmegaConf.to_container(whole, resolve=True)
    return all(_settings_agree(expected[group], record["config"][group]) for group in options)


def _settings_agree(expected: Any, recorded: Any) -> bool:
    """Whether recorded settings are those of a file."""
    if not isinstance(expected, dict) or not isinstance(recorded, dict):
        return bool(expected == recorded)
    return all(
        name in recorded and _settings_agree(value, recorded[name])
        for name, value in expected.items()
        if name not in ("_target_", "distortion", "max_steps", "root", "defaults")
    )


def mnist_tables(records: Iterable[dict[str, Any]], conf: Path) -> str:
    """Table 1 and the cluttered row as Markdown: the paper's errors and ours, a row for each recipe and length.

    Args:
        records: of all runs; those that are not :func:`is_standard` stay out.
        conf: the folder of the configuration.
    """
    errors: dict[tuple, list[float]] = defaultdict(list)
    recipes = set()
    for record in records:
        if record["experiment"] != "mnist" or not is_standard(record, conf):
            continue
        recipe = (record["recipe"], record["steps"])
        recipes.add(recipe)
        distortion = record["config"]["data"]["distortion"]
        errors[record["model"], record["transform"], distortion, recipe].append(record["metrics"]["test/error"])
    columns = ["r", "rts", "p", "e", "tc"]
    lines = [
        "| network | recipe, steps | " + " | ".join(name.upper() for name in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, (model, transform) in NETWORKS.items():
        paper = [f"{TABLE_1[name].get(c, CLUTTERED.get(name, '–'))}" for c in columns]
        lines.append(f"| **{name}** | *paper, 150k* | " + " | ".join(f"*{value}*" for value in paper) + " |")
        rows = 0
        for recipe in sorted(recipes):
            cells = [cell(errors.get((model, transform, c, recipe), [])) for c in columns]
            if any(value != NOT_RUN for value in cells):
                lines.append(f"| | {recipe[0]}, {recipe[1]:,} | " + " | ".join(cells) + " |")
                rows += 1
        if not rows:
            lines.append("| | ours | " + " | ".join([NOT_RUN] * len(columns)) + " |")
    return "\n".join(lines)


def benchmark_table(folder: Path) -> str:
    """Speed as Markdown, from the records in ``folder``; "not run" without them."""
    warps, networks, program = (_benchmark(folder / f"{name}.json") for name in ("warps", "networks", "program"))
    if warps is None or networks is None or program is None:
        return NOT_RUN
    machine = warps["machine"]
    lines = [
        f"On {machine['cpu']}, {machine['threads']} threads, torch {machine['packages']['torch']}. Grid and sampling, "
        "forward and backward, on one thread, as a fraction of the other's time (below 1 is faster):",
        "",
        "| transform | size | input's gradient | ours / torch | ours / kornia |",
        "|---|---|---|---|---|",
    ]
    for row in warps["rows"]:
        if row["threads"] == 1:
            size = "×".join(map(str, row["size"]))
            ratios = " | ".join(f"{row[key]:.3f}" if key in row else "–" for key in ("ours/torch", "ours/kornia"))
            lines.append(f"| {row['transform']} | {size} | {'yes' if row['input gradient'] else 'no'} | {ratios} |")
    lines += [
        "",
        "Training steps per second at batch 256 (forward, backward, AdamW), and how many times as fast as the "
        "same network of PyTorch's own layers:",
        "",
    ]
    sizes = sorted({row["size"] for row in networks["rows"]})
    lines += ["| network | " + " | ".join(f"{size}×{size}" for size in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for name in NETWORKS:
        speeds = {row["size"]: _speed(row) for row in networks["rows"] if row["network"] == name}
        lines.append(f"| {name} | " + " | ".join(speeds[size] for size in sizes) + " |")
    shares = [
        f"{100 * row['share outside forward, backward, step']:.0f} % for {row['model']} ({row['steps/s']} steps/s)"
        for row in program["rows"]
    ]
    lines += ["", f"Share of a whole run on RTS outside forward, backward and step: {', '.join(shares)}."]
    return "\n".join(lines)


def _speed(row: dict[str, Any]) -> str:
    return f"{row['steps/s']}" + (f" ({row['times faster']:.2f}×)" if "times faster" in row else "")


def _benchmark(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


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
