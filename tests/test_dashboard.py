"""W&B: the dashboard is built without a server, and what its panels show is what runs log; sweeps have right combinations."""

import itertools
import json
import re
import socket
import subprocess
import sys

import dashboard
import pytest
import wandb_file
import yaml
from conftest import REPOSITORY, SHORT
from make_svhn import make as make_numbers
from tiny_birds import Bird, write_birds
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from spatial_transformer.reporting.paper_tables import paper_tables
from spatial_transformer.tasks import digit_encoder
from spatial_transformer.training.runner import train
from spatial_transformer.training.validation import validate
from spatial_transformer.utils.errors import UsageError

PARTS = {part.table: part for part in dashboard.PARTS}


@pytest.fixture
def without_network(monkeypatch):
    def refuse(*args):
        pytest.fail(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)  # W&B connects from a process of its own


@pytest.fixture
def built(without_network):
    """The views by title and the report, as W&B would be sent them."""
    tables = {name: f"table of {name}" for name in PARTS}
    views = [dashboard.specification(view) for view in dashboard.workspaces("team", "project")]
    return {view["displayName"]: view for view in views}, dashboard.specification(
        dashboard.report("team", "project", tables)
    )


def panels_in(node):
    """Every panel of a specification, wherever it stands."""
    if isinstance(node, dict):
        if "viewType" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from panels_in(child)


def keys_of(panel):
    settings = panel["config"]
    return (
        settings.get("metrics")
        or settings.get("mediaKeys")
        or [re.compile(settings["metricRegex"])]
    )


def test_there_is_a_part_for_each_table_and_each_experiment_is_in_one(tmp_path):
    assert sorted(PARTS) == sorted(paper_tables(tmp_path, REPOSITORY / "conf"))
    experiments = [name for part in PARTS.values() for name in part.experiments]
    known = {path.stem for path in (REPOSITORY / "conf" / "experiment").glob("*.yaml")}
    assert sorted(experiments) == sorted(
        known - {"quickstart"}
    )  # which is shorter than what the table has


@pytest.mark.parametrize("part", PARTS.values(), ids=list(PARTS))
def test_a_view_shows_the_runs_of_its_table_by_network_and_column(built, part):
    view = built[0][part.title]["spec"]["section"]
    (runs,) = view["runSets"]
    assert [(rule["key"]["name"], rule["value"]) for rule in runs["filters"]["filters"]] == [
        ("group", [*part.experiments])
    ]
    groups = [key["name"] for key in runs["grouping"]]
    assert groups == [
        "network.value",
        "choices.value.recipe",
        *([f"{part.column}.value"] if part.column else []),
    ]
    panels = list(panels_in(view["panelBankConfig"]))
    assert {
        panel["config"]["xAxis"] for panel in panels if panel["viewType"] == "Run History Line Plot"
    } == {dashboard.STEP}
    assert {
        panel["config"].get("groupArea") for panel in panels if panel["viewType"] != "Media Browser"
    } == {"minmax"}


def test_the_report_has_each_table_and_for_each_column_its_runs(built):
    blocks = built[1]["spec"]["blocks"]
    texts = "\n".join(json.dumps(block) for block in blocks)
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    expected = [(part, column) for part in PARTS.values() for column in part.columns or (None,)]
    assert len(grids) == len(expected)
    for grid, (part, column) in zip(grids, expected, strict=True):
        (runs,) = grid["runSets"]
        rules = {rule["key"]["name"]: rule["value"] for rule in runs["filters"]["filters"]}
        assert [key["name"] for key in runs["grouping"]] == [
            "network.value",
            "choices.value.recipe",
        ]
        assert rules == {
            "group": [*part.experiments],
            **({part.column: column} if part.column else {}),
        }
        assert f"table of {part.table}" in texts
        assert part.title in texts
        places = [tuple(panel["layout"].values()) for panel in panels_in(grid)]
        assert len(places) == len(set(places)) == len(list(panels_in(built[0][part.title])))


