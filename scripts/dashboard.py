"""Makes W&B's dashboard of a project: a saved view for each of the paper's tables, and a report of all of them.

python scripts/dashboard.py --entity TEAM [--project spatial-transformer]
python scripts/dashboard.py --print

A view shows the runs of one table, as a workspace filters all its panels alike: curves of each network with a band from the
lowest to the highest seed, what the transformers read, and what theta does. The report has the paper's numbers beside ours,
too, from results/. Each call makes new ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_transformer.loggers.wandb import STEP
from spatial_transformer.paper import BIRDS
from spatial_transformer.reporting.paper_tables import paper_tables
from spatial_transformer.utils.errors import UsageError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report, Runset
    from wandb_workspaces.workspaces import Workspace

ROOT = Path(__file__).parent.parent
BY = (
    "network",
    "choices.recipe",
)  # keys of the configuration: runs that agree in them are taken for seeds of one curve
THETA = "theta(_[0-9]+)?"  # of each transformer


@dataclass(frozen=True)
class Part:
    """What belongs to one of the paper's tables.

    Args:
        title: of its view, and of its section in the report.
        table: its name in ``paper_tables.paper_tables``.
        experiments: whose runs it shows.
        column: the key of the configuration by which its columns differ; None where there is one column.
        columns: that key's values.
        tested: figures of the test set.
        pictures: beside the crops.
    """

    title: str
    table: str
    experiments: tuple[str, ...]
    column: str | None = None
    columns: tuple[str | int, ...] = ()
    tested: tuple[str, ...] = ("test/error",)
    pictures: tuple[str, ...] = ("mean_images", "mistakes", "confusion")


PARTS = (
    Part(
        "Table 1: distorted MNIST",
        "mnist",
        ("mnist",),
        "distortion",
        ("r", "rts", "p", "e", "t", "tc"),
    ),
    Part(
        "Table 2: house numbers",
        "svhn",
        ("svhn_cnn", "svhn_st_single", "svhn_st_multi"),
        "size",
        (64, 128),
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
        "distortion",
        ("t", "tc"),
        tested=("test/error", "test/overlap"),
        pictures=(),
    ),
    Part("A.3: volumes", "volumes", ("mnist_3d",)),
)


def workspaces(entity: str, project: str) -> list[Workspace]:
    """A view for each part: its runs by network, recipe and column."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.expr import And, Config, Metric

    views = []
    for part in PARTS:
        keys = [*BY, *([part.column] if part.column else [])]
        runs = ws.RunsetSettings(
            filters=And(Metric("Group").isin(list(part.experiments))),
            groupby=[Config(key) for key in keys],
            pinned_columns=[f"summary:{name}" for name in ("val/best_error", *part.tested)],
        )
        sections = [
            ws.Section(name, panels, is_open=True) for name, panels in panels_of(part).items()
        ]
        views.append(
            ws.Workspace(
                entity=entity,
                project=project,
                name=part.title,
                sections=sections,
                settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=40),
                runset_settings=runs,
            )
        )
    return views


def panels_of(part: Part) -> dict[str, list[Any]]:
    """The panels of a part, by section; lines and bars are of groups of runs, with their mean and range."""
    import wandb_workspaces.reports.v2 as wr

    def line(title: str, *keys: str, regex: str | None = None, **more: Any) -> Any:
        return wr.LinePlot(
            title=title,
            x=STEP,
            y=list(keys),
            metric_regex=regex,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            **more,
        )

    tested = [
        wr.BarPlot(title=name, metrics=[name], groupby_aggfunc="mean", groupby_rangefunc="minmax")
        for name in part.tested
    ]
    pictures = [
        wr.MediaBrowser(title=name, media_keys=[f"pictures/{name}"], num_columns=1)
        for name in ("crops", "training", *part.pictures)
    ]
    return {
        "Errors": [
            line("Validation error, %", "val/error"),
            line("Training loss", "train/loss", log_y=True),
            *tested,
        ],
        "What the transformers read": pictures,
        "Theta": [
            line("Mean of each parameter over the validation set", regex=f"^{THETA}/mean_[0-9]+$"),
            line("Its standard deviation", regex=f"^{THETA}/std_[0-9]+$"),
            line("Share of points read outside the image", regex=f"^{THETA}/outside$"),
            line(
                "Gradient norm of the localisation network",
                "localisation/gradient_norm",
                log_y=True,
            ),
        ],
    }


