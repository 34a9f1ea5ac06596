"""The W&B dashboard shows what runs log, and W&B sweeps give valid configurations."""

import itertools
import json
import re
import socket
import subprocess

import dashboard
import pytest
import wandb_file
import yaml
from conftest import REPOSITORY, SHORT
from make_svhn import make as make_numbers
from tiny_birds import write_birds
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from spatial_transformer.reporting.paper_tables import paper_tables
from spatial_transformer.tasks import digit_encoder
from spatial_transformer.training.runner import train
from spatial_transformer.training.validation import validate

PARTS = {part.table: part for part in dashboard.PARTS}


@pytest.fixture
def printed(monkeypatch, run_program):
    """Return the views by title and the report, as the script prints them without a network."""

    def refuse(*args):
        pytest.fail(f"a connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)  # W&B connects from another process
    *views, report = json.loads(run_program(dashboard.main, "--print")[1])
    return {view["displayName"]: view for view in views}, report


def find_panels(node):
    """Yield every panel of a view or a report."""
    if isinstance(node, dict):
        if "viewType" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from find_panels(child)


def find_keys(panel):
    config = panel["config"]
    keys = config.get("metrics") or config.get("mediaKeys")
    return keys or [re.compile(config["metricRegex"])]


def test_each_table_and_each_experiment_of_the_paper_has_a_part(tmp_path):
    assert sorted(PARTS) == sorted(paper_tables(tmp_path, REPOSITORY / "conf"))
    experiments = [name for part in PARTS.values() for name in part.experiments]
    known = {path.stem for path in (REPOSITORY / "conf" / "experiment").glob("*.yaml")}
    ours = {
        "quickstart",
        *(f"mnist_{n}" for n in ("rotated", "modern", "iterated", "frozen", "registration")),
        "svhn_registration",
        "birds_frozen",
    }
    assert sorted(experiments) == sorted(known - ours)


def test_views_show_the_runs_of_their_table_by_network_and_column(printed):
    for part in PARTS.values():
        view = printed[0][part.title]["spec"]["section"]
        (runs,) = view["runSets"]
        rules = [(rule["key"]["name"], rule["value"]) for rule in runs["filters"]["filters"]]
        assert rules == [("group", [*part.experiments])]
        column = [f"{part.column}.value"] if part.column else []
        keys = ["network.value", "choices.value.recipe", "trainer.value.max_steps", *column]
        assert [key["name"] for key in runs["grouping"]] == keys
        panels = list(find_panels(view["panelBankConfig"]))
        lines = [panel for panel in panels if panel["viewType"] == "Run History Line Plot"]
        assert {panel["config"]["xAxis"] for panel in lines} == {dashboard.STEP}


def test_the_report_has_each_table_and_the_runs_of_each_column(printed):
    views, report = printed
    blocks = report["spec"]["blocks"]
    text = json.dumps(blocks)
    assert "| **ST-FCN affine** | *paper, 150k* | *1.2* | *0.8* |" in text
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    expected = [(part, column) for part in PARTS.values() for column in part.columns or (None,)]
    for grid, (part, column) in zip(grids, expected, strict=True):
        assert part.title in text
        (runs,) = grid["runSets"]
        rules = {rule["key"]["name"]: rule["value"] for rule in runs["filters"]["filters"]}
        rule = {part.column: column} if part.column else {}
        assert rules == {"group": [*part.experiments], **rule}
        places = [tuple(panel["layout"].values()) for panel in find_panels(grid)]
        assert len(places) == len(set(places)) == len(list(find_panels(views[part.title])))


def test_without_a_key_the_script_says_what_to_do(monkeypatch, tmp_path, run_program):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "W&B has no key. Run `wandb login`" in run_program(dashboard.main)[0]


def test_a_refusal_of_the_server_is_reported(monkeypatch):
    class Refused:
        entity = "team"

        def save(self):
            raise RuntimeError("permission denied\nand more")

    monkeypatch.setattr("wandb.login", lambda prompt: True)
    with pytest.raises(SystemExit, match=r"W&B refused the dashboard: permission denied$"):
        dashboard.upload([Refused()])


RUNS = {
    "mnist": ["data.distortion=rts"],
    "mnist_addition": ["model=addition_2st_fcn"],
    "colocalisation": ["data.digit=1"],
    "mnist_3d": ["data.canvas=40", "data.eval_batch_size=10"],
    "svhn_st_multi": ["model.width=0.05"],
    "birds_2st": ["data.species=1-3", "model.weights=none", "data.batch_size=2", "data.workers=1"],
}
"""A run of each part, and the settings that make it short."""
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
"""The network of the run, its column, and both as an alias."""


@pytest.fixture
def logged(composed, request, tmp_path, monkeypatch):
    """Return a function that trains an experiment and returns its W&B file and configuration."""

    def train_(experiment):
        if experiment.startswith("birds"):
            root = write_birds(tmp_path / "birds", species=3)
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

    return train_


@pytest.mark.parametrize(
    "experiment",
    ["mnist", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "mnist")],
)
def test_a_run_has_what_the_panels_show_and_filter(logged, tmp_path, experiment):
    file, config = logged(experiment)
    part = next(part for part in PARTS.values() if experiment in part.experiments)
    keys = {key.removesuffix("/_type") for row in wandb_file.rows(file) for key in row}
    views = dashboard.build_views("team", "project")
    (view,) = [view for view in views if view.name == part.title]
    for panel in find_panels(dashboard.to_json(view)):
        for wanted in find_keys(panel):
            found = wanted in keys if isinstance(wanted, str) else any(map(wanted.match, keys))
            is_of_other_families = "/rotation" in str(wanted) or "/(scale" in str(wanted)
            assert found or is_of_other_families, (panel["config"], wanted)
    assert all(dashboard.STEP in row for row in wandb_file.rows(file))

    (run,) = wandb_file.messages(file, "run")
    network, column, alias = NAMES[experiment]
    assert (run.run_group, run.job_type, run.display_name) == (experiment, "train", config.label)
    choices = config.choices
    assert list(run.tags)[:3] == [choices.model, choices.transform, choices.recipe]
    assert len(run.tags) == 3 + len(column)
    settings = wandb_file.config(file)
    assert {name: settings[name] for name in ("network", *column)} == {"network": network, **column}
    assert settings["seed"] == 1
    assert settings["choices"]["transform"] == choices.transform
    assert not part.column or settings[part.column] in part.columns

    defined = {
        metric.name or metric.glob_name: metric for metric in wandb_file.messages(file, "metric")
    }
    assert defined["*"].step_metric == defined["val/error"].step_metric == dashboard.STEP
    assert defined["val/error"].summary.min
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    summary = wandb_file.summary(file)
    for name in part.tested:
        assert summary[name] == pytest.approx(record["metrics"][name])
    if experiment != "colocalisation":  # it keeps the last weights
        assert (
            summary["val/best_error"]
            == summary["val/error"]["min"]
            == record["metrics"]["val/best_error"]
        )

    (model,) = [
        artifact for artifact in wandb_file.messages(file, "artifact") if artifact.type == "model"
    ]
    assert model.name == f"model-{run.run_id}"
    assert {"best", alias} <= set(model.aliases)
    (kept,) = model.manifest.contents
    assert kept.local_path == str(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert (file.parent / "files" / "requirements.txt").is_file()


SWEEPS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in (REPOSITORY / "scripts" / "sweeps").glob("*.yaml")
}


