"""Tables and chart of the speed records in results/benchmarks, which scripts/dev/benchmark.py makes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from omegaconf import OmegaConf

from ..paper import NETWORKS
from .paper_tables import NOT_RUN
from .records import read_measurements

Rows = list[dict[str, Any]]
PARTS = ("warps", "memory", "scaling", "data", "networks", "svhn", "birds", "program", "threads")
_OTHERS = ("torch", "kornia", "monai", "torch-tps")


def benchmark_tables(folder: Path, recipes: Path) -> dict[str, str]:
    """A Markdown table for each part in ``folder``, "machine", and "table 1": how long the paper's first table takes.

    Args:
        folder: the records; what is missing there is "not run".
        recipes: folder of the recipes' files, for their lengths.
    """
    records = {part: _record(folder / f"{part}.json") for part in PARTS}
    makers = {
        "warps": _warps,
        "memory": _memory,
        "scaling": _scaling,
        "data": _data,
        "networks": _networks,
        "svhn": _svhn,
        "birds": _birds,
        "program": _program,
        "threads": _threads,
    }
    tables = {
        part: NOT_RUN if record is None else makers[part](record["rows"])
        for part, record in records.items()
    }
    networks = records["networks"]
    tables["table 1"] = NOT_RUN if networks is None else _table_1(networks["rows"], recipes)
    machine = next((record["machine"] for record in records.values() if record is not None), None)
    return tables | {"machine": NOT_RUN if machine is None else _machine(machine)}


def _record(path: Path) -> dict[str, Any] | None:
    return read_measurements(path) if path.is_file() else None


def _machine(machine: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    return f"{machine['cpu']}, {machine['threads']} threads{gpu}; {packages}."


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]
    )


def _size(row: dict[str, Any]) -> str:
    return "×".join(map(str, row["size"]))


def _warps(rows: Rows) -> str:
    head = [
        "transform",
        "size",
        "gradient of",
        "where",
        "ours, ms",
        *(f"ours / {who}" for who in _OTHERS),
    ]
    lines = []
    for row in rows:
        where = (
            "GPU"
            if row["device"] == "cuda"
            else f"CPU, {row['threads']} thread{'s' * (row['threads'] > 1)}"
        )
        ratios = [f"{row[f'ours/{who}']:.2f}" if f"ours/{who}" in row else "–" for who in _OTHERS]
        size = _size(row) + ", channels last" * row["channels last"]
        lines.append(
            [row["transform"], size, row["gradient"], where, f"{row['ours ms']:.2f}", *ratios]
        )
    return _table(head, lines)


def _memory(rows: Rows) -> str:
    lines = []
    for row in rows:
        others = (
            [f"{row['torch MB']:,.0f}", f"{row['ours/torch']:.2f}"]
            if "ours/torch" in row
            else ["–", "–"]
        )
        lines.append(
            [row["transform"], _size(row), row["gradient"], f"{row['ours MB']:,.0f}", *others]
        )
    return _table(
        ["transform", "size", "gradient of", "ours, MB", "torch, MB", "ours / torch"], lines
    )


def _scaling(rows: Rows) -> str:
    return _table(
        ["grows", "value", "ours, ms", "torch, ms"],
        [
            [row["over"], str(row["value"]), f"{row['ours ms']:.2f}", f"{row.get('torch ms', '–')}"]
            for row in rows
        ],
    )


def _data(rows: Rows) -> str:
    others = ("torchvision, tensors", "torchvision, PIL")
    return _table(
        ["distortion", "ours, images/s", *(f"times as fast as {who}" for who in others)],
        [
            [
                row["distortion"].upper(),
                f"{row['ours images/s']:,}",
                *(f"{row[f'ours/{who}']:.0f}" for who in others),
            ]
            for row in rows
        ],
    )


def _networks(rows: Rows) -> str:
    sizes = sorted({row["size"] for row in rows})
    speeds: dict[tuple[str, int], str] = defaultdict(lambda: "–")
    for row in rows:
        faster = f" ({row['times faster']:.2f}×)" if "times faster" in row else ""
        speeds[row["network"], row["size"]] = f"{row['steps/s']}{faster}"
    return _table(
        ["network", *(f"{size}×{size}" for size in sizes)],
        [[name, *(speeds[name, size] for size in sizes)] for name in NETWORKS],
    )


def _svhn(rows: Rows) -> str:
    networks, data = (
        [row for row in rows if "network" in row],
        [row for row in rows if "network" not in row],
    )
    device = {"cpu": "CPU", "cuda": "GPU"}
    first = _table(
        [
            "network",
            "px",
            "where",
            "batch",
            "ms",
            "times the CNN",
            "in bfloat16, ms",
            "of it localisation",
            "of it warps",
        ],
        [
            [
                row["network"],
                str(row["size"]),
                f"{device[row['device']]}, {row['threads']} threads",
                str(row["batch"]),
            ]
            + [f"{row['ms']:,.0f}", f"{row['times CNN']:.2f}", f"{row['bfloat16 ms']:,.0f}"]
            + [
                f"{100 * row[part] / row['ms']:.0f} %" if part in row else "–"
                for part in ("localisation ms", "warps ms")
            ]
            for row in networks
        ],
    )
    second = _table(
        [
            "px",
            "crops made, images/s",
            "second start, ms",
            "batches, images/s",
            "augmented, images/s",
        ],
        [
            [str(row["size"]), f"{row['crops made/s']:,}", f"{row['second start ms']:.0f}"]
            + [f"{row[f'{what} images/s']:,}" for what in ("plain", "augmented")]
            for row in data
        ],
    )
    return f"{first}\n\n{second}"


def _birds(rows: Rows) -> str:
    networks, data = (
        [row for row in rows if "transformers" in row],
        [row for row in rows if "transformers" not in row],
    )
    first = _table(
        [
            "transformers",
            "image, px",
            "images/s",
            "of it the transformer",
            "the streams, ms",
            "kept for backward, MB an image",
        ],
        [
            [str(row["transformers"]), str(row["size"]), str(row["images/s"])]
            + (
                [f"{100 * row['transformer ms'] / row['ms']:.0f} %"]
                if row["transformers"]
                else ["–"]
            )
            + [f"{row['ms'] - row.get('transformer ms', 0):,.0f}", f"{row['kept MB/image']:,.0f}"]
            for row in networks
        ],
    )
    second = _table(
        ["px", "decoded and resized, images/s", "batches, images/s"],
        [[str(row["size"]), f"{row['decoded/s']:,}", f"{row['cut/s']:,}"] for row in data],
    )
    return f"{first}\n\n{second}"


def _table_1(rows: Rows, recipes: Path) -> str:
    """Projected from the steps per second: R, P and E have 28 px, RTS has 42."""
    seconds_per_step = sum((3 if row["size"] == 28 else 1) / row["steps/s"] for row in rows)
    lines = []
    for recipe in ("fast", "long", "paper"):
        steps = OmegaConf.load(recipes / f"{recipe}.yaml")["recipe"]["max_steps"]  # type: ignore[index]
        lines.append(
            f"- `recipe={recipe}`, {steps:,} steps: {seconds_per_step * steps / 3600:,.0f} hours"
        )
    return "\n".join(lines)


def _program(rows: Rows) -> str:
    lines = [f"- `train.py --help`: {row['seconds']} s" for row in rows if "command" in row]
    for row in rows:
        if "model" in row:
            share = 100 * row["share outside forward, backward, step"]
            lines.append(
                f"- `model={row['model']}` on RTS: {row['seconds to the first step']} s to the first step, "
                f"{row['steps/s']} steps/s, {share:.0f} % of the time outside forward, backward and step"
            )
    return "\n".join(lines)


def _threads(rows: Rows) -> str:
    return _table(
        ["busy programs beside", "threads' wait", "steps/s"],
        [[str(row["busy programs"]), row["wait"], str(row["steps/s"])] for row in rows],
    )


def benchmark_chart(folder: Path) -> Figure | None:
    """How much longer others take for a warp, and how the time grows; None without the records."""
    warps, scaling = _record(folder / "warps.json"), _record(folder / "scaling.json")
    if warps is None or scaling is None:
        return None
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    bars, *plots = (figure.add_subplot(2, 2, place) for place in (1, 2, 3, 4))
    labels: list[str] = []
    colours = dict(zip(_OTHERS, ("C1", "C2", "C4", "C3"), strict=True))
    for row in warps["rows"]:
        in_network = row["gradient"] == ("theta and x" if row["size"][1] > 3 else "theta")
        if row["threads"] != 1 or row["device"] != "cpu" or not in_network:
            continue
        others = [who for who in _OTHERS if f"ours/{who}" in row]
        for place, who in enumerate(others):
            times = 1 / row[f"ours/{who}"]
            bars.barh(
                len(labels) + place * 0.35 - 0.17 * (len(others) - 1),
                times,
                0.33,
                color=colours[who],
            )
        labels.append(f"{row['transform']} {_size(row)}" + ", channels last" * row["channels last"])
    bars.set_yticks(range(len(labels)), labels)
    bars.invert_yaxis()
    bars.set_xscale("log")
    bars.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bars.xaxis.set_major_formatter("{x:g}")
    bars.xaxis.set_minor_locator(NullLocator())
    bars.axvline(1, color="black", linewidth=1)
    bars.set_xlabel("time of others, as a multiple of ours (one thread)")
    for who in _OTHERS:
        bars.barh(0, 0, color=colours[who], label=who)
    bars.legend(fontsize=8)
    overs = list(dict.fromkeys(row["over"] for row in scaling["rows"]))
    for axes, over in zip(plots, overs, strict=False):
        rows = [row for row in scaling["rows"] if row["over"] == over]
        for who, colour in (("ours", "C0"), ("torch", "C1")):
            points = [(row["value"], row[f"{who} ms"]) for row in rows if f"{who} ms" in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=colour, label=who)
        axes.set(xscale="log", yscale="log", xlabel=over, ylabel="forward and backward, ms")
        axes.set_xticks([row["value"] for row in rows], [f"{row['value']}" for row in rows])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(fontsize=8)
    return figure