def test_the_script_prints_all_of_it_without_a_key(without_network, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dashboard.py", "--print"])
    dashboard.main()
    *views, whole = json.loads(capsys.readouterr().out)
    assert len(views) == len(PARTS)
    assert "| **ST-FCN affine** | *paper, 150k* | *1.2* | *0.8* |" in json.dumps(whole)


def test_what_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys, "argv", ["dashboard.py"])
    with pytest.raises(SystemExit, match=r"there is no key\. Run `wandb login`"):
        dashboard.main()
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit, match=r"wandb-workspaces is missing\. Run pip install"):
        dashboard.main()


def test_a_refusal_of_the_server_is_told():
    class Refused:
        def save(self):
            raise RuntimeError("permission denied\nand more")

    with pytest.raises(UsageError, match="W&B refused the dashboard: permission denied"):
        dashboard.save([Refused()])


RUNS = {
    "mnist": ["data.distortion=rts"],
    "mnist_addition": ["model=addition_2st_fcn"],
    "colocalisation": ["data.digit=1"],
    "mnist_3d": ["data.canvas=40", "data.eval_batch_size=10"],
    "svhn_st_multi": ["model.width=0.05"],
    "birds_2st": ["data.species=1-3", "model.weights=none", "data.batch_size=2", "data.workers=1"],
}
"""A run of each part, and what makes it short."""
NAMES = {
    "mnist": ("ST-FCN affine", {"distortion": "rts"}, "st-fcn-affine-rts"),
    "mnist_addition": ("2 × ST-FCN affine", {}, "2-st-fcn-affine"),
    "colocalisation": (
        "colocalisation attention",
        {"distortion": "t", "digit": 1},
        "colocalisation-attention-t-digit-1",
    ),
    "mnist_3d": ("3-D transformer, projection, FCN", {}, "3-d-transformer-projection-fcn"),
    "svhn_st_multi": ("ST-CNN Multi", {"size": 64}, "st-cnn-multi-64-px"),
    "birds_2st": (
        "2 × ST-CNN, 224 px",
        {"size": 224, "species": "1-3"},
        "2-st-cnn-224-px-species-1-3",
    ),
}
"""The run's network, the column that it is of, and both as an alias."""


@pytest.fixture
def logged(composed, request, tmp_path, monkeypatch):
    """The W&B file of a short run of an experiment, and its configuration."""

    def logged_(experiment):
        if experiment.startswith("birds"):
            birds = [
                Bird(species, training) for species in (1, 2, 3) for training in (True, True, False)
            ]
            root = write_birds(tmp_path / "birds", birds)
        else:
            root = request.getfixturevalue("mnist_root")
        if experiment.startswith("svhn"):
            root = tmp_path / "numbers"
            make_numbers(root, request.getfixturevalue("mnist_root"), {"train": 60, "test": 30})
        more = []
        if experiment == "colocalisation":
            monkeypatch.setitem(digit_encoder.RECIPE, "steps", 2)
            more = [f"task.cache={tmp_path}"]
        offline = ["logger=wandb", "logger.wandb.offline=true", f"data.root={root}"]
        config = composed(f"experiment={experiment}", *SHORT, *RUNS[experiment], *offline, *more)
        train(config)
        return wandb_file.newest(tmp_path / "run"), config

    return logged_


