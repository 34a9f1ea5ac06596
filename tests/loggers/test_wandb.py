"""The W&B run of a run directory."""

import fnmatch
import os

import pytest
import wandb_file
from conftest import SHORT

from spatial_transformer.loggers.wandb import STEP, WandbRun, select_metrics
from spatial_transformer.training.runner import train
from spatial_transformer.utils.errors import UsageError

ROWS = [{"step": n, "train/loss": 1 / (n + 1)} for n in range(5)]


class Server:
    """A run in W&B that already has some rows."""

    def __init__(self, rows):
        self.step, self.rows = rows, []

    def log(self, row, step, commit):
        assert commit
        self.rows.append((step, row))


@pytest.fixture
def logger_with(tmp_path):
    def build(remote_rows):
        logger = WandbRun(tmp_path, offline=True, project="test")
        logger._experiment = Server(remote_rows)
        return logger

    return build


def test_missing_rows_are_sent_once(logger_with):
    logger = logger_with(4)  # that before training, and three of metrics
    logger.resume(ROWS)
    logger.log_metrics({"val/error": 2.0}, 5)
    assert logger.experiment.rows == [
        (4, {STEP: 3, "train/loss": 1 / 4}),
        (5, {STEP: 4, "train/loss": 1 / 5}),
        (6, {STEP: 5, "val/error": 2.0}),
    ]


def test_rows_after_the_checkpoint_are_not_sent_again(logger_with):
    logger = logger_with(5)
    logger.resume(ROWS[:2])
    for row in ROWS[2:]:
        logger.log_metrics({"train/loss": row["train/loss"]}, row["step"])
    assert [step for step, _ in logger.experiment.rows] == [5]


def test_images_are_sent_with_the_next_row_and_before_training_at_once(logger_with):
    logger = logger_with(0)
    logger.log_metrics({"pictures/crops": ["first"]}, 0)
    assert logger.experiment.rows == [(0, {STEP: 0, "pictures/crops": ["first"]})]
    logger.log_metrics({"pictures/crops": ["second"]}, 1)
    logger.log_metrics({"val/error": 2.0}, 1)
    logger.log_metrics({"train/loss": 1.0}, 2)
    assert logger.experiment.rows[1:] == [
        (1, {STEP: 1, "val/error": 2.0, "pictures/crops": ["second"]}),
        (2, {STEP: 2, "train/loss": 1.0}),
    ]


def test_an_image_that_cannot_be_sent_costs_no_row(logger_with, caplog):
    logger = logger_with(0)
    log = logger.experiment.log

    def log_to_a_full_disk(row, **settings):
        if "mistakes" in row:
            raise OSError("Unable to write staging files")
        log(row, **settings)

    logger.experiment.log = log_to_a_full_disk
    logger.log_metrics({"mistakes": "a table"}, 1)
    logger.log_metrics({"test/error": 2.0}, 1)
    logger.log_metrics({"test/loss": 1.0}, 2)
    assert logger.experiment.rows == [
        (1, {STEP: 1, "test/error": 2.0}),
        (2, {STEP: 2, "test/loss": 1.0}),
    ]
    assert "Unable to write staging files" in caplog.text


def test_numbered_and_repeated_metrics_stay_in_the_files():
    metrics = {
        "theta/mean_31": 1,
        "theta_2/std_0": 2,
        "theta/outside": 3,
        "test/parts_1/beak": 4,
        "lr-AdamW/network": 5,
        "lr-SGD": 6,
    }
    assert select_metrics(metrics) == {"theta/outside": 3, "lr/network": 5, "lr": 6}


@pytest.mark.parametrize("transform", ["affine", "tps"])
def test_a_run_has_a_dozen_charts_captioned_images_and_its_code(
    composed, drawn_mnist, tmp_path, monkeypatch, transform
):
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    offline = ["logger=wandb", "logger.wandb.offline=true"]
    train(composed(f"transform={transform}", "data.root=.", *SHORT, *offline))
    file = wandb_file.newest(tmp_path / "run")
    first, *rows = wandb_file.rows(file)
    assert first[STEP] == 0
    assert first["pictures/crops/count"] == len(first["pictures/crops/captions"]) == 12
    assert all(caption.startswith("pred ") for caption in first["pictures/crops/captions"])

    options = {m.name or m.glob_name: m.options.hidden for m in wandb_file.messages(file, "metric")}
    scalars = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    scalars = {key for key in scalars if key[0] != "_" and key.split("/")[0] != "pictures"}
    charts = set()
    for name in scalars - {STEP, "mistakes/ncols", "mistakes/nrows", "mistakes/size"}:
        rules = [rule for rule in options if fnmatch.fnmatch(name, rule) and rule != "*"]
        if not options[name if name in options else rules[0] if rules else "*"]:
            charts.add(name)
    described = {"scale_x", "scale_y", "shift", "rotation"}
    theta = {"displacement"} if transform == "tps" else described
    assert charts == {
        "train/loss",
        "val/loss",
        "val/error",
        "lr/network",
        "localisation/gradient_norm",
        "theta/outside",
        *(f"theta/{name}" for name in theta),
    }

    (row,) = [row for row in rows if "mistakes/nrows" in row]
    artifacts = {a.name: a for a in wandb_file.messages(file, "artifact")}
    (table,) = [a for name, a in artifacts.items() if name.endswith("-mistakes")]
    images = [entry for entry in table.manifest.contents if entry.path.endswith(".png")]
    assert row["mistakes/ncols"] == 5
    assert row["mistakes/nrows"] == len(images) > 0
    code = artifacts["source-spatial-transformer-src"], artifacts["source-spatial-transformer-conf"]
    names = [{entry.path for entry in artifact.manifest.contents} for artifact in code]
    assert "spatial_transformer/loggers/wandb.py" in names[0]
    assert "train.yaml" in names[1]
    staged = [path.name for path in tmp_path.glob("run/wandb/artifacts/staging/*")]
    assert staged, "in the run directory, not in HOME"
    assert "WANDB_DATA_DIR" not in os.environ


def test_a_run_directory_keeps_its_id_in_any_save_dir(tmp_path):
    ids = [
        WandbRun(tmp_path / name, tmp_path / "shared", offline=True, project="test").version
        for name in "aba"
    ]
    assert ids[0] == ids[2] != ids[1]


def test_a_name_that_wandb_refuses_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"logger\.wandb: Invalid project name"):
        WandbRun(tmp_path, offline=True, project="team/project").experiment  # noqa: B018


def test_a_run_starts_without_warnings(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("wandb.termwarn", lambda text, **settings: warnings.append(text))
    WandbRun(tmp_path, offline=True, project="test").experiment.finish()
    assert warnings == []


def test_a_disabled_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbRun(tmp_path, project="test")
    logger.resume([])
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.experiment.finish()
    assert list(tmp_path.iterdir()) == []
