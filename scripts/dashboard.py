"""Create the W&B dashboard of a project: a view for each table of the paper, and a report.

    python scripts/dashboard.py --entity TEAM [--project spatial-transformer]
    python scripts/dashboard.py --print

A view shows the runs of one table: curves of each network with a band from the lowest to the
highest seed, what the transformers read, and statistics of theta. The report also has the paper's
numbers next to ours, from results/. Each call creates new views and a new report.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from spatial_transformer.loggers.wandb import STEP
from spatial_transformer.paper import BIRDS
from spatial_transformer.reporting.paper_tables import paper_tables

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import And, Config, Metric
except ImportError:
    sys.exit("error: wandb-workspaces is missing. Run pip install -e '.[dashboard]'.")

ROOT = Path(__file__).parent.parent
SEEDS_OF = ("network", "choices.recipe", "trainer.max_steps")
"""Runs that agree in these are seeds of one curve."""


@dataclass(frozen=True)
class Part:
    """The runs and the panels of one table.

    Args:
        title: of its view, and of its section in the report.
        table: its key in :func:`paper_tables`.
        experiments: whose runs it shows.
        column, columns: key of the configuration by which its columns differ, and its values.
        tested, pictures: metrics of the test set, and pictures next to the crops.
    """

    title: str
    table: str
    experiments: tuple[str, ...]
    column: str = ""
    columns: tuple[str | int, ...] = ()
    tested: tuple[str, ...] = ("test/error",)
    pictures: tuple[str, ...] = ("mean_images", "mistakes", "confusion")


PARTS = (
    Part(
        "Table 1: distorted MNIST",
        "mnist",
        ("mnist",),
        column="distortion",
        columns=("r", "rts", "p", "e", "t", "tc"),
    ),
    Part(
        "Table 2: house numbers",
        "svhn",
        ("svhn_cnn", "svhn_st_single", "svhn_st_multi"),
        column="size",
        columns=(64, 128),
        tested=("test/error", "test/digit_error", "test/length_error"),
        pictures=("mistakes",),
    ),
    Part(
        "Table 3: birds",
        "birds",
        tuple(BIRDS),
        tested=("test/accuracy", "test/macro_accuracy"),
        pictures=("contact_sheet", "mistakes"),
    ),
    Part("A.1: MNIST addition", "addition", ("mnist_addition",)),
    Part(
        "A.2: co-localisation",
        "colocalisation",
        ("colocalisation",),
        column="distortion",
        columns=("t", "tc"),
        tested=("test/error", "test/overlap"),
        pictures=(),
    ),
    Part("A.3: volumes", "volumes", ("mnist_3d",)),
)


def build_views(entity: str, project: str) -> list[Any]:
    """Return a view for each part, with its runs by network, recipe and column."""
    views = []
    for part in PARTS:
        keys = [*SEEDS_OF, *([part.column] if part.column else [])]
        runs = ws.RunsetSettings(
            filters=And(Metric("Group").isin(list(part.experiments))),
            groupby=[Config(key) for key in keys],
            pinned_columns=[f"summary:{name}" for name in ("val/best_error", *part.tested)],
        )
        sections = [ws.Section(*item, is_open=True) for item in build_panels(part).items()]
        view = ws.Workspace(
            entity=entity,
            project=project,
            name=part.title,
            sections=sections,
            settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=40),
            runset_settings=runs,
        )
        views.append(view)
    return views


def build_panels(part: Part) -> dict[str, list[Any]]:
    """Return the panels of a part by section, with the mean and the range of the seeds."""
    seeds: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    theta = "theta(_[0-9]+)?"  # of each transformer

    def line(title: str, keys: str, log_y: bool = False) -> wr.LinePlot:
        return wr.LinePlot(title=title, x=STEP, metric_regex=f"^{keys}$", log_y=log_y, **seeds)

    return {
        "Errors": [
            line("Validation error, %", "val/error"),
            line("Training loss", "train/loss", log_y=True),
            *(wr.BarPlot(title=f"{name}, %", metrics=[name], **seeds) for name in part.tested),
        ],
        "What the transformers read": [
            wr.MediaBrowser(title=name, media_keys=[f"pictures/{name}"], num_columns=4)
            for name in ("crops", "training", *part.pictures)
        ],
        "Theta": [
            line("Scale or displacement", f"{theta}/(scale|scale_[xyz]|displacement)"),
            line("Shift, in units of half the image", f"{theta}/shift"),
            line("Rotation, degrees", f"{theta}/rotation"),
            line("Fraction of points read outside the image", f"{theta}/outside"),
            line("Gradient norm of localisation", "localisation/gradient_norm", log_y=True),
        ],
    }


def build_report(entity: str, project: str, tables: dict[str, str]) -> wr.Report:
    """Return the report: for each part its table, and the panels of each column.

    Args:
        entity, project: where the runs are.
        tables: Markdown by the keys of the tables.
    """
    blocks: list[Any] = [wr.TableOfContents()]
    for part in PARTS:
        blocks += [wr.H1(part.title), wr.MarkdownBlock(tables[part.table])]
        for column in part.columns or (None,):
            filters = [Metric("Group").isin(list(part.experiments))]
            if column is not None:
                blocks.append(wr.H2(f"{part.column} {column}"))
                filters.append(Config(part.column) == column)
            keys = [f"config.{key}" for key in SEEDS_OF]
            runs = wr.Runset(name=part.title, filters=And(*filters), groupby=keys)
            panels = [panel for section in build_panels(part).values() for panel in section]
            for n, panel in enumerate(panels):
                panel.layout = wr.Layout(x=12 * (n % 2), y=8 * (n // 2), w=12, h=8)
            blocks.append(wr.PanelGrid(runsets=[runs], panels=panels))
    return wr.Report(
        entity=entity,
        project=project,
        title="Spatial Transformer Networks, reproduced",
        description="Bands span the seeds. Numbers in italics are the paper's.",
        blocks=blocks,
        width="fluid",
    )


def to_json(item: ws.Workspace | wr.Report) -> dict[str, Any]:
    """Return what W&B would be sent."""
    return item._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def upload(items: Sequence[ws.Workspace | wr.Report]) -> None:
    """Send views and reports to W&B, which prints their addresses."""
    try:
        if not wandb.login(prompt=False):
            sys.exit("error: W&B has no key. Run `wandb login` once, or use --print.")
        for item in items:
            item.entity = item.entity or wandb.Api().default_entity or ""
            item.save()
    except Exception as error:  # the packages of W&B raise errors of many unrelated kinds
        reason = str(error).partition("\n")[0]
        sys.exit(f"error: W&B refused the dashboard: {reason}")


def main() -> None:
    """Create the views and the report, and send or print them."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--entity", default="", help="owner of the project (default: owner of the API key)"
    )
    parser.add_argument("--project", default="spatial-transformer", help="project of the runs")
    parser.add_argument("--print", action="store_true", help="print what would be sent, as JSON")
    options = parser.parse_args()
    tables = paper_tables(ROOT / "results", ROOT / "conf").items()
    markdown = {name: table.markdown() for name, table in tables}
    items = build_views(options.entity, options.project)
    items.append(build_report(options.entity, options.project, markdown))
    if options.print:
        print(json.dumps([to_json(item) for item in items], indent=1))
    else:
        upload(items)


if __name__ == "__main__":
    main()