@pytest.mark.parametrize(
    "experiment",
    ["mnist", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "mnist")],
)
def test_a_run_has_what_the_panels_show_and_is_found_by_what_they_filter(
    logged, tmp_path, experiment
):
    file, config = logged(experiment)
    part = next(part for part in PARTS.values() if experiment in part.experiments)
    keys = {key.removesuffix("/_type") for row in wandb_file.rows(file) for key in row}
    view = next(view for view in dashboard.workspaces("team", "project") if view.name == part.title)
    for panel in panels_in(dashboard.specification(view)):
        for wanted in keys_of(panel):
            found = wanted in keys if isinstance(wanted, str) else any(map(wanted.match, keys))
            assert found, (panel["config"], wanted)
    assert all(dashboard.STEP in row for row in wandb_file.rows(file))

    (begun,) = wandb_file.messages(file, "run")
    network, column, alias = NAMES[experiment]
    assert (begun.run_group, begun.job_type, begun.display_name) == (
        experiment,
        "train",
        config.label,
    )
    choices = config.choices
    assert list(begun.tags)[:3] == [choices.model, choices.transform, choices.recipe]
    assert len(begun.tags) == 3 + len(column)
    settings = wandb_file.config(file)
    assert {name: settings[name] for name in ("network", *column)} == {"network": network, **column}
    assert settings["seed"] == 1
    assert settings["choices"]["transform"] == choices.transform
    assert part.column is None or settings[part.column] in part.columns

    defined = {
        metric.name or metric.glob_name: metric for metric in wandb_file.messages(file, "metric")
    }
    assert defined["*"].step_metric == defined["val/error"].step_metric == dashboard.STEP
    assert defined["val/error"].summary.min
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    summary = wandb_file.summary(file)
    for name in part.tested:
        assert summary[name] == pytest.approx(record["metrics"][name])
    if (
        experiment != "colocalisation"
    ):  # whose last weights are kept, as the best would be chosen by labels
        assert (
            summary["val/best_error"]
            == summary["val/error"]["min"]
            == record["metrics"]["val/best_error"]
        )

    (model,) = [
        artifact for artifact in wandb_file.messages(file, "artifact") if artifact.type == "model"
    ]
    assert model.name == f"model-{begun.run_id}"
    assert {"best", alias} <= set(model.aliases)
    (kept,) = model.manifest.contents
    assert kept.local_path == str(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert (file.parent / "files" / "requirements.txt").is_file()


SWEEPS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in (REPOSITORY / "scripts" / "sweeps").glob("*.yaml")
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_gives_right_configurations(composed, sweep):
    config = SWEEPS[sweep]
    assert config["metric"] == {"name": "val/error", "goal": "minimize"}
    values = {
        name: of.get("values") or [of["min"], of["max"]]
        for name, of in config["parameters"].items()
    }
    networks = itertools.product(
        *(values[name] for name in ("model", "transform") if name in values)
    )
    rest = {name: of for name, of in values.items() if name not in ("model", "transform")}
    for n, network in enumerate(networks):
        chosen = dict(
            zip((name for name in ("model", "transform") if name in values), network, strict=True)
        )
        chosen |= {name: of[n % len(of)] for name, of in rest.items()}
        arguments = create_sweep_command_args(
            {"args": {name: {"value": value} for name, value in chosen.items()}}
        )
        place = config["command"].index("${args_no_hyphens}")
        command = [
            *config["command"][:place],
            *arguments["args_no_hyphens"],
            *config["command"][place + 1 :],
        ]
        assert command[:3] == ["${env}", "python", "train.py"]
        validate(composed(*command[3:]))


def test_both_sweeps_of_table_1_have_its_runs_and_no_others():
    rows = yaml.safe_load((REPOSITORY / "conf" / "sweep" / "table1.yaml").read_text())["hydra"][
        "sweeper"
    ]
    expected = {tuple(option.split("=")[1] for option in row.split()) for row in rows["rows"]}
    found = set()
    for name in ("table1", "table1_baselines"):
        parameters = {key: of["values"] for key, of in SWEEPS[name]["parameters"].items()}
        found |= set(
            itertools.product(
                *(parameters[key] for key in ("model", "transform") if key in parameters)
            )
        )
        assert ",".join(parameters["data.distortion"]) == rows["params"]["data.distortion"]
        assert ",".join(map(str, parameters["seed"])) == rows["params"]["seed"]
    assert found == expected
