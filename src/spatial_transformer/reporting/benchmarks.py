"""Build the tables and chart of the results in results/benchmarks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from omegaconf import OmegaConf

from ..paper import NETWORKS
from .paper_tables import NOT_RUN
from .records import read_measurements

Row = dict[str, Any]
Columns = dict[str, str | Callable[[Row], str]]
"""Headers, and format strings of a row's values or functions of the row."""
LIBRARIES = ("torch", "kornia", "monai", "torch-tps")
_OTHER_SPLINE = "kornia, another spline"
_STYLES: dict[str, dict[str, Any]] = {
    "torch": {"color": "C1", "marker": "o"},
    "kornia": {"color": "C2", "marker": "s"},
    "monai": {"color": "C4", "marker": "^"},
    "torch-tps": {"color": "C3", "marker": "D"},
    _OTHER_SPLINE: {"color": "C2", "marker": "s", "fillstyle": "none"},
}


def benchmark_tables(folder: Path, recipes: Path) -> dict[str, str]:
    """Return a Markdown table for each part, the machines ("machine"), and the time of Table 1.

    The time is "table 1" by the networks alone, and "table 1 stacked" by the loops of training.

    Args:
        folder: directory of the results. A missing part is "not run".
        recipes: directory of the recipes, for their lengths.
    """
    tables = dict.fromkeys([*PARTS, "table 1", "table 1 stacked"], NOT_RUN)
    machines: dict[str, list[str]] = defaultdict(list)
    for part, make_table in PARTS.items():
        result = _read(folder / f"{part}.json")
        if result is None:
            continue
        machines[_describe(result["machine"])].append(part)
        tables[part] = make_table(result["rows"])
        if part == "networks":
            tables["table 1"] = _estimate_table_1(result["rows"], recipes)
        if part == "stacked":
            tables["table 1 stacked"] = _estimate_stacked(result["rows"], recipes)
    lines = [f"- {', '.join(parts)}: {machine}" for machine, parts in machines.items()]
    return tables | {"machine": "\n".join(lines) or NOT_RUN}


def _read(path: Path) -> dict[str, Any] | None:
    return read_measurements(path) if path.is_file() else None


def _describe(machine: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    gpu = machine["gpu"] or "no GPU"
    return f"{machine['cpu']}, {_threads(machine)}, {gpu}; {packages}."


def _table(columns: Columns, rows: list[Row]) -> str:
    cells = [[_cell(column, row) for column in columns.values()] for row in rows]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [[*columns], ["---"] * len(columns), *cells]
    )


def _cell(column: str | Callable[[Row], str], row: Row) -> str:
    try:
        return column.format_map(row) if isinstance(column, str) else column(row)
    except KeyError:
        return "–"


def _two_tables(first: Columns, second: Columns, rows: list[Row]) -> str:
    """Return a table of the rows with the time of a network, and one of the others."""
    networks, data = ([row for row in rows if ("ms" in row) is has_ms] for has_ms in (True, False))
    return f"{_table(first, networks)}\n\n{_table(second, data)}"


def _size(row: Row) -> str:
    return "×".join(map(str, row["size"])) + ", channels last" * row.get("channels last", False)


def _place(row: Row) -> str:
    if row["device"] == "cuda":
        return "GPU"
    return f"CPU, {_threads(row)}"


def _threads(row: Row) -> str:
    return f"{row['threads']} thread{'s' * (row['threads'] > 1)}"


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: f"{100 * row[name] / row['ms']:.0f} %"