def report(entity: str, project: str, tables: dict[str, str]) -> Report:
    """The report: for each part the table, and for each of its columns the panels.

    Args:
        entity: whose project it is.
        project: where the runs are.
        tables: Markdown by the parts' tables.
    """
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for part in PARTS:
        blocks += [wr.H1(part.title), wr.MarkdownBlock(tables[part.table])]
        for column in part.columns or (None,):
            if column is not None:
                blocks.append(wr.H2(f"{part.column} {column}"))
            panels = [panel for of_section in panels_of(part).values() for panel in of_section]
            for n, panel in enumerate(panels):
                panel.layout = wr.Layout(x=12 * (n % 2), y=8 * (n // 2), w=12, h=8)
            blocks.append(wr.PanelGrid(runsets=[_runs(part, column)], panels=panels))
    about = "Runs by network and recipe, with a band from the lowest to the highest seed. Numbers in italics are the paper's."
    return wr.Report(
        entity=entity,
        project=project,
        title="Spatial Transformer Networks, reproduced",
        description=about,
        blocks=blocks,
        width="fluid",
    )


def _runs(part: Part, column: str | int | None) -> Runset:
    """The runs of a column by network and recipe. They name no project, which is then the report's."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces.expr import And, Config, Metric

    chosen = [Metric("Group").isin(list(part.experiments))]
    if part.column is not None:
        chosen.append(Config(part.column) == column)
    return wr.Runset(name=part.title, filters=And(*chosen), groupby=[f"config.{key}" for key in BY])


def specification(made: Workspace | Report) -> dict[str, Any]:
    """What W&B would be sent."""
    return made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def save(dashboard: Iterable[Workspace | Report]) -> None:
    """Sends views and reports to W&B, which says their addresses.

    Raises:
        UsageError: W&B cannot be reached, or refuses.
    """
    try:
        for made in dashboard:
            made.save()
    except Exception as error:  # W&B's packages raise errors of many unrelated kinds
        raise UsageError(
            f"W&B refused the dashboard: {_first_line(error)}. Check that the key may write to the entity and "
            "the project. Use --print to see what would be sent."
        ) from error


def log_in() -> str | None:
    """Uses the key that W&B has; returns its entity, where it has a default one.

    Raises:
        UsageError: there is no key, or W&B cannot be reached or refuses it.
    """
    import wandb

    try:
        if wandb.login(prompt=False):
            return wandb.Api().default_entity
        reason = "there is no key"
    except Exception as error:  # as in save
        reason = _first_line(error)
    raise UsageError(
        f"There is no connection to W&B: {reason}. Run `wandb login` once. --print needs no connection."
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def main() -> None:
    """Makes views and report, and sends or prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--entity", metavar="NAME", help="whose project it is; left out, the key's own"
    )
    parser.add_argument(
        "--project", default="spatial-transformer", metavar="NAME", help="where the runs are"
    )
    parser.add_argument(
        "--print", action="store_true", help="show what would be sent, as JSON; needs no key"
    )
    options = parser.parse_args()
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        sys.exit(
            "error: the package wandb-workspaces is missing. Run pip install -e '.[dashboard]' to install it."
        )
    try:
        of_key = None if options.print else log_in()
        entity = options.entity or of_key or ""
        if not options.print and not entity:
            raise UsageError("The key has no default entity. Set --entity NAME.")
        tables = {
            name: table.markdown()
            for name, table in paper_tables(ROOT / "results", ROOT / "conf").items()
        }
        made: list[Any] = [
            *workspaces(entity, options.project),
            report(entity, options.project, tables),
        ]
        if options.print:
            print(json.dumps([specification(part) for part in made], indent=1))
        else:
            save(made)
    except UsageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