def product_of(sweep, *names):
    """Return all combinations of the values that a sweep gives to some of these settings."""
    parameters = SWEEPS[sweep]["parameters"]
    return itertools.product(*(parameters[name]["values"] for name in names if name in parameters))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_gives_valid_configurations(composed, sweep):
    config = SWEEPS[sweep]
    assert config["metric"] == {"name": "val/error", "goal": "minimize"}
    rest = {
        name: parameter.get("values") or [parameter["min"], parameter["max"]]
        for name, parameter in config["parameters"].items()
        if name not in ("model", "transform")
    }
    for n, network in enumerate(product_of(sweep, "model", "transform")):
        chosen = dict(zip(("model", "transform"), network, strict=False))
        chosen |= {name: values[n % len(values)] for name, values in rest.items()}
        arguments = {"args": {name: {"value": value} for name, value in chosen.items()}}
        place = config["command"].index("${args_no_hyphens}")
        command = list(config["command"])
        command[place : place + 1] = create_sweep_command_args(arguments)["args_no_hyphens"]
        assert command[:3] == ["${env}", "python", "train.py"]
        validate(composed(*command[3:]))


def test_the_sweeps_of_table_1_have_its_runs_and_no_others():
    file = REPOSITORY / "conf" / "sweep" / "table1.yaml"
    sweeper = yaml.safe_load(file.read_text())["hydra"]["sweeper"]
    expected = {tuple(option.split("=")[1] for option in row.split()) for row in sweeper["rows"]}
    found = set()
    for name in ("table1", "table1_baselines"):
        found |= set(product_of(name, "model", "transform"))
        for setting in ("data.distortion", "seed"):
            values = SWEEPS[name]["parameters"][setting]["values"]
            assert ",".join(map(str, values)) == sweeper["params"][setting]
    assert found == expected