_WARPS: Columns = {
    "transform": "{transform}",
    "size": _size,
    "gradient of": "{gradient}",
    "where": _place,
    "ours, ms": "{ours ms:.2f}",
    **{f"ours / {name}": f"{{ours/{name}:.2f}}" for name in LIBRARIES},
}
_MEMORY: Columns = {
    "transform": "{transform}",
    "size": _size,
    "gradient of": "{gradient}",
    "ours, MB": "{ours MB:,.0f}",
    "torch, MB": "{torch MB:,.0f}",
    "ours / torch": "{ours/torch:.2f}",
}
_SCALING: Columns = {
    "grows": "{over}",
    "value": "{value}",
    "ours, ms": "{ours ms:.2f}",
    "torch, ms": "{torch ms}",
}
_DATA: Columns = {
    "distortion": lambda row: row["distortion"].upper(),
    "ours, images/s": "{ours images/s:,}",
    "times as fast as torchvision, tensors": "{ours/torchvision, tensors:.0f}",
    "times as fast as torchvision, PIL": "{ours/torchvision, PIL:.0f}",
}
_SVHN_NETWORKS: Columns = {
    "network": "{network}",
    "px": "{size}",
    "where": _place,
    "batch": "{batch}",
    "ms": "{ms:,.0f}",
    "times the CNN": "{times CNN:.2f}",
    "in bfloat16, ms": "{bfloat16 ms:,.0f}",
    "share of localisation": _share("localisation ms"),
    "share of warps": _share("warps ms"),
}
_SVHN_DATA: Columns = {
    "px": "{size}",
    "crops made, images/s": "{crops made/s:,}",
    "second start, ms": "{second start ms:.0f}",
    "batches, images/s": "{plain images/s:,}",
    "augmented, images/s": "{augmented images/s:,}",
}
_BIRDS_NETWORKS: Columns = {
    "transformers": "{transformers}",
    "image, px": "{size}",
    "images/s": "{images/s}",
    "share of the transformer": _share("transformer ms"),
    "streams, ms": lambda row: f"{row['ms'] - row.get('transformer ms', 0):,.0f}",
    "kept for backward, MB per image": "{kept MB/image:,.0f}",
}
_BIRDS_DATA: Columns = {
    "px": "{size}",
    "decoded and resized, images/s": "{decoded/s:,}",
    "batches, images/s": "{cut/s:,}",
}
_STACKED: Columns = {
    "network": "{network}",
    "distortion": lambda row: row["distortion"].upper(),
    "where": _place,
    "Lightning's loop": "{plain steps/s}",
    "an epoch drawn at once": "{one seed steps/s}",
    "and a CUDA graph": "{CUDA graph steps/s}",
    "and three seeds in turn": "{three in turn steps/s}",
    "or stacked": "{three stacked steps/s}",
    "best / Lightning's": lambda row: f"{_best_stacked(row) / row['plain steps/s']:.1f}",
}
_THREADS: Columns = {
    "other busy programs": "{busy programs}",
    "wait of threads": "{wait}",
    "steps/s": "{steps/s}",
}


def _networks(rows: list[Row]) -> str:
    """Return a table with a column for each size."""
    columns: Columns = {"network": "{network}"}
    speeds: dict[str, Row] = {name: {"network": name} for name in NETWORKS}
    for row in sorted(rows, key=lambda row: row["size"]):
        size = f"{row['size']}×{row['size']}"
        columns[size] = f"{{{size}}}"
        speedup = f" ({row['times faster']:.2f}×)" if "times faster" in row else ""
        speeds[row["network"]][size] = f"{row['steps/s']}{speedup}"
    return _table(columns, list(speeds.values()))


def _program(rows: list[Row]) -> str:
    lines = [f"- `train.py --help`: {row['seconds']} s" for row in rows if "command" in row]
    for row in rows:
        if "model" in row:
            share = 100 * row["share outside forward, backward, step"]
            lines.append(
                f"- `model={row['model']}` on RTS: {row['seconds to the first step']} s to the "
                f"first step, {row['steps/s']} steps/s, {share:.0f} % of the time outside "
                "forward, backward and step"
            )
    return "\n".join(lines)


PARTS: dict[str, Callable[[list[Row]], str]] = {
    "warps": partial(_table, _WARPS),
    "memory": partial(_table, _MEMORY),
    "scaling": partial(_table, _SCALING),
    "data": partial(_table, _DATA),
    "networks": _networks,
    "svhn": partial(_two_tables, _SVHN_NETWORKS, _SVHN_DATA),
    "birds": partial(_two_tables, _BIRDS_NETWORKS, _BIRDS_DATA),
    "program": _program,
    "stacked": partial(_table, _STACKED),
    "threads": partial(_table, _THREADS),
}
"""Parts of the benchmark, and the function that makes a table of their rows."""


def _estimate_table_1(rows: list[Row], recipes: Path) -> str:
    """Return the hours of Table 1 by recipe. R, P and E have 28 px, RTS has 42."""
    seconds_per_step = sum((3 if row["size"] == 28 else 1) / row["steps/s"] for row in rows)
    lines = []
    for recipe in ("fast", "long", "paper"):
        steps = OmegaConf.load(recipes / f"{recipe}.yaml")["recipe"]["max_steps"]  # type: ignore[index]
        hours = seconds_per_step * steps / 3600
        lines.append(f"- `recipe={recipe}`, {steps:,} steps: {hours:,.0f} hours")
    return "\n".join(lines)


def _estimate_stacked(rows: list[Row], recipes: Path) -> str:
    """Return the minutes of the 96 runs of Table 1 by each loop.

    R stands for R, P and E. The affine networks stand for the projective and TPS ones.
    """
    steps = OmegaConf.load(recipes / "fast.yaml")["recipe"]["max_steps"]  # type: ignore[index]
    minutes = {"Lightning's loop": 0.0, "the fastest of the others": 0.0}
    for row in rows:
        seeds, distortions = 3, 3 if row["distortion"] == "r" else 1
        networks = 3 if row["network"].startswith("ST-") else 1
        run_steps = seeds * distortions * networks * steps
        for loop, speed in zip(minutes, (row["plain steps/s"], _best_stacked(row)), strict=True):
            minutes[loop] += run_steps / speed / 60
    return "\n".join(f"- {loop}: {value:,.0f} minutes" for loop, value in minutes.items())


def _best_stacked(row: Row) -> float:
    """Return the steps per second of the fastest way to train several seeds."""
    speeds = [value for name, value in row.items() if name.endswith("steps/s")]
    return float(max(speeds[1:]))  # the first is Lightning's


def benchmark_chart(folder: Path) -> Figure | None:
    """Plot the time of other libraries for a warp, and how the time grows.

    Returns:
        The chart, or None without results.
    """
    warps, scaling = _read(folder / "warps.json"), _read(folder / "scaling.json")
    if warps is None or scaling is None:
        return None
    figure = Figure(figsize=(11, 8.4), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    left, right = panels
    _plot_ratios(left.add_subplot(), warps["rows"])
    overs = list(dict.fromkeys(row["over"] for row in scaling["rows"]))[:3]
    for axes, over in zip(right.subplots(3, 1), overs, strict=False):
        _plot_growth(axes, over, [row for row in scaling["rows"] if row["over"] == over])
    return figure


def _plot_ratios(axes: Axes, rows: list[Row]) -> None:
    """Plot a dot for each library and warp, as warps are used in a network, on one thread."""
    labels: list[str] = []
    points: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for row in rows:
        in_network = "theta and x" if row["size"][1] > 3 else "theta"
        if (row["threads"], row["device"], row["gradient"]) != (1, "cpu", in_network):
            continue
        for name in LIBRARIES:
            if f"ours/{name}" in row:
                other = name if (name, row["transform"]) != ("kornia", "tps") else _OTHER_SPLINE
                points[other].append((1 / row[f"ours/{name}"], len(labels)))
        labels.append(f"{row['transform']} {_size(row)}")
    for name, style in _STYLES.items():
        if name in points:
            axes.plot(*zip(*points[name], strict=True), linestyle="none", label=name, **style)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    format_log_axis(axes.xaxis)
    axes.grid(alpha=0.6)
    axes.set_title("Time of other libraries")
    axes.set_xlabel("time of library / time of ours (one thread)")
    axes.legend(loc="lower right")


def _plot_growth(axes: Axes, over: str, rows: list[Row]) -> None:
    for name, colour in (("ours", "C0"), ("torch", "C1")):
        points = [(row["value"], row[f"{name} ms"]) for row in rows if f"{name} ms" in row]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    axes.set(xscale="log", yscale="log", ylabel="forward and backward, ms")
    axes.set_title(f"Time by {over}")
    axes.set_xticks([row["value"] for row in rows], [f"{row['value']:,}" for row in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    format_log_axis(axes.yaxis)
    axes.grid(alpha=0.6)
    axes.legend()


def format_log_axis(axis: Any) -> None:
    """Label a logarithmic axis that shows its data with round numbers."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_locator(NullLocator())
